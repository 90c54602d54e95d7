//! What is shown at a glance, added up by the database.

use super::audit::time_of;
use super::values::containing;
use super::{Database, DatabaseError, read, signed, unsigned};
use portcullis_common::store_api::HostState;
use schemars::JsonSchema;
use serde::Deserialize;
use sqlx::QueryBuilder;

/// Milliseconds of an hour.
const HOUR_MS: i64 = 3_600_000;

/// What runners have reported, to choose from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum SeenKind {
    /// Clusters that hosts are enrolled in.
    Cluster,
    /// Organizations.
    Organization,
    /// Repositories.
    Repository,
    /// Workflows.
    Workflow,
}

/// What one hour's jobs add up to.
#[derive(Clone, Copy, Debug, Default)]
pub struct SummaryCounts {
    /// When the hour begins, in milliseconds since 1970.
    pub hour_ms: i64,
    /// Jobs.
    pub jobs: u64,
    /// Jobs that go on.
    pub running: u64,
    /// Calls that a rule allows.
    pub allowed: u64,
    /// Calls that were stopped.
    pub blocked: u64,
    /// Calls that only audit mode let through.
    pub would_block: u64,
    /// Detections.
    pub detections: u64,
    /// Jobs with less in force than their policy asks for.
    pub weak: u64,
}

/// Events of calls within one part of a job's time.
#[derive(Clone, Copy, Debug)]
pub struct TimelineCount {
    /// Which part, from 0.
    pub part: u64,
    /// What became of the calls.
    pub verdict: i16,
    /// How many events.
    pub count: u64,
}

/// A host, its job, when that began, its posture, what is less than it should be, and the report.
type HostStateRow = (String, String, i64, String, Option<String>, String);

type HourRow = (i64, i64, i64, i64, i64, i64, i64, i64);

/// The last job of each host that has reported: one look into the index of hosts' jobs for each, where the job with the greatest
/// host and key stands that is not behind the host. Asked for the host's own newest job, PostgreSQL may go through all jobs
/// from the newest on, for each host that has none.
macro_rules! host_states_query {
    ($prefix:literal, $host:expr) => {{
        let mut query =
            QueryBuilder::new(concat!($prefix, "SELECT h.id, j.id, j.started_ms, j.posture, j.posture_reason, "));
        query.push(if $host.is_some() { "COALESCE(j.report, '')" } else { "''" });
        query.push(
            " FROM hosts h JOIN jobs j ON j.host_id = h.id AND j.key = (SELECT own.key FROM jobs own \
             WHERE own.host_id <= h.id AND own.posture IS NOT NULL ORDER BY own.host_id DESC, own.key DESC LIMIT 1)",
        );
        if let Some(host) = $host {
            query.push(" WHERE h.id = ").push_bind(host.to_owned());
        }
        query
    }};
}

