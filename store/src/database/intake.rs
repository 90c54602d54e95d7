//! What runner hosts upload: jobs, events, reports. Each batch is one transaction, and a batch that came before changes nothing.

use super::detections::{
    NewDelivery, ToldJob, read_candidates, read_told_job, record_detections, told_verdict,
    write_deliveries,
};
use super::learning::{
    LearningJob, NEW_OUTBOUND_NETWORK_CALL, PER_STATEMENT, Thresholds, call_sums, learn,
};
use super::{Database, DatabaseError, NewDetection, signed, transaction, unsigned};
use crate::notify::Payload;
use portcullis_common::event::{Event, EventKind, Verdict};
use portcullis_common::report::endpoint;
use portcullis_common::store_api::{NewJob, ToldCall};
use sqlx::QueryBuilder;
use std::collections::{BTreeMap, BTreeSet};

/// Rows that one statement inserts: nine values each, well below the 32 766 parameters of SQLite.
const ROWS_PER_STATEMENT: usize = 1000;

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

/// An event that is to be stored, with the text that it came as.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    /// The event.
    pub event: Event,
    /// The line.
    pub line: &'a str,
}

/// What became of a batch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Intake {
    /// It is stored, or was before; every event up to this number is there.
    Stored {
        /// The last number.
        last_seq: u64,
        /// Events that were new.
        new: u64,
        /// Whether somebody is told of something in it.
        is_told: bool,
    },
    /// Events are missing before it; nothing was stored.
    Gap {
        /// The number that is expected next.
        expected: u64,
    },
    /// The host has no such job.
    NoJob,
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
    /// The report, JSON.
    pub report: String,
    /// Now.
    pub now_ms: i64,
}

/// The number that stands for a kind of event.
const fn kind_code(kind: &EventKind) -> i16 {
    match kind {
        EventKind::Network(_) => NETWORK,
        EventKind::Dns(_) => DNS,
        EventKind::Process(_) => 3,
        EventKind::File(_) => 4,
        EventKind::Detection(_) => 5,
        EventKind::Posture(_) => 6,
        EventKind::Job(_) => 7,
    }
}

/// The kind of calls.
pub(super) const NETWORK: i16 = 1;
/// The kind of queries.
pub(super) const DNS: i16 = 2;

/// The number that stands for a verdict.
pub const fn verdict_code(verdict: Verdict) -> i16 {
    match verdict {
        Verdict::Allowed => 0,
        Verdict::Blocked => 1,
        Verdict::WouldBlock => 2,
    }
}

/// What is looked for in events, beside the text.
struct Columns {
    kind: i16,
    verdict: Option<i16>,
    endpoint: Option<String>,
    process: Option<String>,
    step: Option<String>,
}

fn columns(event: &EventKind) -> Columns {
    let (verdict, endpoint, process) = match event {
        EventKind::Network(call) => {
            (Some(verdict_code(call.verdict)), Some(endpoint(call)), call.process.as_ref())
        }
        EventKind::Dns(query) => {
            (Some(verdict_code(query.verdict)), Some(query.name.clone()), query.process.as_ref())
        }
        EventKind::Process(exec) => (None, None, Some(&exec.process)),
        EventKind::File(file) => (None, None, file.process.as_ref()),
        EventKind::Detection(detection) => (None, None, detection.process.as_ref()),
        EventKind::Posture(_) | EventKind::Job(_) => (None, None, None),
    };
    Columns {
        kind: kind_code(event),
        verdict,
        endpoint,
        process: process.and_then(|process| process.exe.clone()),
        step: process.and_then(|process| process.step.clone()),
    }
}

/// What calls of a batch add up to.
#[derive(Debug)]
struct Sum {
    calls: i64,
    first_us: i64,
    last_us: i64,
    /// Where the name led to last; absent where the endpoint is the address itself.
    address: Option<String>,
}

/// The sums by endpoint, verdict and process.
type Sums = BTreeMap<(String, i16, String), Sum>;

