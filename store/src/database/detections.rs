//! Storing detections: each is judged by the suppression rules, and told to the integrations that ask for it, in the
//! transaction that stores it.

use super::{Database, DatabaseError, NewAuditEntry, transaction};
use crate::notify::{Candidate, Payload};
use crate::suppression::{Facts, Place, Rule};
use portcullis_common::event::{Ancestor, PolicyReference, Process, Verdict};
use portcullis_common::policy::Attachment;
use portcullis_common::resolution::ScopeKind;
use portcullis_common::store_api::{Notification, NotificationKind, ToldCall};
use uuid::Uuid;

/// Calls that one notification lists.
const MAX_TOLD_CALLS: usize = 50;

/// Notifications of calls about one job; a job that is kept from ever new destinations must not flood people.
const MAX_TOLD_TIMES: i64 = 20;

/// Detections that are told about one job. A monitor records at most 500 of each type; beyond this it is no monitor that
/// uploads.
pub(super) const MAX_TOLD_DETECTIONS: i64 = 10_000;

/// The longest text of a process or an endpoint that is told, in bytes.
const MAX_TOLD_TEXT_BYTES: usize = 1000;

/// The longest evidence in bytes that is told; all of it stands in the store.
const MAX_EVIDENCE_BYTES: usize = 4000;

/// A detection that is to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDetection {
    /// Its id.
    pub id: String,
    /// The event's number in the job; absent for what the store found by itself.
    pub seq: Option<i64>,
    /// The type: `Reverse-Shell`.
    pub kind: String,
    /// When, in microseconds.
    pub time_us: i64,
    /// What was seen.
    pub evidence: String,
    /// Whether the job was killed for it.
    pub is_lockdown: bool,
    /// Who did it.
    pub process: Option<Process>,
    /// The endpoint, when it is about one.
    pub endpoint: Option<String>,
}

impl NewDetection {
    /// The executable.
    pub(super) fn executable(&self) -> Option<&str> {
        self.process.as_ref().and_then(|process| process.exe.as_deref())
    }
}

/// What a notification says of a job.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(super) struct ToldJob {
    pub(super) id: String,
    pub(super) cluster: String,
    pub(super) organization: String,
    pub(super) repository: String,
    pub(super) workflow_path: String,
    pub(super) job_name: String,
    pub(super) policy: String,
    pub(super) policy_version: String,
    pub(super) scope: String,
    pub(super) run_id: i64,
    pub(super) run_attempt: i64,
    pub(super) told_calls: i64,
    /// Detections before those that are stored now.
    pub(super) detections: i64,
}

pub(super) const TOLD_JOB: &str = "SELECT j.id, j.cluster, j.organization, j.repository, j.workflow_path, j.job_name, j.policy, \
    j.policy_version, j.scope, r.run_id, r.run_attempt, j.told_calls, j.detections FROM jobs j JOIN runs r ON r.key = j.run WHERE j.key = $1";

pub(super) const RULES: &str = "SELECT id, kind, scope, target, endpoint, process FROM suppressions WHERE expires_ms IS NULL OR expires_ms > $1";

pub(super) const CANDIDATES: &str =
    "SELECT id, settings, selection FROM integrations WHERE enabled ORDER BY id";

pub(super) type RuleRow =
    (String, String, Option<String>, Option<String>, Option<String>, Option<String>);

/// The rule of a row.
pub(super) fn rule(row: RuleRow) -> Result<Rule, DatabaseError> {
    let (id, kind, scope, target, endpoint, process) = row;
    let scope = scope_of(scope.as_deref(), target.as_deref())?;
    Ok(Rule { id, kind, scope, endpoint, process })
}

/// The target of a row.
pub(super) fn scope_of(
    scope: Option<&str>,
    target: Option<&str>,
) -> Result<Option<Attachment>, DatabaseError> {
    let (Some(scope), Some(target)) = (scope, target) else { return Ok(None) };
    let kind = match scope {
        "cluster" => ScopeKind::Cluster,
        "organization" => ScopeKind::Organization,
        "repository" => ScopeKind::Repository,
        "workflow" => ScopeKind::Workflow,
        other => return Err(DatabaseError::Corrupt(format!("the kind of target {other:?}"))),
    };
    Attachment::new(kind, target)
        .map(Some)
        .map_err(|error| DatabaseError::Corrupt(error.to_string()))
}

