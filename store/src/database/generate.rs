//! Jobs and events in great numbers, made by the database itself: for measuring, and for tests of what reads them.
//!
//! What is made has the form of what is uploaded: every event is one that the API answers, and jobs, destinations and
//! baselines are the sums of the events. Calls, of which there are millions, are made by the database itself; programs and
//! detections go the way of those that hosts upload.

mod record;

use super::learning::Thresholds;
use super::values::word;
use super::{Database, DatabaseError, Intake, NewEvent, transaction};
use jiff::Timestamp;
use portcullis_common::job_context::JobContext;
use uuid::Uuid;

/// How much is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Generated {
    /// Jobs, one for each run, on twenty hosts. Each has some programs, and each tenth a detection.
    pub jobs: u32,
    /// Calls of each job.
    pub events_of_job: u32,
    /// Repositories that the jobs are of, spread over ten organizations; a repository has three jobs.
    pub repositories: u32,
    /// Endpoints that each job calls in turn, the same for all jobs of a repository.
    pub endpoints_of_job: u32,
    /// When the last job begins, in milliseconds; each begins a minute before the next.
    pub newest_ms: i64,
}

/// Jobs that one transaction makes.
const JOBS_AT_ONCE: u32 = 100;

/// Different endpoints over all jobs.
const ENDPOINTS: i64 = 2000;

/// Runner hosts, spread over four clusters.
const HOSTS: u32 = 20;

/// For what is uploaded: programs teach baselines nothing.
const THRESHOLDS: Thresholds = Thresholds { min_runs: 5, window_runs: 10, max_changed_runs: 1 };

/// A job that was made, before what it executed.
struct Made {
    id: String,
    number: u32,
    started_ms: i64,
}

/// Calls: `$1` the job, `$2` how many, `$3` the job's id, `$4` the time of the first in seconds, `$5` the number of its
/// repository, `$6` endpoints. Each 50th is stopped.
macro_rules! events_sql {
    ($numbers:literal, $time:literal) => {
        concat!(
            $numbers,
            " INSERT INTO events (job, seq, time_us, kind, verdict, endpoint, process, step, body) \
              SELECT $1, n, ($4 + n / 50) * 1000000, 1, CASE WHEN n % 50 = 0 THEN 1 ELSE 0 END, \
              'host-' || h || '.generated.test:443', '/usr/bin/curl', 'build', \
              '{\"job_id\":\"' || $3 || '\",\"seq\":' || n || ',\"time\":\"' || ",
            $time,
            " || '.000000Z\",\"type\":\"network\",\"verdict\":\"' || CASE WHEN n % 50 = 0 THEN 'blocked' ELSE 'allowed' END || \
              '\",\"direction\":\"outbound\",\"protocol\":\"tcp\",\"address\":\"192.0.2.' || (h % 250) || \
              '\",\"port\":443,\"name\":\"host-' || h || '.generated.test\",\"packets\":1,\"process\":{\"pid\":' || (100 + n % 900) || \
              ',\"exe\":\"/usr/bin/curl\",\"argv\":[\"curl\",\"https://host-' || h || '.generated.test/\"],\"uid\":1001,\"step\":\"build\"},\
              \"rule\":\"*.generated.test:443\",\"policy\":{\"name\":\"generated\",\"version\":\"1\",\"scope\":\"organization\"}}' \
              FROM (SELECT n, ($5 * 7 + n % $6) % 2000 AS h FROM numbers) AS calls"
        )
    };
}

const SQLITE_EVENTS: &str = events_sql!(
    "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $2)",
    "strftime('%Y-%m-%dT%H:%M:%S', $4 + n / 50, 'unixepoch')"
);
const POSTGRES_EVENTS: &str = events_sql!(
    "WITH numbers (n) AS (SELECT generate_series(CAST(1 AS BIGINT), $2))",
    "to_char(to_timestamp($4 + n / 50) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')"
);

/// How the newest schema makes baselines of jobs that were there before it.
const MIGRATION: &str = include_str!("migrations/sqlite/0005_baselines.sql");

fn baselines_of_jobs() -> &'static str {
    MIGRATION
        .split_once("-- What jobs did before this version.")
        .and_then(|(_, rest)| rest.split_once("-- What is looked for"))
        .map_or("", |(statements, _)| statements)
}

