//! A job from its binding to its end.
//!
//! [`registry`] binds one policy to one Worker, once. [`binding`] gathers what has to be known for that and remembers it
//! on disk ([`state`]); [`enforce`] puts it in force, for a new job and for one that is taken over after a restart;
//! [`run`] watches until the Worker exits; [`end`] kills what is left, counts, and takes the rules away, in that order.

pub mod binding;
pub mod detectors;
pub mod end;
pub mod enforce;
pub mod frames;
pub mod grant_book;
pub mod host;
pub mod last_known_good;
mod memory_watch;
mod mount_watch;
mod name_services;
pub mod observe;
pub mod policy_choice;
pub mod posture;
pub mod privileges;
pub mod registry;
pub mod run;
pub mod sensors;
pub mod shell_watch;
pub mod sink;
pub mod source_watch;
mod spool_limits;
pub mod state;

use crate::caller::{ProcFs, Worker, survey_runners};
use crate::cgroup::{CgroupIdentity, Hierarchy, JobCgroup};
use crate::containers::killing::EngineContainers;
use crate::containers::{JobParts, KeepUp, WatchedJob};
use crate::dns::Resolver;
use crate::egress::target::CgroupId;
use crate::egress::{EnforcementTarget, PlanError, RuleSet, rule_set};
use crate::nftables::{InstallError, InstalledTable};
use crate::protect::closed_sockets::{CloseError, ClosedSockets};
use crate::record::recorder::Recorder;
use crate::record::summary::ReportHeader;
use crate::respond::Responder;
use crate::watch::nflog::NflogReader;
use portcullis_common::event::{
    EnforcementScope, Feature, FeatureState, PolicyReference, Posture, Process,
};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::EffectivePolicy;
use portcullis_common::report::{Report, markdown};
use portcullis_common::resolution::Resolution;
use portcullis_common::wire::{JobStatus, Started};
use sink::DnsSink;
use state::JobState;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Groups of other runners' jobs that are younger than this job's group.
    other_jobs: Mutex<Vec<CgroupIdentity>>,
    /// Everything measured that the rules depend on; the rules are made again of it when the scope is narrowed.
    target: Mutex<EnforcementTarget>,
    table: Arc<InstalledTable>,
    /// The job is over and its rules are removed. Changes with `target` locked.
    has_no_rules: AtomicBool,
    book: Arc<grant_book::GrantBook>,
    resolver: Mutex<Option<Resolver>>,
    dns_sink: Arc<DnsSink>,
    packets: Mutex<Option<NflogReader>>,
    recorder: Arc<Recorder>,
    sensors: sensors::JobSensors,
    /// Where findings go.
    responder: Arc<Responder>,
    /// What looks for them.
    detectors: Mutex<Option<detectors::Detectors>>,
    /// The containers that it has started.
    containers: Arc<EngineContainers>,
    /// What of container engines is closed to it.
    engine_sockets: Mutex<Option<ClosedSockets>>,
    /// What of services that resolve names is closed to it.
    name_services: name_services::NameServices,
    /// What was measured when the job was bound and does not change while it runs.
    features: Vec<Feature>,
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

    /// Where whoever finds something about this job hands it.
    pub fn responder(&self) -> &Arc<Responder> {
        &self.responder
    }

    /// Notes that everything is in force: the rules are verified and the processes are in their group.
    fn is_in_force(&self, since_request: Instant) {
        // Once: what is asked again later took no time.
        let _ = self.applied_ms.set(since_request.elapsed().as_secs_f64() * 1e3);
    }

    fn applied_ms(&self) -> f64 {
        self.applied_ms.get().copied().unwrap_or_default()
    }

    /// The job as the watcher of containers sees it; `None` when its Worker is gone.
    fn watched(self: &Arc<Self>) -> Option<WatchedJob> {
        WatchedJob::new(JobParts {
            keep_up: self.keep_up(),
            id: self.state.id.clone(),
            worker: self.state.worker,
            uid: self.state.uid,
            executable: self.worker.executable().to_owned(),
            group: self.state.cgroup.clone(),
            token: self.sensors.watched.as_ref().map(|watched| watched.token()),
            started: self.state.started,
            scope: self.scope(),
            responder: Arc::clone(&self.responder),
            containers: Arc::clone(&self.containers),
        })
    }

    /// What is done when services open sockets, where they are closed to the job.
    fn keep_up(self: &Arc<Self>) -> KeepUp {
        let (renewed, watched) = (Arc::downgrade(self), Arc::downgrade(self));
        let renew = move || {
            if let Some(job) = renewed.upgrade() {
                job.renew_closed_sockets();
            }
        };
        let directories = move || {
            let Some(job) = watched.upgrade() else { return Vec::new() };
            let engines = job.engine_sockets.lock().unwrap_or_else(PoisonError::into_inner);
            let mut directories =
                engines.as_ref().map(ClosedSockets::directories).unwrap_or_default();
            directories.extend(job.name_services.directories());
            directories
        };
        KeepUp::new(renew, directories)
    }

    /// Closes the sockets that services have made anew.
    fn renew_closed_sockets(&self) {
        let engines = {
            let mut sockets = self.engine_sockets.lock().unwrap_or_else(PoisonError::into_inner);
            sockets.as_mut().map_or(Ok(0), ClosedSockets::renew)
        };
        self.note_renewed("a container engine", engines);
        self.note_renewed("a service that resolves names", self.name_services.renew());
    }

    fn note_renewed(&self, service: &str, outcome: Result<usize, CloseError>) {
        match outcome {
            Ok(0) => {}
            Ok(_) => self.note_gap(format!(
                "{service} opened a socket while the job ran; it was closed to the job when it was noticed"
            )),
            Err(error) => {
                // Told once: it is tried again every few seconds.
                let problem = format!("{service} is open to the job: {}", with_causes(&error));
                if !self.gaps().contains(&problem) {
                    self.note_gap(problem);
                }
            }
        }
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
        features.extend(self.name_services.feature());
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
        self.sensors.processes.process(key)
    }

    /// Whose traffic is the job's, now.
    pub fn scope(&self) -> EnforcementScope {
        self.target().scope
    }

    /// Judges the job's own traffic only, from now on: another job has started on this host, whose groups are `newcomer`. By
    /// the job's user it is known only as long as no other runner has the same.
    ///
    /// # Errors
    /// Why it can't be done, in words; the job then still judges what it judged before.
    pub fn narrow_scope(&self, jobs: &Path, newcomer: &[CgroupIdentity]) -> Result<(), String> {
        let is_user_shared = self
            .worker
            .candidate()
            .is_none_or(|candidate| survey_runners(&ProcFs, &candidate).user_is_shared);
        if is_user_shared && self.group.is_none() {
            return Err("it has no cgroup, and another runner has the same user".to_owned());
        }
        let mut target = self.target();
        if self.has_no_rules.load(Ordering::Relaxed) {
            return Ok(());
        }
        let runner_uid = target.runner_uid.filter(|_| !is_user_shared);
        let others = self.younger_groups(newcomer);
        let other_jobs = group_ids(&others);
        let is_same_scope =
            target.scope == EnforcementScope::Job && target.runner_uid == runner_uid;
        if is_same_scope && target.other_jobs == other_jobs {
            return Ok(());
        }
        let narrowed = EnforcementTarget {
            scope: EnforcementScope::Job,
            runner_uid,
            other_jobs,
            ..target.clone()
        };
        let rules = rule_set(&self.enforced, &narrowed).map_err(|error| with_causes(&error))?;
        self.table.replace(&rules).map_err(|error| with_causes(&error))?;
        *target = narrowed;
        drop(target);
        *self.others() = others;
        self.save(jobs).map_err(|error| error.to_string())?;
        if is_same_scope {
            return Ok(());
        }
        self.name_services.close();
        let reason = "another job has started on this host: only this job's own traffic is judged from now on";
        self.recorder.posture(reason.to_owned(), self.posture());
        Ok(())
    }

    /// The groups of other jobs that are younger than this job's: those that are known and still there, and the
    /// newcomer's. Only of a runner that is younger itself the whole group: an older one may hold this very job.
    fn younger_groups(&self, newcomer: &[CgroupIdentity]) -> Vec<CgroupIdentity> {
        let Some(own) = self.group.as_ref().map(JobCgroup::identity) else { return Vec::new() };
        let mut found = self.others().clone();
        if let Ok(hierarchy) = Hierarchy::find() {
            found.retain(|group| {
                hierarchy.group(&group.path).is_ok_and(|there| there.identity() == group)
            });
        }
        let younger = newcomer.iter().filter(|group| group.id > own.id).cloned();
        for group in younger {
            if !found.contains(&group) {
                found.push(group);
            }
        }
        found
    }

    fn others(&self) -> std::sync::MutexGuard<'_, Vec<CgroupIdentity>> {
        self.other_jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the machine's own services, which may have been started anew since the rules were made.
    ///
    /// # Errors
    /// Why the rules could not be replaced, in words.
    pub fn follow_infrastructure(&self, infrastructure: Vec<CgroupId>) -> Result<(), String> {
        let mut target = self.target();
        if target.infrastructure == infrastructure || self.has_no_rules.load(Ordering::Relaxed) {
            return Ok(());
        }
        let followed = EnforcementTarget { infrastructure, ..target.clone() };
        let rules = rule_set(&self.enforced, &followed).map_err(|error| with_causes(&error))?;
        self.table.replace(&rules).map_err(|error| with_causes(&error))?;
        *target = followed;
        Ok(())
    }

    /// Takes the rules away, at the end of the job.
    ///
    /// # Errors
    /// When the kernel refused.
    fn remove_rules(&self) -> Result<(), InstallError> {
        // Nobody replaces them meanwhile or afterwards.
        let _target = self.target();
        self.has_no_rules.store(true, Ordering::Relaxed);
        self.table.remove()
    }

    /// Writes down what has changed since the job was bound.
    fn save(&self, jobs: &Path) -> std::io::Result<()> {
        let (scope, has_own_user) = {
            let target = self.target();
            (target.scope, target.runner_uid.is_some() || self.state.uid == 0)
        };
        let gaps = self.gaps().clone();
        let other_jobs = self.others().clone();
        let state = JobState { scope, has_own_user, other_jobs, gaps, ..self.state.clone() };
        state.save(jobs).map(drop)
    }

    fn gaps(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Installs the rules again, after somebody else changed them; addresses that we opened stay open, others do not.
    ///
    /// # Errors
    /// When the kernel refused.
    pub fn put_rules_back(&self) -> Result<(), PutBackError> {
        self.table.restore(&self.rules()?)?;
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

/// Groups as rules name them.
pub(crate) fn group_ids(groups: &[CgroupIdentity]) -> Vec<CgroupId> {
    groups.iter().map(|group| CgroupId { id: group.id, level: group.level }).collect()
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