/// The integrations of rows.
pub(super) fn candidates(
    rows: Vec<(String, String, String)>,
) -> Result<Vec<Candidate>, DatabaseError> {
    rows.into_iter()
        .map(|(id, settings, selection)| {
            let corrupt = |_| DatabaseError::Corrupt(format!("integration {id}"));
            let selection = serde_json::from_str(&selection).map_err(corrupt)?;
            let settings: crate::notify::Settings =
                serde_json::from_str(&settings).map_err(corrupt)?;
            let takes_events = settings.takes_events();
            Ok(Candidate { id, selection, takes_events })
        })
        .collect()
}

impl ToldJob {
    pub(super) fn place(&self) -> Place<'_> {
        Place {
            cluster: &self.cluster,
            organization: &self.organization,
            repository: &self.repository,
            workflow: &self.workflow_path,
        }
    }

    fn notification(
        &self,
        kind: NotificationKind,
        id: String,
        time_us: i64,
    ) -> Result<Notification, DatabaseError> {
        let scope = serde_json::from_value(serde_json::Value::String(self.scope.clone()))
            .map_err(|_| DatabaseError::Corrupt(format!("the scope {:?}", self.scope)))?;
        let time = jiff::Timestamp::from_microsecond(time_us)
            .map_err(|error| DatabaseError::Corrupt(error.to_string()))?;
        Ok(Notification {
            id,
            kind,
            time,
            detection: None,
            evidence: None,
            is_lockdown: false,
            endpoint: None,
            process: None,
            calls: Vec::new(),
            more_calls: 0,
            policy: PolicyReference {
                name: self.policy.clone(),
                version: self.policy_version.clone(),
                scope,
            },
            cluster: self.cluster.clone(),
            organization: self.organization.clone(),
            repository: self.repository.clone(),
            workflow: self.workflow_path.clone(),
            run_id: super::unsigned(self.run_id),
            run_attempt: u32::try_from(self.run_attempt).unwrap_or(1),
            job: self.job_name.clone(),
            job_id: self.id.clone(),
            link: String::new(),
        })
    }

    /// What is told of a detection.
    pub(super) fn detection(&self, new: &NewDetection) -> Result<Notification, DatabaseError> {
        let mut told =
            self.notification(NotificationKind::Detection, new.id.clone(), new.time_us)?;
        told.detection = Some(new.kind.clone());
        told.evidence = Some(cut(&new.evidence, MAX_EVIDENCE_BYTES).to_owned());
        told.is_lockdown = new.is_lockdown;
        told.endpoint =
            new.endpoint.as_deref().map(|text| cut(text, MAX_TOLD_TEXT_BYTES).to_owned());
        told.process = new.process.as_ref().map(told_process);
        Ok(told)
    }

    /// What is told of calls that are new for the job; `None` when enough was told of it.
    pub(super) fn calls(
        &self,
        mut calls: Vec<ToldCall>,
        seq: u64,
        time_us: i64,
    ) -> Result<Option<Notification>, DatabaseError> {
        if calls.is_empty() || self.told_calls >= MAX_TOLD_TIMES {
            return Ok(None);
        }
        let id = format!("{}-calls-{seq}", self.id);
        let mut told = self.notification(NotificationKind::Calls, id, time_us)?;
        told.more_calls =
            u64::try_from(calls.len().saturating_sub(MAX_TOLD_CALLS)).unwrap_or(u64::MAX);
        calls.truncate(MAX_TOLD_CALLS);
        for call in &mut calls {
            call.endpoint = cut(&call.endpoint, MAX_TOLD_TEXT_BYTES).to_owned();
            call.process =
                call.process.as_deref().map(|text| cut(text, MAX_TOLD_TEXT_BYTES).to_owned());
        }
        told.calls = calls;
        Ok(Some(told))
    }
}

