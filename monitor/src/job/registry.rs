//! The jobs of this host: one binding for each Worker, the first one wins.

use super::Job;
use super::binding::bind;
use super::end::end;
use super::enforce::{EnforceError, Enforced, Rules, enforce};
use super::host::Host;
use super::policy_choice::{Origin, PolicyChoice, choose};
use super::run::run;
use super::state::JobState;
use crate::caller::ProcessTable;
use crate::caller::table::NetworkNamespaceId;
use crate::caller::{Lineage, Peer, ProcFs, Worker, WorkerCandidate, lineage};
use crate::cgroup::JobCgroup;
use crate::nftables::InstalledTable;
use crate::server::Requests;
use jiff::Timestamp;
use portcullis_common::event::{
    DetectionEvent, DetectionType, EnforcementScope, JobEvent, JobStage, RecordedDetection,
};
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::FailureMode;
use portcullis_common::wire::{Answer, Call, Explained, Refusal, RefusalKind, Status};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::runtime::Handle;
use uuid::Uuid;

/// The jobs of this host.
#[derive(Debug)]
pub struct Registry {
    host: Arc<Host>,
    runtime: Handle,
    jobs: Arc<Mutex<HashMap<String, Arc<Job>>>>,
    /// Held while a Worker is being bound, so that two calls of the same Worker can't both be the first.
    binding: Mutex<()>,
}

impl Registry {
    /// No jobs yet. Jobs run on `runtime`.
    pub fn new(host: Arc<Host>, runtime: Handle) -> Self {
        Self { host, runtime, jobs: Arc::default(), binding: Mutex::default() }
    }

    /// Takes over the jobs that an earlier monitor left, and ends those whose Worker is gone.
    pub fn adopt_all(&self) {
        for state in JobState::load_all(&self.host.paths.jobs()) {
            match state {
                Ok(state) => self.adopt(state),
                Err((path, error)) => {
                    tracing::error!(path = %path.display(), error = %error, "a job's state can't be read; its rules stay until its Worker's group is used again");
                }
            }
        }
    }

    fn adopt(&self, state: JobState) {
        let id = state.id.clone();
        let started = Instant::now();
        let worker = match Worker::reopen(state.worker) {
            Ok(worker) => worker,
            Err(_) => return self.end_without_worker(&state),
        };
        let group = self.existing_group(&state);
        let since = last_written(&self.host, &id);
        let guard = self.runtime.enter();
        let enforced =
            enforce(&self.host, state, worker, group, Rules::LeftByEarlierMonitor, started);
        drop(guard);
        match enforced {
            Ok(enforced) => {
                let now = Timestamp::now();
                let reason = format!(
                    "the monitor was started again and took the job over; it was not running from about {since} to {now}: rules stayed, names did not resolve, packets judged meanwhile have no event"
                );
                let event = JobEvent {
                    stage: JobStage::Adopted,
                    reason: reason.clone(),
                    counters: Vec::new(),
                };
                enforced.job.recorder.job(event);
                enforced.job.note_gap(reason);
                tracing::warn!(job.id = id, "a running job was taken over");
                self.watch(enforced);
            }
            Err(error) => {
                tracing::error!(job.id = id, error = %with_causes(&error), "a running job could not be taken over; its rules stay as they are");
            }
        }
    }

    /// A job whose Worker exited while no monitor was running: what is left of it is killed, its rules are removed.
    fn end_without_worker(&self, state: &JobState) {
        tracing::warn!(
            job.id = state.id,
            "the Worker of a job exited while no monitor was running"
        );
        if let Some(group) = self.existing_group(state)
            && let Err(error) = group.end(std::time::Duration::from_secs(20))
        {
            tracing::error!(job.id = state.id, error = %with_causes(&error), "what is left of the job could not be killed");
        }
        let spool = self.host.paths.spool().join(&state.id);
        match crate::record::recorder::Recorder::open(&spool, &state.id) {
            Ok(recorder) => recorder.job(JobEvent {
                stage: JobStage::Ended,
                reason: "the Worker exited while no monitor was running; what was left of the job was killed".to_owned(),
                counters: Vec::new(),
            }),
            Err(error) => tracing::error!(job.id = state.id, error = %error, "the job's events can't be written"),
        }
        // A namespace that only the Worker kept alive is gone, and the rules with it.
        if let Some(table) = super::enforce::table_name(&state.id)
            && let Some(namespace) = open_namespace(state.network_namespace)
            && let Err(error) = InstalledTable::remove_left_behind(namespace.as_fd(), &table)
        {
            tracing::error!(job.id = state.id, error = %with_causes(&error), "the job's rules could not be removed");
        }
        if let Err(error) = fs::remove_dir_all(self.host.paths.jobs().join(&state.id)) {
            tracing::error!(job.id = state.id, error = %error, "the job's state could not be removed");
        }
    }

