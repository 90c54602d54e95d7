//! Reading detections.

use super::audit::time_of;
use super::values::{and_equal, microseconds};
use super::{Database, DatabaseError, read, signed, unsigned};
use portcullis_common::store_api::DetectionRecord;
use sqlx::QueryBuilder;

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
    /// Only of this time or later, in microseconds.
    pub since_us: Option<i64>,
    /// Only the one of this id.
    pub id: Option<String>,
    /// Only the one of this key.
    pub key: Option<i64>,
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

impl Database {
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
            if let Some(since_us) = filter.since_us {
                query.push(" AND d.time_us >= ").push_bind(since_us);
                // What is older than all of it is not looked at. The sum keeps PostgreSQL from looking for the smallest key in
                // the order of keys, from the oldest on.
                query.push(" AND d.key >= (SELECT MIN(key + 0) FROM detections WHERE time_us >= ");
                query.push_bind(since_us).push(")");
            }
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
}
