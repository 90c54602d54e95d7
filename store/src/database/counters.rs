//! The counters that tell whether something changed, by a connection of their own.
//!
//! They are read before almost every answer. A connection of the pool is tested when it is taken and when it is given back: three
//! ways to the database where one does.

use super::{ACQUIRE_TIMEOUT, Database, DatabaseError, Generations};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tokio::time::timeout;

const SQL: &str = "SELECT policies, identities FROM store_state WHERE id = 1";

/// A connection that nobody else uses. After an error, or when reading was given up, it must not be used again.
#[derive(Debug)]
pub enum Counters {
    /// To a file.
    Sqlite(SqliteConnection),
    /// To a server.
    Postgres(PgConnection),
}

impl Counters {
    /// Connects.
    ///
    /// # Errors
    /// When the database can't be reached in time.
    pub async fn open(database: &Database) -> Result<Self, DatabaseError> {
        let open = async {
            Ok::<_, sqlx::Error>(match database {
                Database::Sqlite(database) => Self::Sqlite(
                    SqliteConnection::connect_with(&database.readers.connect_options()).await?,
                ),
                Database::Postgres(pool) => {
                    Self::Postgres(PgConnection::connect_with(&pool.connect_options()).await?)
                }
            })
        };
        Ok(timeout(ACQUIRE_TIMEOUT, open).await.map_err(|_| sqlx::Error::PoolTimedOut)??)
    }

    /// The counters as they are now.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn read(&mut self) -> Result<Generations, DatabaseError> {
        let read = async {
            match self {
                Self::Sqlite(connection) => sqlx::query_as(SQL).fetch_one(connection).await,
                Self::Postgres(connection) => sqlx::query_as(SQL).fetch_one(connection).await,
            }
        };
        let (policies, identities) =
            timeout(ACQUIRE_TIMEOUT, read).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        Ok(Generations { policies, identities })
    }

    /// Ends the connection as the database wants it.
    pub async fn close(self) {
        // It is not needed any more; what it did is done.
        let _ = match self {
            Self::Sqlite(connection) => connection.close().await,
            Self::Postgres(connection) => connection.close().await,
        };
    }
}

impl Database {
    /// What changed last, by any connection.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn generations(&self) -> Result<Generations, DatabaseError> {
        let (policies, identities) =
            super::read!(self, |pool| sqlx::query_as(SQL).fetch_one(pool).await?);
        Ok(Generations { policies, identities })
    }
}
