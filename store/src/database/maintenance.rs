//! What is removed when it is of no use any more.

use super::{Database, DatabaseError, transaction};
use sqlx::QueryBuilder;
use std::collections::{BTreeSet, HashSet};

/// Jobs that one transaction clears, so that uploads don't wait for long.
const JOBS_AT_ONCE: i64 = 20;

/// Jobs that one transaction takes out of their baselines: more would lock them in another order than uploads do.
const JOBS_FORGOTTEN_AT_ONCE: i64 = 1;

/// Takes what a job ($1) of a run ($2) called out of a baseline ($3), unless another job of the run called it, too. When an
/// endpoint was first seen stays what it was.
const FORGET: [&str; 2] = [
    "UPDATE baseline_endpoints SET calls = baseline_endpoints.calls - gone.calls, runs = baseline_endpoints.runs - gone.runs \
     FROM (SELECT d.endpoint AS endpoint, d.verdict AS verdict, CAST(SUM(d.calls) AS BIGINT) AS calls, \
       CASE WHEN EXISTS (SELECT 1 FROM job_baselines j JOIN destinations o ON o.job = j.job WHERE j.run = $2 AND j.job <> $1 \
         AND j.baseline = $3 AND o.endpoint = d.endpoint AND o.verdict = d.verdict) THEN 0 ELSE 1 END AS runs \
       FROM destinations d WHERE d.job = $1 GROUP BY d.endpoint, d.verdict) AS gone \
     WHERE baseline_endpoints.baseline = $3 AND baseline_endpoints.endpoint = gone.endpoint \
     AND baseline_endpoints.verdict = gone.verdict",
    "DELETE FROM baseline_endpoints WHERE baseline = $3 AND runs <= 0 \
     AND endpoint IN (SELECT endpoint FROM destinations WHERE job = $1 AND $2 = $2)",
];

/// Before which times what is removed, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Raw events of jobs that began before.
    pub events_before_ms: i64,
    /// Jobs that began before, with everything of them.
    pub jobs_before_ms: i64,
    /// Entries of the audit log.
    pub audit_before_ms: i64,
    /// Deliveries that were made or given up.
    pub deliveries_before_ms: i64,
    /// Whether only what the archive has may go.
    pub only_archived: bool,
}

/// What the archive has.
const ARCHIVED: &str = " AND archived_seq >= last_seq AND archived_record";

impl Database {
    /// Removes secrets that are over: enrolments, credentials that were replaced, OIDC tokens and sessions that
    /// expired by themselves.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn remove_expired(&self, now_ms: i64) -> Result<u64, DatabaseError> {
        transaction!(self, |transaction| {
            let mut removed = 0;
            for sql in [
                "DELETE FROM enrolments WHERE expires_ms <= $1 OR hosts_left <= 0",
                "DELETE FROM host_credentials WHERE expires_ms <= $1",
                // Kept for a week, so that a job whose upload was late is told which workflow it is of.
                "DELETE FROM used_id_tokens WHERE expires_ms <= $1 - 604800000",
                "DELETE FROM sessions WHERE expires_ms <= $1",
                // Written by an upload that did not know yet that the integration is gone.
                "DELETE FROM deliveries WHERE created_ms <= $1 AND NOT EXISTS \
                 (SELECT 1 FROM integrations WHERE integrations.id = deliveries.integration)",
            ] {
                let done = sqlx::query(sql).bind(now_ms).execute(&mut *transaction).await?;
                removed += done.rows_affected();
            }
            Ok(removed)
        })
    }

    /// Removes one portion of what is too old and says whether there may be more. Jobs that run are never too old.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn remove_old(&self, retention: &Retention) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let archived = if retention.only_archived { ARCHIVED } else { "" };
            let mut query = QueryBuilder::new(
                "SELECT j.key FROM jobs j WHERE j.ended_ms IS NOT NULL AND EXISTS (SELECT 1 FROM events e WHERE e.job = j.key)",
            );
            query.push(archived).push(" AND j.started_ms < ").push_bind(retention.events_before_ms);
            query.push(" ORDER BY j.key LIMIT ").push_bind(JOBS_AT_ONCE);
            let mut without_events: Vec<(i64,)> =
                query.build_query_as().fetch_all(&mut *transaction).await?;
            let mut query = QueryBuilder::new(
                "SELECT key, run, job_baseline, repository_baseline, organization_baseline, cluster_baseline FROM jobs WHERE ended_ms IS NOT NULL",
            );
            query.push(archived).push(" AND started_ms < ").push_bind(retention.jobs_before_ms);
            query.push(" ORDER BY key LIMIT ").push_bind(JOBS_FORGOTTEN_AT_ONCE);
            let mut gone: Vec<(i64, i64, i64, i64, i64, i64)> =
                query.build_query_as().fetch_all(&mut *transaction).await?;
            if retention.only_archived {
                // Held, so that nothing is uploaded between this look and the removal.
                let mut held = HashSet::new();
                let keys: BTreeSet<i64> = without_events
                    .iter()
                    .map(|(key,)| *key)
                    .chain(gone.iter().map(|row| row.0))
                    .collect();
                for key in keys {
                    let mut lock =
                        QueryBuilder::new("UPDATE jobs SET last_seq = last_seq WHERE key = ");
                    lock.push_bind(key).push(archived);
                    if lock.build().execute(&mut *transaction).await?.rows_affected() > 0 {
                        held.insert(key);
                    }
                }
                without_events.retain(|(key,)| held.contains(key));
                gone.retain(|row| held.contains(&row.0));
            }
            for (job,) in &without_events {
                sqlx::query("DELETE FROM events WHERE job = $1")
                    .bind(*job)
                    .execute(&mut *transaction)
                    .await?;
            }
            for (job, run, own, of_repository, of_organization, of_cluster) in &gone {
                let mut baselines = [*own, *of_repository, *of_organization, *of_cluster];
                // In the order in which uploads lock them.
                baselines.sort_unstable();
                for baseline in baselines {
                    for sql in FORGET {
                        sqlx::query(sql)
                            .bind(*job)
                            .bind(*run)
                            .bind(baseline)
                            .execute(&mut *transaction)
                            .await?;
                    }
                }
                for sql in [
                    "DELETE FROM events WHERE job = $1",
                    "DELETE FROM destinations WHERE job = $1",
                    "DELETE FROM detections WHERE job = $1",
                    "DELETE FROM jobs WHERE key = $1",
                ] {
                    sqlx::query(sql).bind(*job).execute(&mut *transaction).await?;
                }
                for baseline in baselines {
                    sqlx::query(
                        "DELETE FROM baseline_runs WHERE run = $1 AND baseline = $2 AND NOT EXISTS \
                         (SELECT 1 FROM job_baselines j WHERE j.run = $1 AND j.baseline = $2)",
                    )
                    .bind(*run)
                    .bind(baseline)
                    .execute(&mut *transaction)
                    .await?;
                }
                sqlx::query(
                    "DELETE FROM runs WHERE key = $1 AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.run = runs.key)",
                )
                .bind(*run)
                .execute(&mut *transaction)
                .await?;
            }
            sqlx::query("DELETE FROM audit_log WHERE time_ms < $1")
                .bind(retention.audit_before_ms)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("DELETE FROM deliveries WHERE created_ms < $1 AND state <> 'pending'")
                .bind(retention.deliveries_before_ms)
                .execute(&mut *transaction)
                .await?;
            Ok(!without_events.is_empty() || !gone.is_empty())
        })
    }
}
