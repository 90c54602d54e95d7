//! Reading the events of a job.

use super::batch::{DNS, NETWORK};
use super::learning::NEW_OUTBOUND_NETWORK_CALL;
use super::values::{and_equal, containing, verdict_code};
use super::{Database, DatabaseError, read, signed, unsigned};
use portcullis_common::event::Verdict;
use schemars::JsonSchema;
use serde::Deserialize;
use sqlx::QueryBuilder;

/// Which events of a job to read.
#[expect(clippy::struct_excessive_bools, reason = "each is asked for with any of the others")]
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only those behind this number.
    pub after: u64,
    /// Only calls, and queries where `dns` is set.
    pub network: bool,
    /// Queries for names as well.
    pub dns: bool,
    /// Only executions, files and detections.
    pub others: bool,
    /// Only of this kind.
    pub kind: Option<EventName>,
    /// Only with this verdict.
    pub verdict: Option<Verdict>,
    /// Only to an endpoint that has this text in it.
    pub endpoint: Option<String>,
    /// Only of an executable that has this text in its path.
    pub process: Option<String>,
    /// Only of this step.
    pub step: Option<String>,
    /// Only judged by this policy.
    pub policy: Option<String>,
    /// Only calls to endpoints that a detection of the job says are new for it.
    pub new: bool,
}

/// The kinds of events, as they are asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum EventName {
    /// Calls.
    Network,
    /// Queries for names.
    Dns,
    /// Executions.
    Process,
    /// Changed files.
    File,
    /// Detections.
    Detection,
    /// Changes of what is in force.
    Posture,
    /// Stages of the job.
    Job,
}

impl EventName {
    /// The number in the database.
    const fn code(self) -> i16 {
        match self {
            Self::Network => NETWORK,
            Self::Dns => DNS,
            Self::Process => 3,
            Self::File => 4,
            Self::Detection => 5,
            Self::Posture => 6,
            Self::Job => 7,
        }
    }
}

/// The index that finds what is rare among a job's events.
const fn index(filter: &EventFilter) -> Option<&'static str> {
    match (filter.verdict, filter.kind) {
        (Some(Verdict::Blocked | Verdict::WouldBlock), _) => Some("events_not_allowed"),
        (_, None) if filter.others => Some("events_of_processes"),
        (_, Some(kind)) if kind.code() > DNS => Some("events_of_processes"),
        _ => None,
    }
}

/// The query for events of a job, with something before it: `EXPLAIN`, or nothing. What an index leaves out is said as the
/// index says it: databases compare the text.
macro_rules! events_query {
    ($database:expr, $before:literal, $job:expr, $filter:expr, $limit:expr) => {{
        let mut query = QueryBuilder::new(concat!($before, "SELECT seq, body FROM events"));
        // SQLite without statistics prefers the table's own order, and reads the whole job.
        if let (Database::Sqlite(_), Some(index)) = ($database, index($filter)) {
            query.push(" INDEXED BY ").push(index);
        }
        query.push(" WHERE job = ").push_bind($job);
        query.push(" AND seq > ").push_bind(signed($filter.after));
        if $filter.network {
            query.push(" AND (kind = ").push_bind(NETWORK);
            if $filter.dns {
                query.push(" OR kind = ").push_bind(DNS);
            }
            query.push(")");
        }
        if $filter.others {
            query.push(" AND kind IN (3, 4, 5)");
        }
        if let Some(kind) = $filter.kind {
            query.push(" AND kind = ").push_bind(kind.code());
        }
        if let Some(verdict) = $filter.verdict {
            query.push(" AND verdict = ").push_bind(verdict_code(verdict));
        }
        match index($filter) {
            Some("events_not_allowed") => {
                query.push(" AND verdict <> 0");
            }
            Some(_) => {
                query.push(" AND kind <> 1 AND kind <> 2");
            }
            None => {}
        }
        and_equal!(query, "step", $filter.step.clone());
        if let Some(text) = &$filter.endpoint {
            query.push(" AND endpoint LIKE ").push_bind(containing(text)).push(" ESCAPE '!'");
        }
        if let Some(text) = &$filter.process {
            query.push(" AND process LIKE ").push_bind(containing(text)).push(" ESCAPE '!'");
        }
        if let Some(policy) = &$filter.policy {
            // In the text alone: a job has one policy, and nobody looks for it among many.
            query.push(match $database {
                Database::Sqlite(_) => " AND body ->> '$.policy.name' = ",
                Database::Postgres(_) => " AND body::json #>> '{policy,name}' = ",
            });
            query.push_bind(policy.clone());
        }
        if $filter.new {
            query
                .push(" AND endpoint IN (SELECT endpoint FROM detections WHERE job = ")
                .push_bind($job);
            query.push(" AND kind = ").push_bind(NEW_OUTBOUND_NETWORK_CALL).push(")");
        }
        query.push(" ORDER BY seq LIMIT ").push_bind(i64::from($limit));
        query
    }};
}

impl Database {
    /// Events of a job, in order: number and text.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn events(
        &self,
        job: i64,
        filter: &EventFilter,
        limit: u32,
    ) -> Result<Vec<(u64, String)>, DatabaseError> {
        let rows: Vec<(i64, String)> = read!(self, |pool| {
            let mut query = events_query!(self, "", job, filter, limit);
            query.build_query_as().fetch_all(pool).await?
        });
        Ok(rows.into_iter().map(|(seq, body)| (unsigned(seq), body)).collect())
    }

    /// How the database reads the events of a job: its own words, for tests that reading stays as fast as it is.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn explain_events(
        &self,
        job: i64,
        filter: &EventFilter,
    ) -> Result<String, DatabaseError> {
        let limit = 100_u32;
        let lines: Vec<String> = match self {
            Self::Sqlite(database) => {
                let mut query = events_query!(self, "EXPLAIN QUERY PLAN ", job, filter, limit);
                let rows: Vec<(i64, i64, i64, String)> =
                    query.build_query_as().fetch_all(&database.readers).await?;
                rows.into_iter().map(|(.., line)| line).collect()
            }
            Self::Postgres(pool) => {
                let mut query = events_query!(self, "EXPLAIN ", job, filter, limit);
                let rows: Vec<(String,)> = query.build_query_as().fetch_all(pool).await?;
                rows.into_iter().map(|(line,)| line).collect()
            }
        };
        Ok(lines.join("\n"))
    }
}
