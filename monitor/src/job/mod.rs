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

use crate::caller::{ProcFs, Worker};
use crate::cgroup::JobCgroup;
use crate::dns::Resolver;
use crate::egress::{EnforcementTarget, PlanError, RuleSet, plan, rule_set};
use crate::nftables::{InstallError, InstalledTable};
use crate::record::recorder::Recorder;
use crate::record::summary::ReportHeader;
use crate::watch::attribution::ProcfsSensor;
use crate::watch::nflog::NflogReader;
use portcullis_common::event::{
    DetectionEvent, DetectionType, EnforcementScope, Feature, PolicyReference, Posture,
    PostureLevel, Process, RecordedDetection,
};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::{EffectivePolicy, EgressMode};
use portcullis_common::report::{Report, markdown};
use portcullis_common::resolution::{Identity, ScopeKind};
use portcullis_common::wire::{JobStatus, Started};
use sink::DnsSink;
use state::JobState;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Everything measured that the rules depend on; the rules are made again of it when the scope is narrowed.
    target: Mutex<EnforcementTarget>,
    table: Arc<InstalledTable>,
    book: Arc<grant_book::GrantBook>,
    resolver: Mutex<Option<Resolver>>,
    dns_sink: Arc<DnsSink>,
    packets: Mutex<Option<NflogReader>>,
    recorder: Arc<Recorder>,
    sensor: Arc<ProcfsSensor>,
    /// What was measured when the job was bound and does not change while it runs.
    features: Vec<Feature>,
    /// Frames stopped at the uplinks that are recorded already.
    raw_frames: AtomicU64,
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
        let rules = self.table.verify().map_err(|error| with_causes(&error));
        let mut warnings = self.state.warnings.clone();
        warnings.extend(self.gaps.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        posture::posture(posture::Measured {
            mode: self.enforced.egress,
            is_audit_fallback: self.state.is_audit_fallback,
            scope: self.scope(),
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

    /// Records the frames that were stopped at the uplinks since the last call. The kernel counts them and does not say
    /// whose they were.
    pub fn note_raw_frames(&self) {
        let Ok(counters) = self.table.counters() else { return };
        let stopped: u64 = counters
            .iter()
            .filter(|counter| counter.name == plan::counters::FRAMES)
            .map(|counter| counter.packets)
            .sum();
        let known = self.raw_frames.swap(stopped, Ordering::Relaxed);
        if stopped > known {
            self.recorder.detection(DetectionEvent {
                detection: DetectionType::Recorded(RecordedDetection::RawFrames),
                evidence: format!(
                    "{} frames that did not come from the kernel's IP stack (a packet socket, a macvlan) were stopped at the uplinks",
                    stopped - known
                ),
                is_lockdown: false,
                process: None,
            });
        }
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
        self.note_raw_frames();
        let report = self.recorder.report(&self.header(), self.posture());
        let text = markdown(&report);
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
            scope: self.scope(),
            mode: self.enforced.egress,
            posture: self.posture(),
            grants,
            events: totals.events,
            blocked: totals.blocked,
            detections: totals.detections,
        }
    }

    /// A process as the job's sensor sees it.
    pub fn process(&self, pid: u32) -> Option<Process> {
        let key = ProcFs.key(pid)?;
        self.sensor.inspector().inspect(key).map(|process| Process::clone(&process))
    }

    /// Whose traffic is the job's, now.
    pub fn scope(&self) -> EnforcementScope {
        self.target().scope
    }

    /// Judges the job's own traffic only, from now on: another runner of this host has started a job.
    ///
    /// # Errors
    /// Why it can't be done, in words; the job then still judges the whole host.
    pub fn narrow_scope(&self, jobs: &Path) -> Result<(), String> {
        let mut target = self.target();
        if target.scope == EnforcementScope::Job {
            return Ok(());
        }
        let narrowed = EnforcementTarget { scope: EnforcementScope::Job, ..target.clone() };
        let rules = rule_set(&self.enforced, &narrowed).map_err(|error| with_causes(&error))?;
        self.table.replace(&rules).map_err(|error| with_causes(&error))?;
        *target = narrowed;
        drop(target);
        let state = JobState { scope: EnforcementScope::Job, ..self.state.clone() };
        state.save(jobs).map_err(|error| error.to_string())?;
        let reason = "another runner of this host started a job: only this job's own traffic is judged from now on";
        self.recorder.posture(reason.to_owned(), self.posture());
        Ok(())
    }

    /// Installs the rules again, after somebody else changed them; addresses that are open stay open.
    ///
    /// # Errors
    /// When the kernel refused.
    pub fn put_rules_back(&self) -> Result<(), PutBackError> {
        self.table.replace(&self.rules()?)?;
        Ok(())
    }

    fn rules(&self) -> Result<RuleSet, PlanError> {
        rule_set(&self.enforced, &self.target())
    }

    fn target(&self) -> std::sync::MutexGuard<'_, EnforcementTarget> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Why the rules could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum PutBackError {
    /// The policy can't be made into rules any more.
    #[error("the policy can't be made into rules")]
    Plan(#[from] PlanError),
    /// The kernel refused.
    #[error("the rules can't be installed again")]
    Install(#[from] InstallError),
}

/// What the started hook is told when nothing could be put in force and the failure mode is `audit`.
pub(crate) fn unenforced(id: &str, problem: &str) -> Started {
    Started {
        job_id: id.to_owned(),
        policy: "none".to_owned(),
        policy_version: "-".to_owned(),
        scope: ScopeKind::Default,
        target: "failure mode".to_owned(),
        identity: Identity::Asserted,
        mode: EgressMode::Audit,
        endpoints: 0,
        posture: Posture {
            level: PostureLevel::Unenforced,
            scope: EnforcementScope::Host,
            features: Vec::new(),
            warnings: vec![format!(
                "nothing is in force and nothing is recorded ({problem}); the job runs because the failure mode is audit"
            )],
        },
        applied_ms: 0.0,
    }
}