/// A process as it is told: each integration gets a copy, so it is bounded.
fn told_process(process: &Process) -> Process {
    let text = |text: &String| cut(text, MAX_TOLD_TEXT_BYTES).to_owned();
    let mut left = MAX_EVIDENCE_BYTES;
    let mut argv = Vec::new();
    for argument in process.argv.iter().take(100) {
        let kept = cut(argument, left);
        left -= kept.len();
        argv.push(kept.to_owned());
        if left == 0 {
            break;
        }
    }
    Process {
        exe: process.exe.as_ref().map(text),
        argv,
        cwd: process.cwd.as_ref().map(text),
        step: process.step.as_ref().map(text),
        ancestors: process
            .ancestors
            .iter()
            .take(20)
            .map(|ancestor| Ancestor { pid: ancestor.pid, exe: text(&ancestor.exe) })
            .collect(),
        ..*process
    }
}

/// The beginning of a text, at most this long, on whole characters.
fn cut(text: &str, max_bytes: usize) -> &str {
    let mut end = max_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// A row of the outbox.
#[derive(Clone, Debug)]
pub(super) struct NewDelivery {
    pub(super) id: String,
    pub(super) integration: String,
    pub(super) kind: &'static str,
    pub(super) payload: String,
}

impl NewDelivery {
    pub(super) fn new(integration: &str, payload: &Payload) -> Result<Self, DatabaseError> {
        Ok(Self {
            id: Uuid::now_v7().simple().to_string(),
            integration: integration.to_owned(),
            kind: payload.kind(),
            payload: serde_json::to_string(payload)
                .map_err(|error| DatabaseError::Corrupt(error.to_string()))?,
        })
    }

    /// A notification for each integration that asks for it.
    pub(super) fn of(
        candidates: &[Candidate],
        notification: &Notification,
    ) -> Result<Vec<Self>, DatabaseError> {
        candidates
            .iter()
            .filter_map(|candidate| Some((candidate, candidate.told(notification)?)))
            .map(|(candidate, told)| {
                Self::new(&candidate.id, &Payload::Notification(Box::new(told)))
            })
            .collect()
    }
}

/// The first rule that suppresses a detection of the job.
pub(super) fn suppressed_by<'a>(
    rules: &'a [Rule],
    job: &ToldJob,
    new: &NewDetection,
) -> Option<&'a str> {
    let facts = Facts {
        kind: &new.kind,
        place: job.place(),
        endpoint: new.endpoint.as_deref(),
        process: new.executable(),
    };
    rules.iter().find(|rule| rule.matches(&facts)).map(|rule| rule.id.as_str())
}

/// Writes rows of the outbox within the transaction of what they tell.
macro_rules! write_deliveries {
    ($transaction:expr, $now_ms:expr, $deliveries:expr) => {
        for delivery in $deliveries {
            sqlx::query(
                "INSERT INTO deliveries (id, integration, kind, payload, state, created_ms, due_ms, lease_ms, attempts) \
                 VALUES ($1, $2, $3, $4, 'pending', $5, $5, 0, 0)",
            )
            .bind(delivery.id.as_str())
            .bind(delivery.integration.as_str())
            .bind(delivery.kind)
            .bind(delivery.payload.as_str())
            .bind($now_ms)
            .execute(&mut *$transaction)
            .await?;
        }
    };
}

/// The integrations that are told anything, read within a transaction.
macro_rules! read_candidates {
    ($transaction:expr) => {
        $crate::database::detections::candidates(
            sqlx::query_as($crate::database::detections::CANDIDATES)
                .fetch_all(&mut *$transaction)
                .await?,
        )?
    };
}

/// What notifications say of a job, read within a transaction.
macro_rules! read_told_job {
    ($transaction:expr, $job:expr) => {{
        let told: $crate::database::detections::ToldJob =
            sqlx::query_as($crate::database::detections::TOLD_JOB)
                .bind($job)
                .fetch_one(&mut *$transaction)
                .await?;
        told
    }};
}

/// Held while a rule changes and while detections are stored.
macro_rules! lock_suppressions {
    ($transaction:expr) => {
        sqlx::query("UPDATE settings SET value = value WHERE name = 'suppressions-lock'")
            .execute(&mut *$transaction)
            .await?
    };
}