fn sums(events: &[NewEvent<'_>]) -> Sums {
    let mut sums = Sums::new();
    for NewEvent { event, .. } in events {
        let EventKind::Network(call) = &event.kind else { continue };
        let process = call.process.as_ref().and_then(|process| process.exe.clone());
        let key = (endpoint(call), verdict_code(call.verdict), process.unwrap_or_default());
        let time = event.time.as_microsecond();
        let address = call.name.as_ref().map(|_| call.address.to_string());
        let sum = sums.entry(key).or_insert(Sum {
            calls: 0,
            first_us: time,
            last_us: time,
            address: None,
        });
        sum.calls = sum.calls.saturating_add(signed(call.packets));
        sum.first_us = sum.first_us.min(time);
        sum.last_us = sum.last_us.max(time);
        sum.address = address.or_else(|| sum.address.take());
    }
    sums
}

/// The calls of a batch that were stopped, or would have been, to where the job had not been kept from before.
fn new_calls(sums: &Sums, of_job: &BTreeSet<(String, i16)>) -> Vec<ToldCall> {
    sums.iter()
        .filter(|((endpoint, verdict, _), _)| !of_job.contains(&(endpoint.clone(), *verdict)))
        .filter_map(|((endpoint, verdict, process), sum)| {
            Some(ToldCall {
                endpoint: endpoint.clone(),
                verdict: told_verdict(*verdict)?,
                process: (!process.is_empty()).then(|| process.clone()),
                calls: unsigned(sum.calls),
            })
        })
        .collect()
}

/// The detections of a batch.
fn detections(job_id: &str, events: &[NewEvent<'_>]) -> Vec<NewDetection> {
    events
        .iter()
        .filter_map(|NewEvent { event, .. }| {
            let EventKind::Detection(detection) = &event.kind else { return None };
            Some(NewDetection {
                id: format!("{job_id}-{}", event.seq),
                seq: Some(signed(event.seq)),
                kind: word(&detection.detection),
                time_us: event.time.as_microsecond(),
                evidence: detection.evidence.clone(),
                is_lockdown: detection.is_lockdown,
                process: detection.process.clone(),
                endpoint: None,
            })
        })
        .collect()
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
            let inserted = sqlx::query(
                "INSERT INTO jobs (id, run, host_id, cluster, organization, repository, workflow_path, job_name, context, \
                 policy, policy_version, scope, target, identity, mode, started_ms, last_seq, allowed, blocked, would_block, detections, \
                 job_baseline, repository_baseline, organization_baseline, cluster_baseline) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 0, 0, 0, 0, 0, $17, $18, $19, $20) \
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

    /// Stores a batch of events, whose numbers are without gaps, and teaches the job's baselines. Events that are there already
    /// are left out.
    ///
    /// # Errors
    /// When the database can't be used; then nothing of it is stored.
    pub async fn store_events(
        &self,
        job_id: &str,
        host_id: &str,
        events: &[NewEvent<'_>],
        (thresholds, now_ms): (Thresholds, i64),
    ) -> Result<Intake, DatabaseError> {
        transaction!(self, |transaction| {
            // Counted up by nothing, this locks the row: batches of one job go one after the other.
            let row: Option<LearningJob> = sqlx::query_as(
                "UPDATE jobs SET last_seq = last_seq WHERE id = $1 AND host_id = $2 RETURNING key, last_seq, run, \
                 job_baseline, repository_baseline, organization_baseline, cluster_baseline, learned, told",
            )
            .bind(job_id)
            .bind(host_id)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(learning) = row else { return Ok(Intake::NoJob) };
            let job = learning.key;
            let last_seq = unsigned(learning.last_seq);
            let is_new = |new: &&NewEvent<'_>| new.event.seq > last_seq;
            let skipped = events.len() - events.iter().filter(is_new).count();
            let new = events.get(skipped..).unwrap_or_default();
            let Some(newest) = new.last() else {
                return Ok(Intake::Stored { last_seq, new: 0, is_told: false });
            };
            if new.first().is_some_and(|first| first.event.seq != last_seq + 1) {
                return Ok(Intake::Gap { expected: last_seq + 1 });
            }
            for rows in new.chunks(ROWS_PER_STATEMENT) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO events (job, seq, time_us, kind, verdict, endpoint, process, step, body) ",
                );
                insert.push_values(rows, |mut values, row| {
                    let columns = columns(&row.event.kind);
                    values
                        .push_bind(job)
                        .push_bind(signed(row.event.seq))
                        .push_bind(row.event.time.as_microsecond())
                        .push_bind(columns.kind)
                        .push_bind(columns.verdict)
                        .push_bind(columns.endpoint)
                        .push_bind(columns.process)
                        .push_bind(columns.step)
                        .push_bind(row.line.to_owned());
                });
                insert.build().execute(&mut *transaction).await?;
            }
            let sums = sums(new);
            let calls = call_sums(new.iter().map(|new| &new.event));
            let total = |verdict: Verdict| -> i64 {
                let code = verdict_code(verdict);
                calls.iter().filter(|((_, key), _)| *key == code).map(|(_, sum)| sum.count).sum()
            };
            let mut of_job: BTreeSet<(String, i16)> = BTreeSet::new();
            let endpoints: Vec<&(String, i16)> = calls.keys().collect();
            // Of the first batch all is new.
            for part in endpoints.chunks(PER_STATEMENT).filter(|_| last_seq > 0) {
                let mut query = QueryBuilder::new(
                    "SELECT DISTINCT endpoint, verdict FROM destinations WHERE job = ",
                );
                query.push_bind(job).push(" AND endpoint IN (");
                let mut list = query.separated(", ");
                for (endpoint, _) in part {
                    list.push_bind(endpoint.clone());
                }
                query.push(")");
                let known: Vec<(String, i16)> =
                    query.build_query_as().fetch_all(&mut *transaction).await?;
                of_job.extend(known);
            }
            let rows: Vec<_> = sums.iter().collect();
            for part in rows.chunks(PER_STATEMENT) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us, address) ",
                );
                insert.push_values(part, |mut values, ((endpoint, verdict, process), sum)| {
                    values
                        .push_bind(job)
                        .push_bind(endpoint.clone())
                        .push_bind(*verdict)
                        .push_bind(process.clone())
                        .push_bind(sum.calls)
                        .push_bind(sum.first_us)
                        .push_bind(sum.last_us)
                        .push_bind(sum.address.clone());
                });
                insert.push(
                    " ON CONFLICT (job, endpoint, verdict, process) DO UPDATE SET calls = destinations.calls + excluded.calls, \
                     first_us = CASE WHEN excluded.first_us < destinations.first_us THEN excluded.first_us ELSE destinations.first_us END, \
                     last_us = CASE WHEN excluded.last_us > destinations.last_us THEN excluded.last_us ELSE destinations.last_us END, \
                     address = COALESCE(excluded.address, destinations.address)",
                );
                insert.build().execute(&mut *transaction).await?;
            }
            let mut detections = detections(job_id, new);
            let mut learned = 0;
            if !calls.is_empty() {
                let (count, found) =
                    learn!(transaction, &learning, job_id, &calls, &of_job, thresholds);
                learned = count;
                detections.extend(found);
            }
            let told = detections.iter().filter(|found| found.kind == NEW_OUTBOUND_NETWORK_CALL);
            let told = i64::try_from(told.count()).unwrap_or(i64::MAX);
            let new_calls = new_calls(&sums, &of_job);
            // Last: rules and integrations are everybody's, and held until the commit.
            let mut is_told = record_detections!(transaction, job, &detections, now_ms);
            let candidates = read_candidates!(transaction);
            let is_asked = candidates.iter().any(|candidate| {
                candidate.takes_events() || !new_calls.is_empty() && candidate.wants_calls()
            });
            if is_asked {
                let told_job: ToldJob = read_told_job!(transaction, job);
                let mut deliveries = Vec::new();
                let time_us = newest.event.time.as_microsecond();
                if let Some(told) = told_job.calls(new_calls, newest.event.seq, time_us)? {
                    deliveries = NewDelivery::of(&candidates, &told)?;
                    if !deliveries.is_empty() {
                        sqlx::query("UPDATE jobs SET told_calls = told_calls + 1 WHERE key = $1")
                            .bind(job)
                            .execute(&mut *transaction)
                            .await?;
                    }
                }
                let batch = Payload::Events {
                    job_id: job_id.to_owned(),
                    first_seq: last_seq + 1,
                    last_seq: newest.event.seq,
                    time: newest.event.time,
                };
                for candidate in &candidates {
                    if candidate.takes_events_of(&told_job.place()) {
                        deliveries.push(NewDelivery::new(&candidate.id, &batch)?);
                    }
                }
                is_told |= !deliveries.is_empty();
                write_deliveries!(transaction, now_ms, &deliveries);
            }
            sqlx::query(
                "UPDATE jobs SET last_seq = $2, allowed = allowed + $3, blocked = blocked + $4, \
                 would_block = would_block + $5, detections = detections + $6, learned = learned + $7, told = told + $8 \
                 WHERE key = $1",
            )
            .bind(job)
            .bind(signed(newest.event.seq))
            .bind(total(Verdict::Allowed))
            .bind(total(Verdict::Blocked))
            .bind(total(Verdict::WouldBlock))
            .bind(i64::try_from(detections.len()).unwrap_or(i64::MAX))
            .bind(learned)
            .bind(told)
            .execute(&mut *transaction)
            .await?;
            Ok(Intake::Stored {
                last_seq: newest.event.seq,
                new: u64::try_from(new.len()).unwrap_or(u64::MAX),
                is_told,
            })
        })
    }

    /// Stores a job's report; says whether the host has such a job. A report that came before is replaced by the same.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn end_job(&self, end: &JobEnd<'_>) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let ended: Option<(i64, i64, i64, i64, i64)> = sqlx::query_as(
                "UPDATE jobs SET report = $3, posture = $4, ended_ms = COALESCE(ended_ms, $5), archived_record = FALSE WHERE id = $1 AND host_id = $2 \
                 RETURNING run, job_baseline, repository_baseline, organization_baseline, cluster_baseline",
            )
            .bind(end.id)
            .bind(end.host_id)
            .bind(end.report.as_str())
            .bind(end.posture)
            .bind(end.now_ms)
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

/// A value that serializes as one word, as that word.
pub(super) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
