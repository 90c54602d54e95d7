//! Jobs whose policy could not be put in force: killed, or let run because the failure mode is `audit`. Both are told: to
//! the hook, in the job's summary, in its events and in its report.

use super::{Registry, refuse};
use crate::caller::{Lineage, ProcessKey, Worker, WorkerCandidate};
use crate::cgroup::{Hierarchy, JobCgroup};
use crate::job::end::write_report;
use crate::job::report_header;
use crate::job::run::blocking;
use crate::job::state::UnenforcedState;
use crate::record::recorder::Recorder;
use crate::record::summary::ReportHeader;
use crate::respond::tell_runner;
use crate::watch::worker_exit::WorkerExit;
use portcullis_common::event::{EnforcementScope, JobEvent, JobStage, Posture, PostureLevel};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::FailureMode;
use portcullis_common::report::markdown;
use portcullis_common::resolution::Resolution;
use portcullis_common::wire::{Answer, RefusalKind, Started};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long a killed job may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A policy that could not be put in force.
#[derive(Debug)]
pub(super) struct Failure {
    /// Why, in words.
    pub(super) problem: String,
    /// The group that was made for the job.
    pub(super) group: Option<JobCgroup>,
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Self { problem, group: None }
    }
}

/// A job that runs although nothing is in force.
#[derive(Debug)]
pub(super) struct Unenforced {
    id: String,
    worker: ProcessKey,
    header: ReportHeader,
    posture: Posture,
    /// Absent when its events can't be written.
    recorder: Option<Recorder>,
    spool: PathBuf,
    /// Where the state lies that another monitor takes it over by.
    directory: PathBuf,
}

impl Unenforced {
    /// `reason` is what the event of its posture says.
    fn new(registry: &Registry, state: &UnenforcedState, reason: String) -> Self {
        let id = state.id.as_str();
        let spool = registry.host.paths.spool().join(id);
        let recorder = fs::create_dir_all(&spool).and_then(|()| Recorder::open(&spool, id));
        let recorder = recorder
            .inspect_err(|error| tracing::error!(job.id = id, error = %error, "the job's events can't be written"))
            .ok();
        let posture = Posture {
            level: PostureLevel::Unenforced,
            scope: EnforcementScope::Host,
            features: Vec::new(),
            warnings: vec![state.warning.clone()],
        };
        if let Some(recorder) = &recorder {
            recorder.posture(reason, posture.clone());
        }
        let header = report_header(id, &state.resolution);
        let directory = registry.host.paths.jobs().join(id);
        let worker = state.worker;
        Self { id: id.to_owned(), worker, header, posture, recorder, spool, directory }
    }

    /// What the started hook is told.
    pub(super) fn started(&self) -> Answer {
        Answer::Started(Started {
            job_id: self.id.clone(),
            policy: self.header.policy.name.clone(),
            policy_version: self.header.policy.version.clone(),
            scope: self.header.policy.scope,
            target: self.header.target.clone(),
            identity: self.header.identity,
            mode: self.header.mode,
            endpoints: 0,
            posture: self.posture.clone(),
            applied_ms: 0.0,
        })
    }

    /// What the completed hook is told.
    pub(super) fn finished(&self) -> Answer {
        let Some(recorder) = &self.recorder else {
            return refuse(
                RefusalKind::NotEnforced,
                format!(
                    "nothing was in force and nothing could be recorded: {}",
                    self.posture.warnings.join("; ")
                ),
                None,
            );
        };
        let report = recorder.report(&self.header, self.posture.clone());
        let markdown = markdown(&report);
        Answer::Finished { report: Box::new(report), markdown }
    }

    fn end(&self, reason: &str) {
        self.write_end(reason);
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(job.id = self.id, error = %error, "the job's state could not be removed");
        }
    }

    fn write_end(&self, reason: &str) {
        let Some(recorder) = &self.recorder else { return };
        recorder.job(JobEvent {
            stage: JobStage::Ended,
            reason: reason.to_owned(),
            counters: Vec::new(),
        });
        let report = recorder.report(&self.header, self.posture.clone());
        if let Err(error) = write_report(&self.spool, &report).and_then(|()| recorder.sync()) {
            tracing::error!(job.id = self.id, error = %error, "the job's report could not be written");
        }
    }
}

