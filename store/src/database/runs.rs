//! Reading runs and their jobs.

use super::audit::time_of;
use super::destinations::repository_of;
use super::values::{and_equal, from_word};
use super::{Database, DatabaseError, read, signed, unsigned};
use portcullis_common::event::PolicyReference;
use portcullis_common::store_api::{JobRecord, Run};
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
    /// Only with a call to this endpoint, or one that was stopped.
    pub endpoint: Option<String>,
    /// Only with a job that began at this time or later, in milliseconds.
    pub since_ms: Option<i64>,
    /// Only GitHub's run of this id.
    pub run_id: Option<u64>,
    /// Only this attempt.
    pub run_attempt: Option<u32>,
}

type RunRow = (i64, i64, i64, String, String, i64, i64, i64, i64, i64, i64);

const JOB_COLUMNS: &str = "SELECT key, id, context, cluster, host_id, policy, policy_version, scope, target, identity, job_workflow_ref, mode, \
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
    job_workflow_ref: Option<String>,
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

/// The query for runs, with something before it: `EXPLAIN`, or nothing.
macro_rules! runs_query {
    ($before:literal, $filter:expr, $limit:expr) => {{
        let filter: &RunFilter = $filter;
        let mut query = QueryBuilder::new(concat!(
            $before,
            "SELECT r.key, r.run_id, r.run_attempt, r.repository, r.workflow, r.started_ms, \
             COUNT(j.key), CAST(COALESCE(SUM(j.blocked), 0) AS BIGINT), CAST(COALESCE(SUM(j.would_block), 0) AS BIGINT), \
             CAST(COALESCE(SUM(j.detections), 0) AS BIGINT), \
             CAST(COALESCE(SUM(CASE WHEN j.ended_ms IS NULL THEN 1 ELSE 0 END), 0) AS BIGINT) \
             FROM (SELECT * FROM runs WHERE key < ",
        ));
        query.push_bind(filter.before.unwrap_or(i64::MAX));
        // A workflow's repository leads to its runs by an index.
        let of_workflow = filter.workflow.as_deref().and_then(repository_of);
        and_equal!(query, "repository", filter.repository.clone().or(of_workflow));
        and_equal!(query, "organization", filter.organization.clone());
        and_equal!(query, "workflow_path", filter.workflow.clone());
        and_equal!(query, "run_id", filter.run_id.map(signed));
        and_equal!(query, "run_attempt", filter.run_attempt.map(i64::from));
        if let Some(since_ms) = filter.since_ms {
            // The sum keeps PostgreSQL from looking for the smallest run in the order of runs, from the oldest on.
            query.push(" AND key >= (SELECT MIN(run + 0) FROM jobs WHERE started_ms >= ");
            query.push_bind(since_ms).push(")");
        }
        let by_job = filter.cluster.is_some()
            || filter.policy.is_some()
            || filter.endpoint.is_some()
            || filter.since_ms.is_some()
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
            if let Some(since_ms) = filter.since_ms {
                query.push(" AND jobs.started_ms >= ").push_bind(since_ms);
            }
            if let Some(endpoint) = &filter.endpoint {
                // Job by job in the table's own order: an index by endpoint would cost every batch of events.
                query.push(
                    " AND EXISTS (SELECT 1 FROM destinations WHERE destinations.job = jobs.key AND endpoint = ",
                );
                query.push_bind(endpoint.clone()).push(")");
            }
            query.push(")");
        }
        query.push(" ORDER BY key DESC LIMIT ").push_bind(i64::from($limit));
        query.push(
            ") r LEFT JOIN jobs j ON j.run = r.key GROUP BY r.key, r.run_id, r.run_attempt, r.repository, r.workflow, r.started_ms \
             ORDER BY r.key DESC",
        );
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
            let mut query = runs_query!("", filter, limit);
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

    /// How the database finds runs: its own words, for tests that reading stays as fast as it is.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn explain_runs(&self, filter: &RunFilter) -> Result<String, DatabaseError> {
        let limit = 50_u32;
        let lines: Vec<String> = match self {
            Self::Sqlite(database) => {
                let mut query = runs_query!("EXPLAIN QUERY PLAN ", filter, limit);
                let rows: Vec<(i64, i64, i64, String)> =
                    query.build_query_as().fetch_all(&database.readers).await?;
                rows.into_iter().map(|(.., line)| line).collect()
            }
            Self::Postgres(pool) => {
                let mut query = runs_query!("EXPLAIN ", filter, limit);
                let rows: Vec<(String,)> = query.build_query_as().fetch_all(pool).await?;
                rows.into_iter().map(|(line,)| line).collect()
            }
        };
        Ok(lines.join("\n"))
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
        job_workflow_ref: row.job_workflow_ref,
        events: unsigned(row.last_seq),
        allowed: unsigned(row.allowed),
        blocked: unsigned(row.blocked),
        would_block: unsigned(row.would_block),
        detections: unsigned(row.detections),
        report,
    })
}
