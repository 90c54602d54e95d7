//! Jobs that an earlier monitor left: taken over while their Worker lives, cleaned up after when it is gone.

use super::Registry;
use crate::caller::table::NetworkNamespaceId;
use crate::caller::{CallerError, ProcFs, ProcessTable, Worker};
use crate::cgroup::JobCgroup;
use crate::job::binding::protect;
use crate::job::end::write_report;
use crate::job::enforce::{Rules, enforce, table_name};
use crate::job::host::Host;
use crate::job::report_header;
use crate::job::run::blocking;
use crate::job::state::{JobState, UnenforcedState};
use crate::nftables::InstalledTable;
use crate::protect::closed_sockets::open_left_overs;
use crate::record::recorder::Recorder;
use crate::watch::worker_exit::WorkerExit;
use jiff::Timestamp;
use portcullis_common::event::{EnforcementScope, JobEvent, JobStage, Posture, PostureLevel};
use portcullis_common::hook::with_causes;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// How long what is left of a job may take to be gone once it was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

impl Registry {
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
        let jobs = self.jobs();
        open_left_overs(&self.host.paths.closed_sockets(), |id| jobs.contains_key(id));
        self.host.service_manager.forget_the_rest();
        for state in UnenforcedState::load_all(&self.host.paths.jobs()) {
            match state {
                Ok(state) => self.adopt_unenforced(&state),
                Err((path, error)) => {
                    tracing::error!(path = %path.display(), error = %error, "the state of a job without enforcement can't be read; its report is not written");
                }
            }
        }
    }

    fn adopt(&self, state: JobState) {
        let id = state.id.clone();
        let worker = match Worker::reopen(state.worker) {
            Ok(worker) => worker,
            Err(CallerError::Gone { .. }) => {
                let reason = "the Worker exited while no monitor was running";
                return end_left_behind(&self.host, &state, reason);
            }
            Err(error) => {
                tracing::error!(job.id = id, error = %with_causes(&error), "a running job could not be taken over; its rules stay as they are");
                return;
            }
        };
        let group = existing_group(&self.host, &state);
        let since = last_written(&self.host, &id);
        let guard = self.runtime.enter();
        let exit = WorkerExit::watch(&worker);
        let enforced = enforce(
            &self.host,
            state.clone(),
            worker,
            group,
            protect(&state),
            None,
            Rules::LeftByEarlierMonitor,
        );
        drop(guard);
        match enforced {
            Ok(enforced) => {
                let now = Timestamp::now();
                let reason = format!(
                    "the monitor was not running: it took this job over at {now:.0}, and the last event before is of {since:.0}; rules stayed in force meanwhile, names did not resolve, and packets judged meanwhile have no event"
                );
                let event = JobEvent {
                    stage: JobStage::Adopted,
                    reason: reason.clone(),
                    counters: Vec::new(),
                };
                enforced.job.recorder.job(event);
                enforced.job.note_gap(reason);
                tracing::warn!(job.id = id, "a running job was taken over");
                self.watch(enforced).start();
            }
            Err(error) => {
                let problem = with_causes(&error);
                tracing::error!(
                    job.id = id,
                    error = problem,
                    "a running job could not be taken over; its rules stay as they are"
                );
                match exit {
                    Ok(exit) => self.end_after(exit, state, problem),
                    Err(error) => {
                        tracing::error!(job.id = id, error = %error, "its Worker's exit can't be waited for");
                    }
                }
            }
        }
    }

    /// Cleans up after a job that could not be taken over, once its Worker has exited.
    fn end_after(&self, exit: WorkerExit, state: JobState, problem: String) {
        let host = Arc::clone(&self.host);
        self.runtime.spawn(async move {
            // An error means that the runtime ends; then the next monitor finds the job again.
            if exit.wait().await.is_ok() {
                let reason = format!(
                    "the job could not be taken over after the monitor was started again ({problem}): its rules stayed, nothing was recorded"
                );
                blocking(move || end_left_behind(&host, &state, &reason)).await;
            }
        });
    }
}

