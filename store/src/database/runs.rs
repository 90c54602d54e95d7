//! Reading back what runner hosts uploaded.

use super::audit::time_of;
use super::intake::{DNS, NETWORK, verdict_code};
use super::{Database, DatabaseError, read, signed, unsigned};
use jiff::Timestamp;
use portcullis_common::event::{PolicyReference, Verdict};
use portcullis_common::store_api::{DestinationSummary, DetectionRecord, JobRecord, Run};
use schemars::JsonSchema;
use serde::Deserialize;
use sqlx::QueryBuilder;

/// Which runs to read.
#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    /// Only older ones than this key.
    pub before: Option<i64>,
    /// Only of this repository.
    pub repository: Option<String>,
    /// Only of this organization.
    pub organization: Option<String>,
    /// Only of this workflow: `octo/hello/.github/workflows/ci.yml`.
    pub workflow: Option<String>,
    /// Only with a job in this cluster.
    pub cluster: Option<String>,
    /// Only with a job under this policy.
    pub policy: Option<String>,
    /// Only with calls that were stopped, or would have been.
    pub blocked: bool,
    /// Only with detections.
    pub detections: bool,
    /// Only GitHub's run of this id.
    pub run_id: Option<u64>,
    /// Only this attempt.
    pub run_attempt: Option<u32>,
}

/// Which events of a job to read.
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

/// Which detections to read.
#[derive(Clone, Debug, Default)]
pub struct DetectionFilter {
    /// Only older ones than this key.
    pub before: Option<i64>,
    /// Only of this type.
    pub kind: Option<String>,
    /// Only of this repository.
    pub repository: Option<String>,
    /// Only of this organization.
    pub organization: Option<String>,
    /// Only of this cluster.
    pub cluster: Option<String>,
    /// Only of this job.
    pub job: Option<String>,
    /// Only GitHub's run of this id.
    pub run_id: Option<u64>,
    /// Only in this state: `new`, `suppressed`, `resolved`.
    pub state: Option<String>,
    /// Only the one of this id.
    pub id: Option<String>,
    /// Only the one of this key.
    pub key: Option<i64>,
}

/// Whose destinations to add up.
#[derive(Clone, Debug, Default)]
pub struct DestinationFilter {
    /// Only of this organization.
    pub organization: Option<String>,
    /// Only of this repository.
    pub repository: Option<String>,
    /// Only of this cluster.
    pub cluster: Option<String>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only of the job of this key in its workflow.
    pub job_name: Option<String>,
    /// Only with this verdict.
    pub verdict: Option<Verdict>,
    /// Leave out what was stopped.
    pub passed_only: bool,
    /// Only what sorts behind this endpoint and verdict.
    pub after: Option<(String, i16)>,
    /// Only endpoints that have this text in them.
    pub endpoint: Option<String>,
    /// Only jobs that began at this time or later, in milliseconds.
    pub since_ms: Option<i64>,
}

type RunRow = (i64, i64, i64, String, String, i64, i64, i64, i64, i64, i64);

const JOB_COLUMNS: &str = "SELECT key, id, context, cluster, host_id, policy, policy_version, scope, target, identity, mode, \
    started_ms, ended_ms, last_seq, allowed, blocked, would_block, detections, posture, report FROM jobs";

#[derive(sqlx::FromRow)]
struct JobRow {
    key: i64,
    id: String,
    context: String,
    cluster: String,
    host_id: String,
    policy: String,
    policy_version: String,
    scope: String,
    target: String,
    identity: String,
    mode: String,
    started_ms: i64,
    ended_ms: Option<i64>,
    last_seq: i64,
    allowed: i64,
    blocked: i64,
    would_block: i64,
    detections: i64,
    posture: Option<String>,
    report: Option<String>,
}

#[derive(sqlx::FromRow)]
struct DetectionRow {
    key: i64,
    id: String,
    job_id: String,
    seq: Option<i64>,
    kind: String,
    time_us: i64,
    repository: String,
    workflow_path: String,
    run_id: i64,
    evidence: String,
    is_lockdown: bool,
    process: Option<String>,
    endpoint: Option<String>,
    resolved_ms: Option<i64>,
    resolved_by: Option<String>,
    resolution: Option<String>,
    suppressed_by: Option<String>,
}

