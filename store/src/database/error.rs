//! What can go wrong with the database.

use std::io;
use std::path::PathBuf;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The address is of no kind that is known.
    #[error("the database's address must be sqlite:/a/file or postgres://user@host/name")]
    Address,
    /// A file can't be used.
    #[error("{} can't be opened", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database said no, or could not be reached.
    #[error("the database could not be used")]
    Sqlx(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database's schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Something in the database is not what this program writes.
    #[error("the database holds something that can't be understood: {0}")]
    Corrupt(String),
    /// Somebody else changed the same thing meanwhile.
    #[error("somebody else changed the same meanwhile")]
    Stale,
}

impl DatabaseError {
    /// Whether trying again later can help: the database is away or too busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Sqlx(error) => {
                matches!(
                    error,
                    sqlx::Error::Io(_)
                        | sqlx::Error::PoolTimedOut
                        | sqlx::Error::PoolClosed
                        | sqlx::Error::WorkerCrashed
                        | sqlx::Error::Tls(_)
                ) || error.as_database_error().is_some_and(|error| {
                    // PostgreSQL: shutting down, starting up, too many connections, serialization, deadlock, out of resources.
                    // SQLite: busy, locked, disk full.
                    error.code().is_some_and(|code| {
                        ["57P01", "57P02", "57P03", "53300", "40001", "40P01", "5", "6", "13"]
                            .contains(&&*code)
                            || code.starts_with("53")
                    })
                })
            }
            _ => false,
        }
    }
}