/// The end of a job that no monitor watched: what is left of it is killed, its report is written, its rules are removed.
fn end_left_behind(host: &Host, state: &JobState, reason: &str) {
    tracing::warn!(job.id = state.id, reason, "a job that was not watched has ended");
    // Before the kill: what is left of the job may be all that keeps the namespace alive.
    let namespace = open_namespace(state.network_namespace);
    if let Some(group) = existing_group(host, state)
        && let Err(error) = group.end(KILL_PATIENCE)
    {
        tracing::error!(job.id = state.id, error = %with_causes(&error), "what is left of the job could not be killed");
    }
    if let Err(error) = record_end(host, state, reason) {
        tracing::error!(job.id = state.id, error = %error, "the job's report could not be written");
    }
    if let Some(table) = table_name(&state.id)
        && let Some(socket) = host.service_manager.take(table.as_str())
    {
        // Without anybody in the namespace the socket is all that keeps it; with that the rules go, too.
        let removed = namespace.as_ref().map_or(Ok(()), |namespace| {
            InstalledTable::remove_kept(namespace.as_fd(), socket, &table)
                .map_err(|error| with_causes(&error))
        });
        let forgotten =
            host.service_manager.forget(table.as_str()).map_err(|error| error.to_string());
        if let Err(problem) = removed.and(forgotten) {
            tracing::error!(job.id = state.id, problem, "the job's rules could not be removed");
        }
    }
    // A namespace in which nobody lives any more is gone, and the rules with it.
    if let Some(table) = table_name(&state.id)
        && let Some(namespace) = namespace
        && let Err(error) = InstalledTable::remove_left_behind(namespace.as_fd(), &table)
    {
        tracing::error!(job.id = state.id, error = %with_causes(&error), "the job's rules could not be removed");
    }
    if let Err(error) = fs::remove_dir_all(host.paths.jobs().join(&state.id)) {
        tracing::error!(job.id = state.id, error = %error, "the job's state could not be removed");
    }
}

fn record_end(host: &Host, state: &JobState, reason: &str) -> std::io::Result<()> {
    let spool = host.paths.spool().join(&state.id);
    fs::create_dir_all(&spool)?;
    let recorder = Recorder::open(&spool, &state.id)?;
    let mut posture = recorder.last_posture().unwrap_or_else(|| Posture {
        level: PostureLevel::Unenforced,
        scope: EnforcementScope::Host,
        features: Vec::new(),
        warnings: Vec::new(),
    });
    let told = format!(
        "{reason}; its last calls have no event, and the kernel's counters were not compared"
    );
    posture.warnings.push(told.clone());
    recorder.posture(told, posture.clone());
    recorder.job(JobEvent {
        stage: JobStage::Ended,
        reason: format!("{reason}; what was left of the job was killed"),
        counters: Vec::new(),
    });
    write_report(&spool, &recorder.report(&report_header(&state.id, &state.resolution), posture))?;
    recorder.sync()
}

fn existing_group(host: &Host, state: &JobState) -> Option<JobCgroup> {
    let hierarchy = host.hierarchy.as_ref().ok()?;
    JobCgroup::open_existing(hierarchy, state.cgroup.as_ref()?).ok()
}

/// The network namespace, by any process that lives in it.
fn open_namespace(wanted: NetworkNamespaceId) -> Option<File> {
    let lives_there = |pid: &u32| ProcFs.network_namespace(*pid) == Some(wanted);
    let pid = ProcFs.pids().into_iter().find(lives_there)?;
    File::open(format!("/proc/{pid}/ns/net")).ok()
}

/// When a file of the job was written last: the earlier monitor ran then.
fn last_written(host: &Host, id: &str) -> Timestamp {
    let events = host.paths.spool().join(id).join("events.ndjson");
    let modified = fs::metadata(events).and_then(|metadata| metadata.modified()).ok();
    modified.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}