impl Database {
    /// Jobs that began at a time or later, by hour.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn jobs_by_hour(&self, since_ms: i64) -> Result<Vec<SummaryCounts>, DatabaseError> {
        const SQL: &str = "SELECT started_ms / 3600000 AS hour, COUNT(*), \
            CAST(SUM(CASE WHEN ended_ms IS NULL THEN 1 ELSE 0 END) AS BIGINT), CAST(SUM(allowed) AS BIGINT), \
            CAST(SUM(blocked) AS BIGINT), CAST(SUM(would_block) AS BIGINT), CAST(SUM(detections) AS BIGINT), \
            CAST(SUM(CASE WHEN posture IN ('degraded', 'audit-fallback', 'unenforced') THEN 1 ELSE 0 END) AS BIGINT) \
            FROM jobs WHERE started_ms >= $1 GROUP BY started_ms / 3600000 ORDER BY 1";
        let rows: Vec<HourRow> =
            read!(self, |pool| sqlx::query_as(SQL).bind(since_ms).fetch_all(pool).await?);
        Ok(rows
            .into_iter()
            .map(|(hour, jobs, running, allowed, blocked, would_block, detections, weak)| {
                SummaryCounts {
                    hour_ms: hour * HOUR_MS,
                    jobs: unsigned(jobs),
                    running: unsigned(running),
                    allowed: unsigned(allowed),
                    blocked: unsigned(blocked),
                    would_block: unsigned(would_block),
                    detections: unsigned(detections),
                    weak: unsigned(weak),
                }
            })
            .collect())
    }

    /// Runs that began at a time or later, and jobs of that time that were killed for a detection.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn runs_and_lockdowns(&self, since_ms: i64) -> Result<(u64, u64), DatabaseError> {
        const RUNS: &str = "SELECT COUNT(DISTINCT run) FROM jobs WHERE started_ms >= $1";
        const LOCKDOWNS: &str = "SELECT COUNT(DISTINCT d.job) FROM jobs j JOIN detections d ON d.job = j.key \
            WHERE j.started_ms >= $1 AND j.detections > 0 AND d.is_lockdown = $2";
        let (runs,): (i64,) =
            read!(self, |pool| sqlx::query_as(RUNS).bind(since_ms).fetch_one(pool).await?);
        let (lockdowns,): (i64,) = read!(self, |pool| {
            sqlx::query_as(LOCKDOWNS).bind(since_ms).bind(true).fetch_one(pool).await?
        });
        Ok((unsigned(runs), unsigned(lockdowns)))
    }

    /// Endpoints that were called for the first time at a time or later, the most called first: endpoint, verdict, calls, runs,
    /// first and last time in microseconds. Baselines of organizations know; they keep what was called before retention.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn new_endpoints(
        &self,
        since_ms: i64,
        limit: u32,
    ) -> Result<Vec<(String, i16, i64, i64, i64, i64)>, DatabaseError> {
        const SQL: &str = "SELECT endpoint, MAX(verdict), CAST(SUM(calls) AS BIGINT), CAST(SUM(runs) AS BIGINT), \
            MIN(first_us), MAX(last_us) FROM baseline_endpoints WHERE baseline IN (SELECT key FROM baselines WHERE source = 3) \
            GROUP BY endpoint HAVING MIN(first_us) >= $1 ORDER BY 3 DESC, 1 LIMIT $2";
        let since_us = since_ms.saturating_mul(1000);
        Ok(read!(self, |pool| {
            sqlx::query_as(SQL).bind(since_us).bind(i64::from(limit)).fetch_all(pool).await?
        }))
    }

    /// A job's calls by part of its time: parts of `width_us` microseconds from `start_us` on.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn timeline(
        &self,
        job: i64,
        start_us: i64,
        width_us: i64,
    ) -> Result<Vec<TimelineCount>, DatabaseError> {
        const SQL: &str = "SELECT (time_us - $2) / $3, verdict, COUNT(*) FROM events \
            WHERE job = $1 AND kind = 1 AND verdict IS NOT NULL GROUP BY (time_us - $2) / $3, verdict ORDER BY 1";
        let rows: Vec<(i64, i16, i64)> = read!(self, |pool| {
            sqlx::query_as(SQL)
                .bind(job)
                .bind(start_us)
                .bind(width_us.max(1))
                .fetch_all(pool)
                .await?
        });
        Ok(rows
            .into_iter()
            .map(|(part, verdict, count)| TimelineCount {
                part: unsigned(part.max(0)),
                verdict,
                count: unsigned(count),
            })
            .collect())
    }

    /// When the first and the last call of a job were, in microseconds.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn span_of_calls(&self, job: i64) -> Result<Option<(i64, i64)>, DatabaseError> {
        const SQL: &str = "SELECT MIN(first_us), MAX(last_us) FROM destinations WHERE job = $1";
        let (first, last): (Option<i64>, Option<i64>) =
            read!(self, |pool| sqlx::query_as(SQL).bind(job).fetch_one(pool).await?);
        Ok(first.zip(last))
    }

    /// What has been seen of a kind and has a text in it, in order.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn seen(
        &self,
        kind: SeenKind,
        text: &str,
        limit: u32,
    ) -> Result<Vec<String>, DatabaseError> {
        let (column, table) = match kind {
            SeenKind::Cluster => ("cluster", "hosts"),
            SeenKind::Organization => ("organization", "runs"),
            SeenKind::Repository => ("repository", "runs"),
            SeenKind::Workflow => ("workflow_path", "runs"),
        };
        let pattern = containing(&text.to_lowercase());
        let rows: Vec<(String,)> = read!(self, |pool| {
            // Column and table are ours.
            let mut query = QueryBuilder::new(format!(
                "SELECT DISTINCT {column} FROM {table} WHERE LOWER({column}) LIKE "
            ));
            query.push_bind(pattern).push(format!(" ESCAPE '!' ORDER BY {column} LIMIT "));
            query.push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        Ok(rows.into_iter().map(|(text,)| text).collect())
    }

    /// What the last reports of jobs say is in force on hosts; with the whole report where one host is asked for.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn host_states(
        &self,
        host: Option<&str>,
    ) -> Result<Vec<(HostState, String)>, DatabaseError> {
        let rows: Vec<HostStateRow> = read!(self, |pool| {
            let mut query = host_states_query!("", host);
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter()
            .map(|(host_id, job_id, started, posture, reason, report)| {
                let level = serde_json::from_value(serde_json::Value::String(posture))
                    .map_err(|_| DatabaseError::Corrupt(format!("job {job_id}: its posture")))?;
                let time = time_of(started)?;
                Ok((HostState { host_id, job_id, time, level, reason, posture: None }, report))
            })
            .collect()
    }

    /// How the database reads the states of all hosts, in its own words, for tests.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn explain_host_states(&self) -> Result<String, DatabaseError> {
        let host: Option<&str> = None;
        let lines: Vec<String> = match self {
            Self::Sqlite(database) => {
                let mut query = host_states_query!("EXPLAIN QUERY PLAN ", host);
                let rows: Vec<(i64, i64, i64, String)> =
                    query.build_query_as().fetch_all(&database.readers).await?;
                rows.into_iter().map(|(.., line)| line).collect()
            }
            Self::Postgres(pool) => {
                let mut query = host_states_query!("EXPLAIN ", host);
                let rows: Vec<(String,)> = query.build_query_as().fetch_all(pool).await?;
                rows.into_iter().map(|(line,)| line).collect()
            }
        };
        Ok(lines.join("\n"))
    }
}

/// An hour for the database.
pub fn hours_before(now_ms: i64, hours: u32) -> i64 {
    now_ms - signed(u64::from(hours)) * HOUR_MS
}
