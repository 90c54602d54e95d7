//! A job from its binding to its end.
//!
//! [`registry`] binds one policy to one Worker, once. [`binding`] gathers what has to be known for that and remembers it
//! on disk ([`state`]); [`enforce`] puts it in force, for a new job and for one that is taken over after a restart;
//! [`run`] watches until the Worker exits; [`end`] kills what is left, counts, and takes the rules away, in that order.

pub mod binding;
pub mod end;
pub mod enforce;
pub mod grant_book;
pub mod host;
pub mod last_known_good;
pub mod observe;
pub mod policy_choice;
pub mod posture;
pub mod privileges;
pub mod registry;
pub mod run;
pub mod sink;
pub mod state;

use crate::caller::Worker;
use crate::cgroup::JobCgroup;
use crate::dns::Resolver;
use crate::egress::RuleSet;
use crate::nftables::InstalledTable;
use crate::record::recorder::Recorder;
use crate::record::summary::ReportHeader;
use crate::watch::attribution::ProcfsSensor;
use crate::watch::nflog::NflogReader;
use portcullis_common::event::{Feature, PolicyReference, Posture};
use portcullis_common::policy::EffectivePolicy;
use portcullis_common::report::{Report, markdown};
use portcullis_common::wire::{JobStatus, Started};
use sink::DnsSink;
use state::JobState;
use std::sync::{Arc, Mutex, PoisonError};

/// A job whose policy is in force.
#[derive(Debug)]
pub struct Job {
    /// What is known of it on disk, too.
    state: JobState,
    /// The policy with GitHub's own hosts, as it is enforced.
    enforced: EffectivePolicy,
    worker: Arc<Worker>,
    group: Option<JobCgroup>,
    rules: RuleSet,
    table: Arc<InstalledTable>,
    book: Arc<grant_book::GrantBook>,
    resolver: Mutex<Option<Resolver>>,
    dns_sink: Arc<DnsSink>,
    packets: Mutex<Option<NflogReader>>,
    recorder: Arc<Recorder>,
    sensor: Arc<ProcfsSensor>,
    /// What was measured when the job was bound and does not change while it runs.
    features: Vec<Feature>,
    /// Gaps found since.
    gaps: Mutex<Vec<String>>,
    applied_ms: f64,
}

impl Job {
    /// The job's id.
    pub fn id(&self) -> &str {
        &self.state.id
    }

    /// What is known of it on disk, too.
    pub fn state(&self) -> &JobState {
        &self.state
    }

    /// The posture now: the rules are read back for it.
    pub fn posture(&self) -> Posture {
        let rules = self.table.verify().map_err(|error| portcullis_common::hook::with_causes(&error));
        let mut warnings = self.state.warnings.clone();
        warnings.extend(self.gaps.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        posture::posture(posture::Measured {
            mode: self.enforced.egress,
            is_audit_fallback: self.state.is_audit_fallback,
            scope: self.state.scope,
            rules,
            features: self.features.clone(),
            warnings,
        })
    }

    /// Records a gap: something that was not in force, or not seen, for a while.
    pub fn note_gap(&self, gap: String) {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).push(gap.clone());
        self.recorder.posture(gap, self.posture());
    }

    /// What the started hook is told.
    pub fn started(&self) -> Started {
        let resolution = &self.state.resolution;
        Started {
            job_id: self.state.id.clone(),
            policy: resolution.policy.name.clone(),
            policy_version: resolution.policy.version.clone(),
            scope: resolution.scope,
            target: resolution.target.clone(),
            identity: resolution.identity,
            mode: resolution.policy.egress,
            endpoints: resolution.policy.allowed.len() as u64,
            posture: self.posture(),
            applied_ms: self.applied_ms,
        }
    }

    /// The report so far, and the same as Markdown.
    pub fn report(&self) -> (Report, String) {
        let report = self.recorder.report(&self.header(), self.posture());
        let text = markdown::markdown(&report);
        (report, text)
    }

    /// The job's line in `monitor status`.
    pub fn status(&self) -> JobStatus {
        let totals = self.recorder.totals();
        let grants = self.table.list_grants().map_or(0, |grants| grants.len() as u64);
        JobStatus {
            id: self.state.id.clone(),
            worker_pid: self.state.worker.pid,
            policy: self.state.resolution.policy.name.clone(),
            version: self.state.resolution.policy.version.clone(),
            scope: self.state.scope,
            mode: self.enforced.egress,
            posture: self.posture(),
            grants,
            events: totals.events,
            blocked: totals.blocked,
            detections: totals.detections,
        }
    }

    fn header(&self) -> ReportHeader {
        let resolution = &self.state.resolution;
        ReportHeader {
            job_id: self.state.id.clone(),
            policy: policy_reference(&self.state),
            target: resolution.target.clone(),
            identity: resolution.identity,
            mode: resolution.policy.egress,
            fail_on_block: resolution.policy.fail_on_block,
        }
    }
}

/// How events name the job's policy.
pub(crate) fn policy_reference(state: &JobState) -> PolicyReference {
    PolicyReference {
        name: state.resolution.policy.name.clone(),
        version: state.resolution.policy.version.clone(),
        scope: state.resolution.scope,
    }
}
