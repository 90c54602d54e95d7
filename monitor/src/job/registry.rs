//! The jobs of this host: one binding for each Worker, the first one wins.

mod adoption;
mod status_desk;
mod succession;
mod unenforced;

use super::Job;
use super::binding::{Moving, bind};
use super::end::end;
use super::enforce::{EnforceError, Enforced, Rules, Watching, enforce};
use super::host::Host;
use super::policy_choice::{Origin, PolicyChoice, choose};
use super::run::run;
use super::state::JobState;
use crate::caller::{Lineage, Peer, ProcFs, WorkerCandidate, lineage};
use crate::cgroup::CgroupIdentity;
use crate::server::{Reply, Requests};
use crate::sys::memory;
use portcullis_common::event::{
    DetectionEvent, DetectionType, EnforcementScope, JobEvent, JobStage, RecordedDetection,
};
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::wire::{
    Answer, Call, Explained, IdTokenRequest, Refusal, RefusalKind, Status,
};
use status_desk::StatusDesk;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::runtime::Handle;
use unenforced::{Failure, Unenforced};
use uuid::Uuid;

/// Grants whose listing takes so much memory for a moment that it is worth giving back.
const MANY_GRANTS: u64 = 1_000;

/// The jobs of this host.
#[derive(Debug)]
pub struct Registry {
    host: Arc<Host>,
    runtime: Handle,
    jobs: Arc<Mutex<HashMap<String, Arc<Job>>>>,
    /// A job has ended and is none of `jobs` any more.
    job_ended: Arc<Condvar>,
    /// Jobs that run although nothing is in force, because the failure mode is `audit`.
    unenforced: Arc<Mutex<Vec<Arc<Unenforced>>>>,
    /// Held while a Worker is being bound, so that two calls of the same Worker can't both be the first.
    binding: Mutex<()>,
    status_desk: StatusDesk,
}

impl Registry {
    /// No jobs yet. Jobs run on `runtime`.
    pub fn new(host: Arc<Host>, runtime: Handle) -> Self {
        Self {
            host,
            runtime,
            jobs: Arc::default(),
            job_ended: Arc::default(),
            unenforced: Arc::default(),
            binding: Mutex::default(),
            status_desk: StatusDesk::default(),
        }
    }