/// Adds ` AND column = value` where there is a value.
macro_rules! and_equal {
    ($query:expr, $column:literal, $value:expr) => {
        if let Some(value) = $value {
            $query.push(concat!(" AND ", $column, " = ")).push_bind(value);
        }
    };
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
        query.push(" ORDER BY seq LIMIT ").push_bind(i64::from($limit));
        query
    }};
}

impl Database {
    /// Runs with what their jobs add up to, the newest first, each with its key.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn runs(
        &self,
        filter: &RunFilter,
        limit: u32,
    ) -> Result<Vec<(i64, Run)>, DatabaseError> {
        let rows: Vec<RunRow> = read!(self, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT r.key, r.run_id, r.run_attempt, r.repository, r.workflow, r.started_ms, \
                 COUNT(j.key), CAST(COALESCE(SUM(j.blocked), 0) AS BIGINT), CAST(COALESCE(SUM(j.would_block), 0) AS BIGINT), \
                 CAST(COALESCE(SUM(j.detections), 0) AS BIGINT), \
                 CAST(COALESCE(SUM(CASE WHEN j.ended_ms IS NULL THEN 1 ELSE 0 END), 0) AS BIGINT) \
                 FROM (SELECT * FROM runs WHERE key < ",
            );
            query.push_bind(filter.before.unwrap_or(i64::MAX));
            and_equal!(query, "repository", filter.repository.clone());
            and_equal!(query, "organization", filter.organization.clone());
            and_equal!(query, "workflow_path", filter.workflow.clone());
            and_equal!(query, "run_id", filter.run_id.map(signed));
            and_equal!(query, "run_attempt", filter.run_attempt.map(i64::from));
            let by_job = filter.cluster.is_some()
                || filter.policy.is_some()
                || filter.blocked
                || filter.detections;
            if by_job {
                query.push(" AND EXISTS (SELECT 1 FROM jobs WHERE jobs.run = runs.key");
                and_equal!(query, "cluster", filter.cluster.clone());
                and_equal!(query, "policy", filter.policy.clone());
                if filter.blocked {
                    query.push(" AND blocked + would_block > 0");
                }
                if filter.detections {
                    query.push(" AND detections > 0");
                }
                query.push(")");
            }
            query.push(" ORDER BY key DESC LIMIT ").push_bind(i64::from(limit));
            query.push(
                ") r LEFT JOIN jobs j ON j.run = r.key GROUP BY r.key, r.run_id, r.run_attempt, r.repository, r.workflow, r.started_ms \
                 ORDER BY r.key DESC",
            );
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter()
            .map(
                |(
                    key,
                    run_id,
                    attempt,
                    repository,
                    workflow,
                    started,
                    jobs,
                    blocked,
                    would_block,
                    detections,
                    running,
                )| {
                    let run = Run {
                        id: format!("{run_id}-{attempt}"),
                        run_id: unsigned(run_id),
                        run_attempt: u32::try_from(attempt).unwrap_or_default(),
                        repository,
                        workflow,
                        state: if running > 0 { "running" } else { "ended" }.to_owned(),
                        started_at: time_of(started)?,
                        jobs: unsigned(jobs),
                        blocked: unsigned(blocked),
                        would_block: unsigned(would_block),
                        detections: unsigned(detections),
                    };
                    Ok((key, run))
                },
            )
            .collect()
    }

    /// The jobs of a run, the oldest first, without their reports.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn jobs_of_run(&self, run: i64) -> Result<Vec<JobRecord>, DatabaseError> {
        let rows: Vec<JobRow> = read!(self, |pool| {
            let mut query = QueryBuilder::new(JOB_COLUMNS);
            query.push(" WHERE run = ").push_bind(run).push(" ORDER BY key LIMIT 1000");
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter().map(|row| record(JobRow { report: None, ..row })).collect()
    }

    /// A job with its key.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn job(&self, id: &str) -> Result<Option<(i64, JobRecord)>, DatabaseError> {
        let row: Option<JobRow> = read!(self, |pool| {
            let mut query = QueryBuilder::new(JOB_COLUMNS);
            query.push(" WHERE id = ").push_bind(id.to_owned());
            query.build_query_as().fetch_optional(pool).await?
        });
        row.map(|row| Ok((row.key, record(row)?))).transpose()
    }

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

    /// Detections, the newest first, each with its key.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn detections(
        &self,
        filter: &DetectionFilter,
        limit: u32,
    ) -> Result<Vec<(i64, DetectionRecord)>, DatabaseError> {
        let rows: Vec<DetectionRow> = read!(self, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT d.key, d.id, j.id AS job_id, d.seq, d.kind, d.time_us, j.repository, j.workflow_path, r.run_id, \
                 d.evidence, d.is_lockdown, d.process, d.endpoint, d.resolved_ms, \
                 d.resolved_by, d.resolution, d.suppressed_by \
                 FROM detections d JOIN jobs j ON j.key = d.job JOIN runs r ON r.key = j.run WHERE d.key < ",
            );
            query.push_bind(filter.before.unwrap_or(i64::MAX));
            and_equal!(query, "d.kind", filter.kind.clone());
            and_equal!(query, "j.repository", filter.repository.clone());
            and_equal!(query, "j.organization", filter.organization.clone());
            and_equal!(query, "j.cluster", filter.cluster.clone());
            and_equal!(query, "j.id", filter.job.clone());
            and_equal!(query, "r.run_id", filter.run_id.map(signed));
            and_equal!(query, "d.id", filter.id.clone());
            and_equal!(query, "d.key", filter.key);
            match filter.state.as_deref() {
                None => {}
                Some("new") => {
                    query.push(" AND d.resolved_ms IS NULL AND d.suppressed_by IS NULL");
                }
                Some("suppressed") => {
                    query.push(" AND d.resolved_ms IS NULL AND d.suppressed_by IS NOT NULL");
                }
                Some("resolved") => {
                    query.push(" AND d.resolved_ms IS NOT NULL");
                }
                Some(_) => {
                    query.push(" AND 1 = 0");
                }
            }
            query.push(" ORDER BY d.key DESC LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter()
            .map(|row| {
                let record = DetectionRecord {
                    id: row.id,
                    job_id: row.job_id,
                    seq: row.seq.map(unsigned),
                    kind: row.kind,
                    time: microseconds(row.time_us)?,
                    repository: row.repository,
                    workflow: row.workflow_path,
                    run_id: unsigned(row.run_id),
                    evidence: row.evidence,
                    is_lockdown: row.is_lockdown,
                    process: row.process,
                    endpoint: row.endpoint,
                    state: match (row.resolved_ms, &row.suppressed_by) {
                        (Some(_), _) => "resolved",
                        (None, Some(_)) => "suppressed",
                        (None, None) => "new",
                    }
                    .to_owned(),
                    resolved_at: row.resolved_ms.map(time_of).transpose()?,
                    resolved_by: row.resolved_by,
                    resolution: row.resolution,
                    suppressed_by: row.suppressed_by,
                };
                Ok((row.key, record))
            })
            .collect()
    }

    /// Destinations over many jobs, by endpoint.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn destinations(
        &self,
        filter: &DestinationFilter,
        limit: u32,
    ) -> Result<Vec<DestinationSummary>, DatabaseError> {
        let rows: Vec<(String, i16, i64, i64, i64, i64)> = read!(self, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT d.endpoint, d.verdict, CAST(SUM(d.calls) AS BIGINT), COUNT(DISTINCT j.run), MIN(d.first_us), MAX(d.last_us) \
                 FROM destinations d JOIN jobs j ON j.key = d.job WHERE 1 = 1",
            );
            and_equal!(query, "j.organization", filter.organization.clone());
            and_equal!(query, "j.repository", filter.repository.clone());
            and_equal!(query, "j.cluster", filter.cluster.clone());
            and_equal!(query, "j.workflow_path", filter.workflow.clone());
            and_equal!(query, "j.job_name", filter.job_name.clone());
            and_equal!(query, "d.verdict", filter.verdict.map(verdict_code));
            if filter.passed_only {
                query.push(" AND d.verdict <> ").push_bind(verdict_code(Verdict::Blocked));
            }
            if let Some(text) = &filter.endpoint {
                query.push(" AND d.endpoint LIKE ").push_bind(containing(text)).push(" ESCAPE '!'");
            }
            if let Some(since) = filter.since_ms {
                query.push(" AND j.started_ms >= ").push_bind(since);
            }
            if let Some((endpoint, verdict)) = filter.after.clone() {
                query.push(" AND (d.endpoint > ").push_bind(endpoint.clone());
                query.push(" OR (d.endpoint = ").push_bind(endpoint);
                query.push(" AND d.verdict > ").push_bind(verdict).push("))");
            }
            query.push(" GROUP BY d.endpoint, d.verdict ORDER BY d.endpoint, d.verdict LIMIT ");
            query.push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter()
            .map(|(endpoint, verdict, calls, runs, first, last)| {
                Ok(DestinationSummary {
                    endpoint,
                    verdict: verdict_of(verdict)?,
                    calls: unsigned(calls),
                    runs: unsigned(runs),
                    first_seen: microseconds(first)?,
                    last_seen: microseconds(last)?,
                })
            })
            .collect()
    }
}