/// Stores detections of the job of a key, suppressed where a rule says so, else told; says whether anybody is told. Those
/// that are there already (by their id) are left out. `jobs.detections` is the caller's to count.
macro_rules! record_detections {
    ($transaction:expr, $job:expr, $detections:expr, $now_ms:expr) => {{
        let (job, now_ms): (i64, i64) = ($job, $now_ms);
        let mut is_told = false;
        if !$detections.is_empty() {
            $crate::database::detections::lock_suppressions!($transaction);
            let told_job = $crate::database::detections::read_told_job!($transaction, job);
            let rows: Vec<$crate::database::detections::RuleRow> =
                sqlx::query_as($crate::database::detections::RULES)
                    .bind(now_ms)
                    .fetch_all(&mut *$transaction)
                    .await?;
            let rules = rows
                .into_iter()
                .map($crate::database::detections::rule)
                .collect::<Result<Vec<_>, _>>()?;
            let candidates = $crate::database::detections::read_candidates!($transaction);
            let mut count = told_job.detections;
            for new in $detections {
                let new: &$crate::database::NewDetection = new;
                count += 1;
                let rule = $crate::database::detections::suppressed_by(&rules, &told_job, new);
                let inserted = sqlx::query(
                    "INSERT INTO detections (id, job, seq, kind, time_us, evidence, is_lockdown, process, endpoint, suppressed_by) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING",
                )
                .bind(new.id.as_str())
                .bind(job)
                .bind(new.seq)
                .bind(new.kind.as_str())
                .bind(new.time_us)
                .bind(new.evidence.as_str())
                .bind(new.is_lockdown)
                .bind(new.executable())
                .bind(new.endpoint.as_deref())
                .bind(rule)
                .execute(&mut *$transaction)
                .await?
                .rows_affected();
                let is_flood = count > $crate::database::detections::MAX_TOLD_DETECTIONS;
                if inserted == 0 || rule.is_some() || is_flood {
                    continue;
                }
                let deliveries = $crate::database::detections::NewDelivery::of(
                    &candidates,
                    &told_job.detection(new)?,
                )?;
                is_told |= !deliveries.is_empty();
                $crate::database::detections::write_deliveries!($transaction, now_ms, &deliveries);
            }
        }
        is_told
    }};
}

pub(super) use {
    lock_suppressions, read_candidates, read_told_job, record_detections, write_deliveries,
};

/// The number of a verdict that is told of.
pub(super) fn told_verdict(code: i16) -> Option<Verdict> {
    super::verdict_name(code).filter(|verdict| *verdict != Verdict::Allowed)
}

/// A state that a person gives a detection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DetectionState {
    /// Resolved, or new again.
    pub is_resolved: bool,
    /// What was done about it.
    pub comment: Option<String>,
    /// Who says so.
    pub actor: String,
    /// Now, in milliseconds.
    pub now_ms: i64,
}

impl Database {
    /// Resolves a detection or opens it again; says whether there is such a one.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn set_detection_state(
        &self,
        id: &str,
        state: &DetectionState,
        audit: &NewAuditEntry,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let done = sqlx::query(
                "UPDATE detections SET resolved_ms = $2, resolved_by = $3, resolution = $4 WHERE id = $1",
            )
            .bind(id)
            .bind(state.is_resolved.then_some(state.now_ms))
            .bind(state.is_resolved.then_some(state.actor.as_str()))
            .bind(state.comment.as_deref())
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if done == 0 {
                return Ok(false);
            }
            super::audit::write_audit!(transaction, [audit]);
            Ok(true)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{cut, told_process};
    use portcullis_common::event::Process;

    #[test]
    fn what_is_told_is_bounded() {
        assert_eq!(cut("aä", 2), "a", "whole characters only");
        let long = "ä".repeat(100_000);
        let process = Process {
            exe: Some(long.clone()),
            argv: vec![long.clone(); 1000],
            cwd: Some(long.clone()),
            pid: Some(7),
            ..Process::default()
        };
        let told = told_process(&process);
        assert!(serde_json::to_string(&told).unwrap().len() < 10_000);
        assert_eq!(told.pid, Some(7));
        let short = Process { argv: vec!["a".to_owned(), "b".to_owned()], ..Process::default() };
        assert_eq!(told_process(&short), short);
    }
}
