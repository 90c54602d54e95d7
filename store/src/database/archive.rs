//! Which jobs the archive does not have yet.

use super::{Database, DatabaseError, signed, transaction};

/// A job that has ended and that the archive does not have whole.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct JobToArchive {
    /// Its key.
    pub key: i64,
    /// Its id.
    pub id: String,
    /// When it began.
    pub started_ms: i64,
    /// Events up to this number are archived.
    pub archived_seq: i64,
    /// The last event there is.
    pub last_seq: i64,
    /// The report, JSON, as it is to be archived.
    pub report: Option<String>,
}

impl Database {
    /// Takes jobs that are to be archived, until `lease_ms`: no other server gets them before.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn claim_jobs_to_archive(
        &self,
        (now_ms, lease_ms): (i64, i64),
        limit: u32,
    ) -> Result<Vec<JobToArchive>, DatabaseError> {
        Ok(transaction!(self, |transaction| {
            sqlx::query_as(
                "UPDATE jobs SET archive_lease_ms = $2 WHERE key IN (SELECT key FROM jobs WHERE ended_ms IS NOT NULL \
                 AND (archived_seq < last_seq OR NOT archived_record) AND archive_lease_ms <= $1 ORDER BY archive_lease_ms, key LIMIT $3) \
                 AND archive_lease_ms <= $1 RETURNING key, id, started_ms, archived_seq, last_seq, report",
            )
            .bind(now_ms)
            .bind(lease_ms)
            .bind(i64::from(limit))
            .fetch_all(&mut *transaction)
            .await?
        }))
    }

    /// Gives jobs back that were taken. The first one could not be archived: others come before it the next time, so that
    /// one that never can be keeps nobody waiting.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn release_jobs_to_archive(
        &self,
        keys: &[i64],
        now_ms: i64,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            for (index, key) in keys.iter().enumerate() {
                sqlx::query("UPDATE jobs SET archive_lease_ms = $2 WHERE key = $1")
                    .bind(*key)
                    .bind(if index == 0 { now_ms } else { 0 })
                    .execute(&mut *transaction)
                    .await?;
            }
        });
        Ok(())
    }

    /// Notes that the archive has a job's events up to a number.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn mark_events_archived(&self, job: i64, seq: u64) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            sqlx::query("UPDATE jobs SET archived_seq = $2 WHERE key = $1 AND archived_seq < $2")
                .bind(job)
                .bind(signed(seq))
                .execute(&mut *transaction)
                .await?;
        });
        Ok(())
    }

    /// Notes that the archive has a job's record, with this report, and lets others have the job.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn mark_record_archived(
        &self,
        job: i64,
        report: Option<&str>,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            // A report that came meanwhile is archived the next time.
            sqlx::query(
                "UPDATE jobs SET archived_record = COALESCE(report, '') = COALESCE(CAST($2 AS TEXT), ''), archive_lease_ms = 0 \
                 WHERE key = $1",
            )
            .bind(job)
            .bind(report)
            .execute(&mut *transaction)
            .await?;
        });
        Ok(())
    }
}