impl Registry {
    /// The policy could not be put in force: what the failure mode says.
    pub(super) fn not_enforced(
        &self,
        id: &str,
        candidate: &WorkerCandidate,
        resolution: &Resolution,
        mode: FailureMode,
        failure: &Failure,
    ) -> Answer {
        let problem = &failure.problem;
        tracing::error!(
            job.id = id,
            worker.pid = candidate.worker.pid,
            problem,
            "a policy could not be put in force"
        );
        let worker = Worker::open(candidate);
        let unenforced = |warning: String| UnenforcedState {
            id: id.to_owned(),
            worker: candidate.worker,
            resolution: resolution.clone(),
            warning,
        };
        if mode == FailureMode::Audit {
            let warning = format!(
                "nothing is in force and nothing is recorded ({problem}); the job runs because the failure mode is audit"
            );
            self.undo_group(id, failure);
            let state = unenforced(warning);
            if let Err(error) = state.save(&self.host.paths.jobs()) {
                tracing::error!(job.id = id, error = %error, "a job without enforcement is forgotten when the monitor is started again");
            }
            let unenforced = Unenforced::new(self, &state, state.warning.clone());
            return self.let_run(unenforced, worker.ok());
        }
        let message = format!(
            "the policy could not be put in force ({problem}), and the failure mode is {}",
            match mode {
                FailureMode::Closed => "closed",
                FailureMode::LastKnownGood => "last-known-good, which does not help here",
                FailureMode::Audit => "audit",
            }
        );
        let unenforced = Unenforced::new(self, &unenforced(message.clone()), message.clone());
        if let Ok(worker) = worker {
            if let Err(error) = tell_runner(&worker, &message) {
                tracing::warn!(worker.pid = worker.pid(), error = %error, "the reason could not be written to the Worker's standard error");
            }
            if let Err(error) = worker.kill() {
                tracing::error!(worker.pid = worker.pid(), error = %error, "the Worker could not be killed");
            }
        }
        if let Some(group) = &failure.group
            && let Err(error) = group.end(KILL_PATIENCE)
        {
            tracing::error!(job.id = id, error = %with_causes(&error), "what is left of the job could not be killed");
        }
        unenforced.end("the Worker was killed because the policy could not be put in force");
        refuse(
            RefusalKind::NotEnforced,
            message,
            Some("run `monitor check` as root on this host".to_owned()),
        )
    }

    /// The unenforced job whose Worker is an ancestor of the caller.
    pub(super) fn unenforced_job(&self, lineage: &Lineage) -> Option<Arc<Unenforced>> {
        let jobs = self.unenforced.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().find(|job| lineage.contains(job.worker)).cloned()
    }

    fn let_run(&self, job: Unenforced, worker: Option<Worker>) -> Answer {
        let job = Arc::new(job);
        let answer = job.started();
        let guard = self.runtime.enter();
        let exit = worker.and_then(|worker| WorkerExit::watch(&worker).ok());
        drop(guard);
        let Some(exit) = exit else {
            job.end("the Worker has exited");
            return answer;
        };
        self.unenforced.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&job));
        let jobs = Arc::clone(&self.unenforced);
        self.runtime.spawn(async move {
            if exit.wait().await.is_err() {
                return;
            }
            blocking(move || {
                job.end("the Worker has exited");
                let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
                jobs.retain(|other| other.id != job.id);
            })
            .await;
        });
        answer
    }

    /// Goes on with a job of an earlier monitor, or ends it when its Worker is gone.
    pub(super) fn adopt_unenforced(&self, state: &UnenforcedState) {
        let reason = format!(
            "the monitor was not running for a while and was started again; still {}",
            state.warning
        );
        let job = Unenforced::new(self, state, reason.clone());
        match Worker::reopen(state.worker) {
            Ok(worker) => {
                if let Some(recorder) = &job.recorder {
                    let stage = JobStage::Adopted;
                    recorder.job(JobEvent { stage, reason, counters: Vec::new() });
                }
                tracing::warn!(job.id = state.id, "a job without enforcement was taken over");
                self.let_run(job, Some(worker));
            }
            Err(_) => job.end("the Worker exited while no monitor was running"),
        }
    }

    /// Gives the job back to the group that it came from.
    fn undo_group(&self, id: &str, failure: &Failure) {
        let Some(group) = &failure.group else { return };
        let Ok(hierarchy) = &self.host.hierarchy else { return };
        if let Err(error) = dissolve(group, hierarchy) {
            tracing::error!(
                job.id = id,
                error = error,
                "the group that was made for the job could not be removed"
            );
        }
    }
}

fn dissolve(group: &JobCgroup, hierarchy: &Hierarchy) -> Result<(), String> {
    group.dissolve(hierarchy).map_err(|error| with_causes(&error))
}
