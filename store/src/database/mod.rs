//! The database: SQLite or PostgreSQL. The only module of the product that knows SQL.
//!
//! Both are used by the same functions with the same SQL text: placeholders are `$1`, times are `BIGINT` milliseconds
//! (microseconds for events), ids are text. The macros `read!` and `transaction!` expand a body once for each kind of pool.
//! SQLite has one connection that writes, because it has one writer anyway: waiting in line here is fairer and cheaper than
//! `SQLITE_BUSY`.

mod archive;
mod audit;
mod baselines;
mod batch;
mod counters;
mod destinations;
mod detection_records;
mod detections;
mod error;
mod events;
mod file_changes;
mod generate;
mod hosts;
mod identity;
mod insights;
mod intake;
mod integrations;
mod job_life;
mod learning;
mod maintenance;
mod policies;
mod runs;
mod sessions;
mod suppressions;
mod values;

pub use archive::JobToArchive;
pub use audit::{AuditFilter, NewAuditEntry};
pub use baselines::{BaselineFilter, BaselineKind, RecordedCalls, TrialFilter};
pub use batch::NewEvent;
pub use counters::Counters;
pub use destinations::{DestinationFilter, EndpointFilter};
pub use detection_records::DetectionFilter;
pub use detections::{DetectionState, NewDetection};
pub use error::DatabaseError;
pub use events::{EventFilter, EventName};
pub(crate) use file_changes::Mark;
pub use generate::Generated;
pub use hosts::{EnrolmentUse, NewCredential};
pub use identity::{Caller, CredentialRow, StoredToken, job_of_token};
pub use insights::{SeenKind, SummaryCounts, TimelineCount, hours_before};
pub use intake::Intake;
pub use integrations::{
    ClaimedDelivery, DeliveryFilter, IntegrationRow, IntegrationWrite, Settled, state_name,
};
pub use job_life::{JobEnd, JobStart};
pub use learning::{MAX_LEARNED_OF_JOB, MAX_TOLD_OF_JOB, NEW_OUTBOUND_NETWORK_CALL, Thresholds};
pub use maintenance::Retention;
pub use policies::{Change, Generations, PolicyRow, StoredDocument, VersionRow};
pub use runs::RunFilter;
pub use sessions::{NewSession, SessionRow, Vouched};
pub use suppressions::NewSuppression;
pub use values::{verdict_code, verdict_name};

use file_changes::FileChanges;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, PgPool, SqlitePool};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits for a connection before it is answered with 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long SQLite waits for another process that writes, for instance `portcullis migrate`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that read SQLite at the same time.
const SQLITE_READERS: u32 = 4;

/// A database with its pools.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file.
    Sqlite(SqliteDatabase),
    /// A server.
    Postgres(PgPool),
}

/// SQLite in WAL mode: many readers, one writer.
#[derive(Clone, Debug)]
pub struct SqliteDatabase {
    readers: SqlitePool,
    writer: SqlitePool,
    path: PathBuf,
    changes: Arc<FileChanges>,
}

/// Expands `$body` with `$pool` as a pool that reads.
macro_rules! read {
    ($database:expr, |$pool:ident| $body:expr) => {
        match $database {
            $crate::database::Database::Sqlite(database) => {
                let $pool = &database.readers;
                $body
            }
            $crate::database::Database::Postgres($pool) => $body,
        }
    };
}

/// Expands `$body` in a transaction that may write, and commits it. A `return` or `?` in the body rolls back.
macro_rules! transaction {
    ($database:expr, |$transaction:ident| $body:expr) => {
        match $database {
            $crate::database::Database::Sqlite(database) => {
                // IMMEDIATE: a transaction that reads first and then writes could not be upgraded when another wrote.
                let mut $transaction = database.writer.begin_with("BEGIN IMMEDIATE").await?;
                database.changes.writer_taken();
                let result = $body;
                database.changes.commit_begins();
                let committed = $transaction.commit().await;
                database.changes.commit_ended();
                committed?;
                result
            }
            $crate::database::Database::Postgres(pool) => {
                let mut $transaction = pool.begin().await?;
                let result = $body;
                $transaction.commit().await?;
                result
            }
        }
    };
}