/// A pattern for `LIKE … ESCAPE '!'` that finds the text anywhere, whatever is in it.
pub(super) fn containing(text: &str) -> String {
    let escaped = text.replace('!', "!!").replace('%', "!%").replace('_', "!_");
    format!("%{escaped}%")
}

fn record(row: JobRow) -> Result<JobRecord, DatabaseError> {
    let corrupt = |what: &str| DatabaseError::Corrupt(format!("job {}: {what}", row.id));
    let context = serde_json::from_str(&row.context).map_err(|_| corrupt("its context"))?;
    let report = match &row.report {
        Some(text) => Some(serde_json::from_str(text).map_err(|_| corrupt("its report"))?),
        None => None,
    };
    Ok(JobRecord {
        context,
        policy: PolicyReference {
            name: row.policy,
            version: row.policy_version,
            scope: from_word(&row.scope)?,
        },
        identity: from_word(&row.identity)?,
        mode: from_word(&row.mode)?,
        posture: row.posture.as_deref().map(from_word).transpose()?,
        state: if row.ended_ms.is_some() { "ended" } else { "running" }.to_owned(),
        started_at: time_of(row.started_ms)?,
        ended_at: row.ended_ms.map(time_of).transpose()?,
        id: row.id,
        cluster: row.cluster,
        host: row.host_id,
        target: row.target,
        events: unsigned(row.last_seq),
        allowed: unsigned(row.allowed),
        blocked: unsigned(row.blocked),
        would_block: unsigned(row.would_block),
        detections: unsigned(row.detections),
        report,
    })
}

/// The value that serializes as this word.
fn from_word<T: serde::de::DeserializeOwned>(word: &str) -> Result<T, DatabaseError> {
    serde_json::from_value(serde_json::Value::String(word.to_owned()))
        .map_err(|_| DatabaseError::Corrupt(format!("the word {word:?}")))
}

pub(super) fn verdict_of(code: i16) -> Result<Verdict, DatabaseError> {
    [Verdict::Allowed, Verdict::Blocked, Verdict::WouldBlock]
        .into_iter()
        .find(|verdict| verdict_code(*verdict) == code)
        .ok_or_else(|| DatabaseError::Corrupt(format!("the verdict {code}")))
}

pub(super) fn microseconds(time: i64) -> Result<Timestamp, DatabaseError> {
    Timestamp::from_microsecond(time)
        .map_err(|error| DatabaseError::Corrupt(format!("the time {time}: {error}")))
}