    fn existing_group(&self, state: &JobState) -> Option<JobCgroup> {
        let hierarchy = self.host.hierarchy.as_ref().ok()?;
        JobCgroup::open_existing(hierarchy, state.cgroup.as_ref()?).ok()
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<String, Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job that a caller belongs to: by its cgroup, or by an ancestor that is a bound Worker. The cgroup comes first,
    /// for a job can start programs of any name, but not leave its group unless it is root.
    fn job_of(&self, caller: &Peer, lineage: &Lineage) -> Option<Arc<Job>> {
        let pid = caller.key().pid;
        let jobs = self.jobs();
        let by_group =
            jobs.values().find(|job| job.group.as_ref().is_some_and(|group| group.contains(pid)));
        let by_worker = || jobs.values().find(|job| lineage.contains(job.state().worker));
        by_group.or_else(by_worker).cloned()
    }

    fn start_job(&self, caller: &Peer, context: JobContext) -> Answer {
        let started = Instant::now();
        if let Err(error) = context.validate() {
            return refuse(RefusalKind::BadRequest, with_causes(&error), None);
        }
        let _binding = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        let lineage = match lineage(&ProcFs, caller.key()) {
            Ok(lineage) => lineage,
            Err(error) => return not_a_job(&error),
        };
        if let Some(job) = self.job_of(caller, &lineage) {
            return again(&job, &context, caller);
        }
        let candidate = match lineage.worker() {
            Ok(candidate) => candidate.clone(),
            Err(error) => return not_a_job(&error),
        };
        let asked = self.host.resolve(&context);
        if let Ok(resolution) = &asked
            && let Err(error) = self.host.last_known_good.save(&context, resolution)
        {
            tracing::error!(error = %error, "the last known good policy could not be kept");
        }
        let host_mode = self.host.config.defaults.on_failure;
        let choice = choose(&context, asked, host_mode, &self.host.last_known_good);
        self.bind_and_enforce(&candidate, context, choice, started)
    }

    fn bind_and_enforce(
        &self,
        candidate: &WorkerCandidate,
        context: JobContext,
        choice: PolicyChoice,
        started: Instant,
    ) -> Answer {
        let id = Uuid::now_v7().simple().to_string();
        let origin = choice.origin.clone();
        let mode = choice.on_failure;
        match self.try_enforce(&id, candidate, context, choice, started) {
            Ok(job) => match origin {
                Origin::Closed { problem } => refuse(
                    RefusalKind::NotEnforced,
                    format!("no policy could be had for this job ({problem}), and the failure mode is closed: nothing is allowed"),
                    Some("repair the policy store, then run the job again; `monitor explain` shows what is wrong".to_owned()),
                ),
                _ => Answer::Started(job.started()),
            },
            Err(problem) => self.not_enforced(&id, candidate, mode, &problem),
        }
    }

    fn try_enforce(
        &self,
        id: &str,
        candidate: &WorkerCandidate,
        context: JobContext,
        choice: PolicyChoice,
        started: Instant,
    ) -> Result<Arc<Job>, String> {
        let active: Vec<_> =
            self.jobs().values().filter_map(|job| job.state().cgroup.clone()).collect();
        let binding = bind(&self.host, id.to_owned(), candidate, context, choice, &active)
            .map_err(|error| with_causes(&error))?;
        if binding.state.scope == EnforcementScope::Job {
            self.narrow_jobs_of_host_scope()?;
        }
        // On disk before the rules are in the kernel: a monitor that dies in between finds what it must clean up.
        binding
            .state
            .save(&self.host.paths.jobs())
            .map_err(|error| format!("the job's state can't be written: {error}"))?;
        let guard = self.runtime.enter();
        let enforced =
            enforce(&self.host, binding.state, binding.worker, binding.group, Rules::New, started)
                .map_err(|error: EnforceError| with_causes(&error));
        drop(guard);
        let enforced = enforced.inspect_err(|_| {
            let _ = fs::remove_dir_all(self.host.paths.jobs().join(id));
        })?;
        let job = Arc::clone(&enforced.job);
        let policy = &job.state().resolution.policy;
        job.recorder.job(JobEvent {
            stage: JobStage::Started,
            reason: format!(
                "policy {} was bound to Runner.Worker {}",
                policy.name,
                job.state().worker.pid
            ),
            counters: Vec::new(),
        });
        job.recorder.posture("the policy was put in force".to_owned(), job.posture());
        for left_over in binding.left_overs {
            job.recorder.detection(DetectionEvent {
                detection: DetectionType::Recorded(RecordedDetection::LeftOverProcess),
                evidence: format!(
                    "left over from an earlier job, killed before this one started: {left_over}"
                ),
                is_lockdown: false,
                process: None,
            });
        }
        tracing::info!(
            job.id = id,
            policy = policy.name,
            applied_ms = job.applied_ms,
            "a policy is in force"
        );
        self.watch(enforced);
        Ok(job)
    }

    /// Jobs that were bound when theirs was the only runner judge the whole host; now there is a second one.
    fn narrow_jobs_of_host_scope(&self) -> Result<(), String> {
        let jobs: Vec<_> = self.jobs().values().cloned().collect();
        for job in jobs {
            job.narrow_scope(&self.host.paths.jobs()).map_err(|problem| {
                format!(
                    "the scope of the running job {} could not be narrowed: {problem}",
                    job.id()
                )
            })?;
        }
        Ok(())
    }

    fn watch(&self, enforced: Enforced) {
        let Enforced { job, notices } = enforced;
        self.jobs().insert(job.id().to_owned(), Arc::clone(&job));
        let jobs = Arc::clone(&self.jobs);
        let forget = move |job: &Job| {
            jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(job.id());
        };
        self.runtime.spawn(run(Arc::clone(&self.host), job, notices, forget));
    }

    /// The policy could not be put in force: what the failure mode says.
    fn not_enforced(
        &self,
        id: &str,
        candidate: &WorkerCandidate,
        mode: FailureMode,
        problem: &str,
    ) -> Answer {
        tracing::error!(
            job.id = id,
            worker.pid = candidate.worker.pid,
            problem,
            "a policy could not be put in force"
        );
        if mode == FailureMode::Audit {
            // Nothing is in force and nothing can be watched; the hook lets the job run and says so in red.
            return Answer::Started(super::unenforced(id, problem));
        }
        let message = format!(
            "the policy could not be put in force ({problem}), and the failure mode is {}",
            match mode {
                FailureMode::Closed => "closed",
                FailureMode::LastKnownGood => "last-known-good, which does not help here",
                FailureMode::Audit => "audit",
            }
        );
        if let Ok(worker) = Worker::open(candidate) {
            tell_runner(&worker, &message);
            if let Err(error) = worker.kill() {
                tracing::error!(worker.pid = worker.pid(), error = %error, "the Worker could not be killed");
            }
        }
        refuse(
            RefusalKind::NotEnforced,
            message,
            Some("run `monitor check` as root on this host".to_owned()),
        )
    }

    fn finish_job(&self, caller: &Peer) -> Answer {
        let lineage = match lineage(&ProcFs, caller.key()) {
            Ok(lineage) => lineage,
            Err(error) => return not_a_job(&error),
        };
        let Some(job) = self.job_of(caller, &lineage) else {
            return refuse(
                RefusalKind::NotARunnerJob,
                "no policy was bound to this job".to_owned(),
                Some(
                    "is ACTIONS_RUNNER_HOOK_JOB_STARTED set to pre-job.sh, and did it succeed?"
                        .to_owned(),
                ),
            );
        };
        job.dns_sink.flush();
        job.recorder.job(JobEvent {
            stage: JobStage::ReportRequested,
            reason: format!("process {} asked for the report", caller.key().pid),
            counters: Vec::new(),
        });
        let (report, markdown) = job.report();
        Answer::Finished { report: Box::new(report), markdown }
    }

    fn status(&self) -> Answer {
        let jobs: Vec<_> = self.jobs().values().cloned().collect();
        let mut jobs: Vec<_> = jobs.iter().map(|job| job.status()).collect();
        jobs.sort_by(|a, b| a.id.cmp(&b.id));
        Answer::Status(Status { jobs, infrastructure: self.host.infrastructure_units() })
    }

    fn explain(&self, context: &JobContext) -> Answer {
        match self.host.resolve(context) {
            Ok(resolution) => Answer::Explained(Explained {
                policy: resolution.policy.name,
                policy_version: resolution.policy.version,
                scope: resolution.scope,
                target: resolution.target,
                mode: resolution.policy.egress,
                considered: resolution.considered,
            }),
            Err(problem) => refuse(RefusalKind::NotEnforced, problem, None),
        }
    }

    /// Ends every job; for tests of the whole and for an operator who takes the monitor off a host.
    pub fn end_all(&self, reason: &str) {
        let jobs: Vec<_> = self.jobs().drain().map(|(_, job)| job).collect();
        for job in jobs {
            end(&self.host, &job, reason);
        }
    }
}

impl Requests for Registry {
    fn answer(&self, caller: &Peer, call: Call) -> Answer {
        match call {
            // The token is for a served store; a directory of files has nobody to verify it.
            Call::StartJob { context, id_token: _ } => self.start_job(caller, context),
            Call::FinishJob {} => self.finish_job(caller),
            Call::Status {} => self.status(),
            Call::Explain { context } => self.explain(&context),
        }
    }
}

/// The started hook was called a second time: the same context gets the same answer, another one is refused.
fn again(job: &Job, context: &JobContext, caller: &Peer) -> Answer {
    if job.state().context == *context {
        return Answer::Started(job.started());
    }
    let evidence = format!(
        "process {} asked for another binding: workflow {:?} instead of {:?}",
        caller.key().pid,
        context.workflow_ref,
        job.state().context.workflow_ref
    );
    job.recorder.detection(DetectionEvent {
        detection: DetectionType::Recorded(RecordedDetection::BindingConflict),
        evidence,
        is_lockdown: false,
        process: job.process(caller.key().pid),
    });
    refuse(
        RefusalKind::AlreadyBound,
        format!(
            "this job is bound to the policy {} and stays so",
            job.state().resolution.policy.name
        ),
        Some("a policy is bound once for each job; the attempt was recorded".to_owned()),
    )
}

fn not_a_job(error: &crate::caller::CallerError) -> Answer {
    refuse(
        RefusalKind::NotARunnerJob,
        with_causes(error),
        Some(
            "let actions/runner call this hook through ACTIONS_RUNNER_HOOK_JOB_STARTED".to_owned(),
        ),
    )
}

fn refuse(kind: RefusalKind, message: String, hint: Option<String>) -> Answer {
    Answer::Refused(Refusal { kind, message, hint })
}

/// The network namespace, by any process that lives in it.
fn open_namespace(wanted: NetworkNamespaceId) -> Option<fs::File> {
    let lives_there = |pid: &u32| ProcFs.network_namespace(*pid) == Some(wanted);
    let pid = ProcFs.pids().into_iter().find(lives_there)?;
    fs::File::open(format!("/proc/{pid}/ns/net")).ok()
}

/// When a file of the job was written last: about when the earlier monitor stopped.
fn last_written(host: &Host, id: &str) -> Timestamp {
    let events = host.paths.spool().join(id).join("events.ndjson");
    let modified = fs::metadata(events).and_then(|metadata| metadata.modified()).ok();
    modified.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Writes to the Worker's standard error: the Listener makes it the annotation of a job whose Worker dies
/// (actions/runner, JobDispatcher.cs).
fn tell_runner(worker: &Worker, message: &str) {
    let path = format!("/proc/{}/fd/2", worker.pid());
    // A full pipe must not hold the monitor.
    let opened = fs::OpenOptions::new()
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path);
    if let Err(error) = opened.and_then(|mut file| writeln!(file, "Portcullis: {message}")) {
        tracing::warn!(worker.pid = worker.pid(), error = %error, "the reason could not be written to the Worker's standard error");
    }
}