use {read, transaction};

/// Waits for locks of the files beside a database.
async fn off_the_runtime<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DatabaseError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.flatten().map_err(|source| DatabaseError::File { path: path.to_owned(), source })
}

impl Database {
    /// Opens `sqlite:PATH` or `postgres://…` and brings its schema up to date.
    ///
    /// # Errors
    /// When the address can't be understood, the database can't be reached, or a migration fails.
    pub async fn open(url: &str, max_connections: u32) -> Result<Self, DatabaseError> {
        let database = Self::connect(url, max_connections).await?;
        database.migrate().await?;
        Ok(database)
    }

    /// Opens a database as it is.
    ///
    /// # Errors
    /// When the address can't be understood or the database can't be reached.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, DatabaseError> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            return Self::connect_sqlite(path).await.map(Self::Sqlite);
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let options = PgConnectOptions::from_str(url)?.application_name("portcullis");
            let pool = PgPoolOptions::new()
                .max_connections(max_connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_with(options)
                .await?;
            return Ok(Self::Postgres(pool));
        }
        Err(DatabaseError::Address)
    }

    async fn connect_sqlite(path: &Path) -> Result<SqliteDatabase, DatabaseError> {
        // Made here, so that it is never readable by others: it holds everything that the store knows.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| DatabaseError::File { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: what was acknowledged survives a loss of power, not only of the process.
            .synchronous(SqliteSynchronous::Full)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", "-16384")
            .pragma("temp_store", "memory");
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                // A file does not go away like a server; each test would be a way to the connection's thread and back.
                .test_before_acquire(false)
                // On a full disk SQLite ends a transaction by itself, and its rollback then fails: the connection counts as one
                // within a transaction for ever, and would refuse every other. It is replaced.
                .before_acquire(|connection, _| {
                    Box::pin(async move { Ok(!connection.is_in_transaction()) })
                })
                .connect_with(options.clone())
        };
        // Before anything is read or written, so that others know.
        let entering = path.to_owned();
        let changes = off_the_runtime(path, move || FileChanges::open(&entering)).await?;
        let (writer, readers) = (pool(1).await?, pool(SQLITE_READERS).await?);
        Ok(SqliteDatabase { readers, writer, path: path.to_owned(), changes: Arc::new(changes) })
    }

    /// Brings the schema up to date. Several replicas may do so at the same time: one does, the others wait.
    ///
    /// # Errors
    /// When a migration fails, or the schema is newer than this program.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        match self {
            Self::Sqlite(database) => {
                // sqlx locks PostgreSQL by itself, and SQLite not at all.
                let path = database.path.clone();
                let held =
                    off_the_runtime(&database.path, move || file_changes::turn(&path)).await?;
                sqlx::migrate!("src/database/migrations/sqlite").run(&database.writer).await?;
                drop(held);
            }
            Self::Postgres(pool) => {
                sqlx::migrate!("src/database/migrations/postgres").run(pool).await?;
            }
        }
        Ok(())
    }

    /// A mark for a look at the database that begins now: as long as it [holds](Self::is_unchanged_since), another look would
    /// see the same. There is none where that can't be known without asking the database.
    pub(crate) fn mark(&self) -> Option<Mark> {
        match self {
            Self::Sqlite(database) => database.changes.mark(),
            Self::Postgres(_) => None,
        }
    }

    /// Whether nothing has been written to the database since the mark.
    pub(crate) fn is_unchanged_since(&self, mark: Mark) -> bool {
        match self {
            Self::Sqlite(database) => database.changes.is_unchanged_since(mark),
            Self::Postgres(_) => false,
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), DatabaseError> {
        read!(self, |pool| sqlx::query("SELECT 1").execute(pool).await.map(drop)?);
        Ok(())
    }

    /// `sqlite` or `postgresql`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgresql",
        }
    }

    /// Closes all connections, after what they do is done.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(database) => {
                database.readers.close().await;
                database.writer.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A count or number from the database, which has no unsigned integers; ours are never negative.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// A number for the database; ours fit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
