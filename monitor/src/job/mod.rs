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

use crate::caller::{ProcFs, Worker, survey_runners};
use crate::cgroup::JobCgroup;
use crate::dns::Resolver;
use crate::egress::{EnforcementTarget, PlanError, RuleSet, plan, rule_set};
use crate::nftables::{InstallError, InstalledTable};
use crate::record::recorder::Recorder;
use crate::record::summary::ReportHeader;
use crate::watch::attribution::ProcfsSensor;
use crate::watch::nflog::NflogReader;
use portcullis_common::event::{
    DetectionEvent, DetectionType, EnforcementScope, Feature, FeatureState, PolicyReference,
    Posture, Process, RecordedDetection,
};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::EffectivePolicy;
use portcullis_common::report::{Report, markdown};
use portcullis_common::resolution::Resolution;
use portcullis_common::wire::{JobStatus, Started};
use sink::DnsSink;
use state::JobState;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Gaps of one job that its posture lists. A job that makes gaps on purpose must not fill the monitor's memory.
const MAX_GAPS: usize = 64;

/// A job whose policy is in force.
#[derive(Debug)]
pub struct Job {
    /// What is known of it on disk, too.
    state: JobState,
    /// The policy with GitHub's own hosts, as it is enforced.
    enforced: Arc<EffectivePolicy>,
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
    /// Where running jobs are written down.
    jobs_directory: PathBuf,
    /// How long it took until everything was in force; absent for a job that was taken over.
    applied_ms: OnceLock<f64>,
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

    /// Notes that everything is in force: the rules are verified and the processes are in their group.
    fn is_in_force(&self, since_request: Instant) {
        // Once: what is asked again later took no time.
        let _ = self.applied_ms.set(since_request.elapsed().as_secs_f64() * 1e3);
    }

    fn applied_ms(&self) -> f64 {
        self.applied_ms.get().copied().unwrap_or_default()
    }

    /// The posture now: the rules are read back for it.
    pub fn posture(&self) -> Posture {
        self.posture_with(self.table.verify().map_err(|error| with_causes(&error)))
    }

    /// The posture when `rules` is what reading the rules back has just shown.
    fn posture_with(&self, rules: Result<(), String>) -> Posture {
        let mut warnings = self.state.warnings.clone();
        warnings.extend(self.gaps().iter().cloned());
        let mut features = self.features.clone();
        {
            let target = self.target();
            if target.scope == EnforcementScope::Job
                && target.runner_uid.is_none()
                && self.state.uid != 0
            {
                features.push(Feature {
                    name: "own-user".to_owned(),
                    state: FeatureState::Degraded,
                    reason: "another runner has the same user, so a process that leaves the job's cgroup can't be told apart".to_owned(),
                });
            }
        }
        posture::posture(posture::Measured {
            mode: self.enforced.egress,
            is_audit_fallback: self.state.is_audit_fallback,
            scope: self.scope(),
            rules,
            features,
            warnings,
        })
    }

    /// Records a gap: something that was not in force, or not seen, for a while. It stays in the posture for as long as
    /// the job runs, over restarts of the monitor too.
    pub fn note_gap(&self, gap: String) {
        {
            let mut gaps = self.gaps();
            if gaps.len() == MAX_GAPS {
                gaps.push(format!("more than {MAX_GAPS} gaps; the events have the others"));
            } else if gaps.len() < MAX_GAPS {
                gaps.push(gap.clone());
            }
        }
        if let Err(error) = self.save(&self.jobs_directory) {
            tracing::error!(job.id = self.id(), error = %error, "a gap could not be written to the job's state");
        }
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
    pub fn started(&self, posture: Posture) -> Started {
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
            posture,
            applied_ms: self.applied_ms(),
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

    /// Judges the job's own traffic only, from now on: another runner of this host has started a job. By the job's user it
    /// is known only as long as no other runner has the same.
    ///
    /// # Errors
    /// Why it can't be done, in words; the job then still judges what it judged before.
    pub fn narrow_scope(&self, jobs: &Path) -> Result<(), String> {
        let is_user_shared = self
            .worker
            .candidate()
            .is_none_or(|candidate| survey_runners(&ProcFs, &candidate).user_is_shared);
        if is_user_shared && self.group.is_none() {
            return Err("it has no cgroup, and another runner has the same user".to_owned());
        }
        let mut target = self.target();
        let runner_uid = target.runner_uid.filter(|_| !is_user_shared);
        if target.scope == EnforcementScope::Job && target.runner_uid == runner_uid {
            return Ok(());
        }
        let narrowed =
            EnforcementTarget { scope: EnforcementScope::Job, runner_uid, ..target.clone() };
        let rules = rule_set(&self.enforced, &narrowed).map_err(|error| with_causes(&error))?;
        self.table.replace(&rules).map_err(|error| with_causes(&error))?;
        *target = narrowed;
        drop(target);
        self.save(jobs).map_err(|error| error.to_string())?;
        let reason = "another runner of this host started a job: only this job's own traffic is judged from now on";
        self.recorder.posture(reason.to_owned(), self.posture());
        Ok(())
    }

    /// Writes down what has changed since the job was bound.
    fn save(&self, jobs: &Path) -> std::io::Result<()> {
        let (scope, has_own_user) = {
            let target = self.target();
            (target.scope, target.runner_uid.is_some() || self.state.uid == 0)
        };
        let gaps = self.gaps().clone();
        let state = JobState { scope, has_own_user, gaps, ..self.state.clone() };
        state.save(jobs).map(drop)
    }

    fn gaps(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
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
        report_header(&self.state.id, &self.state.resolution)
    }
}

/// How events name the job's policy.
pub(crate) fn policy_reference(resolution: &Resolution) -> PolicyReference {
    PolicyReference {
        name: resolution.policy.name.clone(),
        version: resolution.policy.version.clone(),
        scope: resolution.scope,
    }
}

/// What stays the same in every report of the job.
pub(crate) fn report_header(id: &str, resolution: &Resolution) -> ReportHeader {
    ReportHeader {
        job_id: id.to_owned(),
        policy: policy_reference(resolution),
        target: resolution.target.clone(),
        identity: resolution.identity,
        mode: resolution.policy.egress,
        fail_on_block: resolution.policy.fail_on_block,
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