impl Database {
    /// Makes runs, jobs, events and destinations beside what is there, and all baselines anew. `progress` is told how many
    /// jobs are done.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn generate(
        &self,
        wanted: Generated,
        mut progress: impl FnMut(u32),
    ) -> Result<(), DatabaseError> {
        let events_sql = match self {
            Self::Sqlite(_) => SQLITE_EVENTS,
            Self::Postgres(_) => POSTGRES_EVENTS,
        };
        let events = i64::from(wanted.events_of_job.max(1));
        let endpoints = i64::from(wanted.endpoints_of_job.clamp(1, 2000));
        transaction!(self, |transaction| {
            for number in 0..HOSTS {
                sqlx::query(
                    "INSERT INTO hosts (id, name, cluster, enrolled_ms, last_seen_ms, version) VALUES ($1, $1, $2, $3, $3, $4) \
                     ON CONFLICT (id) DO NOTHING",
                )
                .bind(host(number))
                .bind(cluster(number))
                .bind(wanted.newest_ms)
                .bind(env!("CARGO_PKG_VERSION"))
                .execute(&mut *transaction)
                .await?;
            }
        });
        let mut made = Vec::new();
        let mut done = 0;
        while done < wanted.jobs {
            let portion = JOBS_AT_ONCE.min(wanted.jobs - done);
            transaction!(self, |transaction| {
                for number in done..done + portion {
                    let repository_number = number % wanted.repositories.max(1);
                    let organization = format!("org-{}", repository_number % 10);
                    let repository = format!("{organization}/generated-{repository_number}");
                    let path = format!("{repository}/.github/workflows/ci.yml");
                    let started_ms =
                        wanted.newest_ms - i64::from(wanted.jobs - 1 - number) * 60_000;
                    let job_name = ["build", "test", "release"]
                        .get(usize::try_from(number / wanted.repositories.max(1) % 3).unwrap_or(0))
                        .copied()
                        .unwrap_or("build");
                    let (run, run_id): (i64, i64) = sqlx::query_as(
                        "INSERT INTO runs (run_id, run_attempt, repository, organization, workflow, workflow_path, started_ms) \
                         VALUES ((SELECT COALESCE(MAX(key), 0) + 1000000 FROM runs), 1, $1, $2, 'CI', $3, $4) RETURNING key, run_id",
                    )
                    .bind(repository.as_str())
                    .bind(organization.as_str())
                    .bind(path.as_str())
                    .bind(started_ms)
                    .fetch_one(&mut *transaction)
                    .await?;
                    let context = JobContext {
                        repository: repository.clone(),
                        repository_owner: organization.clone(),
                        workflow_ref: format!("{path}@refs/heads/main"),
                        workflow: "CI".to_owned(),
                        job: job_name.to_owned(),
                        run_id: super::unsigned(run_id),
                        run_attempt: 1,
                        server_url: "https://github.com".to_owned(),
                        runner_name: format!("runner-{}", number % 20),
                        ..JobContext::default()
                    };
                    let context = json(&context)?;
                    let posture = record::posture(number % HOSTS);
                    let id = Uuid::now_v7().simple().to_string();
                    let blocked = events / 50;
                    let (job,): (i64,) = sqlx::query_as(
                        "INSERT INTO jobs (id, run, host_id, cluster, organization, repository, workflow_path, job_name, context, \
                         policy, policy_version, scope, target, identity, mode, started_ms, ended_ms, last_seq, allowed, blocked, \
                         would_block, detections, posture, report) \
                         VALUES ($1, $2, $13, $3, $4, $5, $6, $7, $8, 'generated', '1', 'organization', $4, 'asserted', 'block', \
                         $9, $9 + 50000, $10, $11, $12, 0, 0, $14, $15) RETURNING key",
                    )
                    .bind(id.as_str())
                    .bind(run)
                    .bind(cluster(number))
                    .bind(organization.as_str())
                    .bind(repository.as_str())
                    .bind(path.as_str())
                    .bind(job_name)
                    .bind(context)
                    .bind(started_ms)
                    .bind(events)
                    .bind(events - blocked)
                    .bind(blocked)
                    .bind(host(number))
                    .bind(word(&posture.level))
                    .bind(json(&record::report(&id, &organization, posture, (events - blocked, blocked)))?)
                    .fetch_one(&mut *transaction)
                    .await?;
                    sqlx::query(events_sql)
                        .bind(job)
                        .bind(events)
                        .bind(id.as_str())
                        .bind(started_ms / 1000)
                        .bind(i64::from(repository_number) % ENDPOINTS)
                        .bind(endpoints)
                        .execute(&mut *transaction)
                        .await?;
                    sqlx::query(
                        "INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us) \
                         SELECT job, endpoint, verdict, process, COUNT(*), MIN(time_us), MAX(time_us) FROM events \
                         WHERE job = $1 GROUP BY job, endpoint, verdict, process",
                    )
                    .bind(job)
                    .execute(&mut *transaction)
                    .await?;
                    made.push(Made { id, number, started_ms });
                }
            });
            done += portion;
            progress(done);
        }
        transaction!(self, |transaction| {
            for sql in [
                "DELETE FROM baseline_runs",
                "DELETE FROM baseline_endpoints",
                "DELETE FROM baselines",
                baselines_of_jobs(),
            ] {
                sqlx::raw_sql(sql).execute(&mut *transaction).await?;
            }
        });
        for job in made {
            self.upload(&job, super::unsigned(events)).await?;
        }
        Ok(())
    }

    /// What a job executed and what was detected in it, behind its calls.
    async fn upload(&self, job: &Made, last_seq: u64) -> Result<(), DatabaseError> {
        let started_at = Timestamp::from_millisecond(job.started_ms)
            .map_err(|error| DatabaseError::Corrupt(error.to_string()))?;
        let events = record::events(&job.id, job.number, started_at, last_seq);
        let lines = events.iter().map(json).collect::<Result<Vec<_>, _>>()?;
        let batch: Vec<NewEvent<'_>> =
            events.into_iter().zip(&lines).map(|(event, line)| NewEvent { event, line }).collect();
        match self
            .store_events(&job.id, &host(job.number), &batch, (THRESHOLDS, job.started_ms))
            .await?
        {
            Intake::Stored { .. } => Ok(()),
            refused => {
                Err(DatabaseError::Corrupt(format!("a made job is not as made: {refused:?}")))
            }
        }
    }
}

fn host(number: u32) -> String {
    format!("generated-{}", number % HOSTS)
}

fn cluster(number: u32) -> String {
    format!("cluster-{}", number % 4)
}

fn json(value: &impl serde::Serialize) -> Result<String, DatabaseError> {
    serde_json::to_string(value).map_err(|error| DatabaseError::Corrupt(error.to_string()))
}
