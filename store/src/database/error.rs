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
                ) || error
                    .as_database_error()
                    .and_then(sqlx::error::DatabaseError::code)
                    .is_some_and(|code| is_transient_code(&code))
            }
            _ => false,
        }
    }
}

/// Whether what a database says by a code passes. PostgreSQL's have five letters, SQLite's are numbers.
fn is_transient_code(code: &str) -> bool {
    /// SQLite: busy, locked, an error of the disk, a full disk, a file that can't be opened (the log's, on a full disk). The
    /// upper bits of a code say more about its kind.
    const SQLITE: [u32; 5] = [5, 6, 10, 13, 14];
    /// PostgreSQL: shutting down, crashing, starting up; serialization, deadlock.
    const POSTGRES: [&str; 5] = ["57P01", "57P02", "57P03", "40001", "40P01"];
    if code.len() == 5 {
        // 53: out of connections, memory, disk. 58: errors of the system, such as a file that can't be written.
        return POSTGRES.contains(&code) || code.starts_with("53") || code.starts_with("58");
    }
    code.parse::<u32>().is_ok_and(|code| SQLITE.contains(&(code & 0xff)))
}

#[cfg(test)]
mod tests {
    use super::is_transient_code;

    #[test]
    fn what_passes_is_told_from_what_stays() {
        // SQLITE_FULL, SQLITE_IOERR_WRITE, SQLITE_IOERR_SHMSIZE, SQLITE_BUSY_SNAPSHOT; disk_full, admin_shutdown, io_error.
        for code in ["13", "778", "4874", "517", "53100", "57P01", "58030"] {
            assert!(is_transient_code(code), "{code}");
        }
        // SQLITE_CONSTRAINT_UNIQUE, SQLITE_CORRUPT; unique_violation, undefined_table.
        for code in ["2067", "11", "23505", "42P01", "", "x"] {
            assert!(!is_transient_code(code), "{code}");
        }
    }
}
