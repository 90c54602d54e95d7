//! Where a job begins and ends, as its host says.

use super::identity::job_of_token;
use super::values::word;
use super::{Database, DatabaseError, signed, transaction, unsigned};
use portcullis_common::resolution::Identity;
use portcullis_common::store_api::NewJob;

/// A job that begins, with what the store knows of its host.
#[derive(Clone, Debug)]
pub struct JobStart<'a> {
    /// What the host says.
    pub job: &'a NewJob,
    /// The host.
    pub host_id: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
    /// The context, JSON.
    pub context: String,
}

/// What a job's end says.
#[derive(Clone, Debug)]
pub struct JobEnd<'a> {
    /// The job.
    pub id: &'a str,
    /// The host that says so.
    pub host_id: &'a str,
    /// The posture, as the report has it.
    pub posture: &'a str,
    /// What of the posture is less than it should be, in few words.
    pub posture_reason: Option<String>,
    /// The report, JSON.
    pub report: String,
    /// Now.
    pub now_ms: i64,
}

impl Database {
    /// Notes that a job began and returns the number of its last event. A job that is known stays as it is; `None` when it is
    /// another host's.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn start_job(&self, start: &JobStart<'_>) -> Result<Option<u64>, DatabaseError> {
        let job = start.job;
        let context = &job.context;
        let repository = context.repository.to_ascii_lowercase();
        let organization = repository.split('/').next().unwrap_or_default().to_owned();
        let path = context.workflow_path();
        let started_ms = job.started_at.as_millisecond();
        transaction!(self, |transaction| {
            let (run,): (i64,) = sqlx::query_as(
                "INSERT INTO runs (run_id, run_attempt, repository, organization, workflow, workflow_path, started_ms) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT (repository, run_id, run_attempt) DO UPDATE SET started_ms = \
                 CASE WHEN excluded.started_ms < runs.started_ms THEN excluded.started_ms ELSE runs.started_ms END \
                 RETURNING key",
            )
            .bind(signed(context.run_id))
            .bind(i64::from(context.run_attempt))
            .bind(repository.as_str())
            .bind(organization.as_str())
            .bind(context.workflow.as_str())
            .bind(path)
            .bind(started_ms)
            .fetch_one(&mut *transaction)
            .await?;
            let mut baselines = [0_i64; 4];
            let of_job = [
                (1_i16, "", organization.as_str(), repository.as_str(), path, context.job.as_str()),
                (2, "", organization.as_str(), repository.as_str(), "", ""),
                (3, "", organization.as_str(), "", "", ""),
                (4, start.cluster, "", "", "", ""),
            ];
            for (baseline, (source, cluster, organization, repository, path, name)) in
                baselines.iter_mut().zip(of_job)
            {
                // Updated by nothing, so that it is returned whether it is new or not.
                (*baseline,) = sqlx::query_as(
                    "INSERT INTO baselines (source, cluster, organization, repository, workflow_path, job_name) \
                     VALUES ($1, $2, $3, $4, $5, $6) \
                     ON CONFLICT (source, cluster, organization, repository, workflow_path, job_name) \
                     DO UPDATE SET source = excluded.source RETURNING key",
                )
                .bind(source)
                .bind(cluster)
                .bind(organization)
                .bind(repository)
                .bind(path)
                .bind(name)
                .fetch_one(&mut *transaction)
                .await?;
            }
            // What its token said, which the job presented when its policy was resolved.
            let workflow: Option<(Option<String>,)> = match job.identity {
                Identity::Asserted => None,
                Identity::Verified => {
                    sqlx::query_as(
                        "SELECT job_workflow_ref FROM used_id_tokens WHERE job = $1 ORDER BY expires_ms DESC LIMIT 1",
                    )
                    .bind(job_of_token(context))
                    .fetch_optional(&mut *transaction)
                    .await?
                }
            };
            let inserted = sqlx::query(
                "INSERT INTO jobs (id, run, host_id, cluster, organization, repository, workflow_path, job_name, context, \
                 policy, policy_version, scope, target, identity, mode, started_ms, last_seq, allowed, blocked, would_block, detections, \
                 job_baseline, repository_baseline, organization_baseline, cluster_baseline, job_workflow_ref) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 0, 0, 0, 0, 0, $17, $18, $19, $20, $21) \
                 ON CONFLICT (id) DO NOTHING",
            )
            .bind(job.id.as_str())
            .bind(run)
            .bind(start.host_id)
            .bind(start.cluster)
            .bind(organization.as_str())
            .bind(repository.as_str())
            .bind(path)
            .bind(context.job.as_str())
            .bind(start.context.as_str())
            .bind(job.policy.name.as_str())
            .bind(job.policy.version.as_str())
            .bind(job.policy.scope.to_string())
            .bind(job.target.as_str())
            .bind(word(&job.identity))
            .bind(word(&job.mode))
            .bind(started_ms)
            .bind(baselines[0])
            .bind(baselines[1])
            .bind(baselines[2])
            .bind(baselines[3])
            .bind(workflow.and_then(|(workflow,)| workflow))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            baselines.sort_unstable();
            for baseline in baselines.iter().filter(|_| inserted > 0) {
                sqlx::query(
                    "INSERT INTO baseline_runs (baseline, run, added) VALUES ($1, $2, 0) ON CONFLICT (baseline, run) DO NOTHING",
                )
                .bind(*baseline)
                .bind(run)
                .execute(&mut *transaction)
                .await?;
            }
            let (last_seq, owner): (i64, String) =
                sqlx::query_as("SELECT last_seq, host_id FROM jobs WHERE id = $1")
                    .bind(job.id.as_str())
                    .fetch_one(&mut *transaction)
                    .await?;
            if owner != start.host_id {
                // Rolled back: a run that nobody has a job of is not kept either.
                return Ok(None);
            }
            Ok(Some(unsigned(last_seq)))
        })
    }

    /// Stores a job's report; says whether the host has such a job. A report that came before is replaced by the same.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn end_job(&self, end: &JobEnd<'_>) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let ended: Option<(i64, i64, i64, i64, i64)> = sqlx::query_as(
                "UPDATE jobs SET report = $3, posture = $4, posture_reason = $6, ended_ms = COALESCE(ended_ms, $5), archived_record = FALSE WHERE id = $1 AND host_id = $2 \
                 RETURNING run, job_baseline, repository_baseline, organization_baseline, cluster_baseline",
            )
            .bind(end.id)
            .bind(end.host_id)
            .bind(end.report.as_str())
            .bind(end.posture)
            .bind(end.now_ms)
            .bind(end.posture_reason.as_deref())
            .fetch_optional(&mut *transaction)
            .await?;
            let Some((run, own, of_repository, of_organization, of_cluster)) = ended else {
                return Ok(false);
            };
            let mut baselines = [own, of_repository, of_organization, of_cluster];
            // In the order in which batches of other jobs of the run lock them.
            baselines.sort_unstable();
            for baseline in baselines {
                sqlx::query(
                    "UPDATE baseline_runs SET ended_ms = $3 WHERE baseline = $1 AND run = $2 AND ended_ms IS NULL",
                )
                .bind(baseline)
                .bind(run)
                .bind(end.now_ms)
                .execute(&mut *transaction)
                .await?;
            }
            Ok(true)
        })
    }
}