    /// Records a gap of every running job.
    pub fn note_gap(&self, gap: &str) {
        let jobs: Vec<_> = self.jobs().values().cloned().collect();
        for job in jobs {
            job.note_gap(gap.to_owned());
        }
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

    fn start_job(
        &self,
        caller: &Peer,
        context: JobContext,
        id_token: Option<String>,
        id_token_request: Option<&IdTokenRequest>,
    ) -> Reply {
        let started = Instant::now();
        if let Err(error) = context.validate() {
            return refuse(RefusalKind::BadRequest, with_causes(&error), None).into();
        }
        // Who calls is looked at twice: before the store is asked, so that nobody but a runner's job makes this host ask, and
        // under the lock, which is not held meanwhile, for a store that is slow must not hold up the other runners.
        let candidate = match self.unbound(caller, &context) {
            Ok(candidate) => candidate,
            Err(answer) => return answer.into(),
        };
        let asked = self.host.resolve(&context, id_token, id_token_request);
        self.await_predecessors(&candidate);
        let _binding = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        let candidate = match self.unbound(caller, &context) {
            Ok(candidate) => candidate,
            Err(answer) => return answer.into(),
        };
        if let Ok(resolution) = &asked
            && let Err(error) = self.host.last_known_good.save(&context, resolution)
        {
            tracing::error!(error = %error, "the last known good policy could not be kept");
        }
        let host_mode = self.host.config.defaults.on_failure;
        let choice = choose(&context, asked, host_mode, &self.host.last_known_good);
        self.bind_and_enforce(&candidate, context, choice, started)
    }

    /// The Worker of a caller that nothing is bound to yet, or what the caller is answered.
    #[expect(clippy::result_large_err, reason = "the answer goes to the caller as it is")]
    fn unbound(&self, caller: &Peer, context: &JobContext) -> Result<WorkerCandidate, Answer> {
        let lineage = lineage(&ProcFs, caller.key()).map_err(|error| not_a_job(&error))?;
        if let Some(job) = self.job_of(caller, &lineage) {
            return Err(again(&job, context, caller));
        }
        if let Some(job) = self.unenforced_job(&lineage) {
            return Err(job.started());
        }
        lineage.worker().cloned().map_err(|error| not_a_job(&error))
    }

    fn bind_and_enforce(
        &self,
        candidate: &WorkerCandidate,
        context: JobContext,
        choice: PolicyChoice,
        started: Instant,
    ) -> Reply {
        let id = Uuid::now_v7().simple().to_string();
        let origin = choice.origin.clone();
        let mode = choice.on_failure;
        let resolution = choice.resolution.clone();
        self.host.announce(&id, &context, &resolution);
        match self.try_enforce(&id, candidate, context, choice, started) {
            Ok((job, watching)) => {
                let answer = match origin {
                    Origin::Closed { problem } => refuse(
                        RefusalKind::NotEnforced,
                        format!("no policy could be had for this job ({problem}), and the failure mode is closed: nothing is allowed"),
                        Some("repair the policy store, then run the job again; `monitor explain` shows what is wrong".to_owned()),
                    ),
                    _ => Answer::Started(job.started(job.posture_with(Ok(())))),
                };
                Reply::followed_by(answer, || watching.start())
            }
            Err(failure) => self.not_enforced(&id, candidate, &resolution, mode, &failure).into(),
        }
    }

    fn try_enforce(
        &self,
        id: &str,
        candidate: &WorkerCandidate,
        context: JobContext,
        choice: PolicyChoice,
        started: Instant,
    ) -> Result<(Arc<Job>, Watching), Failure> {
        let active: Vec<_> =
            self.jobs().values().filter_map(|job| job.state().cgroup.clone()).collect();
        let mut binding =
            bind(&self.host, id.to_owned(), candidate, context, choice, &active).map_err(
                |unbound| Failure { problem: with_causes(&unbound.error), group: unbound.group },
            )?;
        let group = binding.group.clone();
        let undo = |problem: String| {
            // Nothing is left of an attempt that failed, on disk either.
            if let Err(error) = fs::remove_dir_all(self.host.paths.jobs().join(id))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::error!(job.id = id, error = %error, "the job's state could not be removed");
            }
            Failure { problem, group: group.clone() }
        };
        // On disk before the rules are in the kernel: a monitor that dies in between finds what it must clean up.
        let prepared = self.prepare(&binding.state);
        if prepared.is_ok() {
            binding.start_moving();
        }
        let moving = binding.moving;
        let moved = || moving.map_or(Ok(()), Moving::finish);
        if let Err(problem) = prepared {
            // Whatever became of the move: what was moved is moved back.
            let _ = moved();
            return Err(undo(problem));
        }
        let guard = self.runtime.enter();
        let enforced = enforce(
            &self.host,
            binding.state,
            binding.worker,
            group.clone(),
            binding.protecting,
            Some(binding.links),
            Rules::New,
        )
        .map_err(|error: EnforceError| undo(with_causes(&error)));
        drop(guard);
        let moved = moved();
        let enforced = enforced?;
        let job = Arc::clone(&enforced.job);
        if let Err(problem) = moved {
            // Rules that name a group with somebody outside would not be what the posture says.
            end(&self.host, &job, "its processes could not be moved into its cgroup");
            return Err(Failure { problem, group: None });
        }
        job.is_in_force(started);
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
        // The rules were read back when they were installed.
        let posture = job.posture_with(Ok(()));
        job.recorder.posture("the policy was put in force".to_owned(), posture);
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
            applied_ms = job.applied_ms(),
            "a policy is in force"
        );
        let watching = self.watch(enforced);
        Ok((job, watching))
    }

    /// Jobs that were bound when theirs was the only runner, or the only one of its user, judge more than their own
    /// traffic; now there is another one, whose group is younger than theirs and none of their making. A newcomer that is
    /// its runner's only one meets nobody but predecessors whose end takes too long.
    fn keep_jobs_apart(&self, newcomer: &JobState) -> Result<(), String> {
        let meets = |job: &Job| {
            newcomer.scope == EnforcementScope::Job
                || job.state().network_namespace == newcomer.network_namespace
        };
        let jobs: Vec<_> = self.jobs().values().filter(|job| meets(job)).cloned().collect();
        let groups = self.groups_of(newcomer);
        for job in jobs {
            job.narrow_scope(&self.host.paths.jobs(), &groups).map_err(|problem| {
                format!(
                    "the scope of the running job {} could not be narrowed: {problem}",
                    job.id()
                )
            })?;
            self.host.containers.narrow(job.id());
        }
        Ok(())
    }

    /// The group of a job's runner, and the one that was made for the job below it.
    fn groups_of(&self, state: &JobState) -> Vec<CgroupIdentity> {
        let Some(own) = &state.cgroup else { return Vec::new() };
        let hierarchy = self.host.hierarchy.as_ref().ok();
        let runner = own.path.parent().and_then(|path| hierarchy?.group(path).ok());
        runner.map(|group| group.identity().clone()).into_iter().chain([own.clone()]).collect()
    }

    /// Keeps the running jobs and the new one apart, and writes the new one's state down.
    fn prepare(&self, state: &JobState) -> Result<(), String> {
        self.keep_jobs_apart(state)?;
        state
            .save(&self.host.paths.jobs())
            .map(drop)
            .map_err(|error| format!("the job's state can't be written: {error}"))
    }

    /// Follows a job to its end; what looks for findings is the caller's to start.
    fn watch(&self, enforced: Enforced) -> Watching {
        let Enforced { job, notices, watching } = enforced;
        self.jobs().insert(job.id().to_owned(), Arc::clone(&job));
        if let Some(watched) = job.watched() {
            let services = self.host.infrastructure_paths();
            let sensors = self.host.sensors.kernel().ok();
            self.host.containers.add(Arc::new(watched), services, sensors);
        }
        let (jobs, job_ended) = (Arc::clone(&self.jobs), Arc::clone(&self.job_ended));
        let containers = Arc::clone(&self.host.containers);
        let forget = move |job: &Job| {
            containers.remove(job.id());
            jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(job.id());
            job_ended.notify_all();
        };
        self.runtime.spawn(run(Arc::clone(&self.host), job, notices, forget));
        watching
    }

    fn finish_job(&self, caller: &Peer) -> Answer {
        let lineage = match lineage(&ProcFs, caller.key()) {
            Ok(lineage) => lineage,
            Err(error) => return not_a_job(&error),
        };
        let Some(job) = self.job_of(caller, &lineage) else {
            if let Some(job) = self.unenforced_job(&lineage) {
                return job.finished();
            }
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

    fn status(&self) -> Status {
        let jobs: Vec<_> = self.jobs().values().cloned().collect();
        let mut jobs: Vec<_> = jobs.iter().map(|job| job.status()).collect();
        jobs.sort_by(|a, b| a.id.cmp(&b.id));
        if jobs.iter().any(|job| job.grants >= MANY_GRANTS) {
            memory::give_back();
        }
        Status { jobs, infrastructure: self.host.infrastructure_units() }
    }

    fn explain(&self, context: &JobContext) -> Answer {
        match self.host.resolve(context, None, None) {
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
}

impl Requests for Registry {
    fn answer(&self, caller: &Peer, call: Call) -> Reply {
        match call {
            Call::StartJob { context, id_token, id_token_request } => {
                self.start_job(caller, context, id_token, id_token_request.as_ref())
            }
            Call::FinishJob {} => self.finish_job(caller).into(),
            Call::Status {} => Answer::Status(self.status_desk.answer(|| self.status())).into(),
            Call::Explain { context } => self.explain(&context).into(),
        }
    }
}

/// The started hook was called a second time: the same context gets the same answer, another one is refused.
fn again(job: &Job, context: &JobContext, caller: &Peer) -> Answer {
    if job.state().context == *context {
        return Answer::Started(job.started(job.posture()));
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
