//! A running job: waits for its Worker's exit, undoes tampering, keeps used addresses open, writes repeats down.

use super::Job;
use super::end::end;
use super::host::Host;
use crate::egress::grant::Grant;
use crate::nftables::{Change, ChangeWatcher};
use crate::watch::worker_exit::WorkerExit;
use portcullis_common::event::{DetectionEvent, DetectionType, Process, RecordedDetection};
use portcullis_common::hook::with_causes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// How often repeats are written down and connections that are open but idle have their addresses prolonged. Well below
/// the grace period, and seldom enough that an idle monitor does nothing worth measuring.
const TICK: Duration = Duration::from_secs(60);

/// Changes of the packet filter that wait to be looked at. More than that at once is one finding, not many.
const WAITING_CHANGES: usize = 256;

/// Watches a job until its end. `on_end` is called when everything is over.
pub async fn run(
    host: Arc<Host>,
    job: Arc<Job>,
    mut notices: mpsc::Receiver<String>,
    on_end: impl FnOnce(&Job) + Send + 'static,
) {
    let exit = match WorkerExit::watch(&job.worker) {
        Ok(exit) => exit,
        Err(error) => {
            tracing::error!(job.id = job.id(), error = %error, "the Worker's exit can't be waited for; the job is ended");
            return finish(host, job, on_end).await;
        }
    };
    let mut changes = watch_changes(&job);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    loop {
        tokio::select! {
            _ = exit.wait() => break,
            Some(notice) = notices.recv() => {
                let job = Arc::clone(&job);
                blocking(move || job.recorder.posture(notice, job.posture())).await;
            }
            Some(change) = changes.recv() => {
                let job = Arc::clone(&job);
                blocking(move || tampering(&job, &change)).await;
            }
            _ = tick.tick() => {
                let job = Arc::clone(&job);
                blocking(move || keep_up(&job)).await;
            }
        }
    }
    finish(host, job, on_end).await;
}

async fn finish(host: Arc<Host>, job: Arc<Job>, on_end: impl FnOnce(&Job) + Send + 'static) {
    blocking(move || {
        end(&host, &job, "the Worker has exited");
        on_end(&job);
    })
    .await;
}

/// Runs what may block without holding up other jobs; a panic in it is logged and costs this job's step only.
async fn blocking(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!(error = %error, "a step of a job's life failed");
    }
}

/// Changes of nftables in the job's network namespace that others make.
fn watch_changes(job: &Arc<Job>) -> mpsc::Receiver<Change> {
    let (send, changes) = mpsc::channel(WAITING_CHANGES);
    let watching =
        job.worker.network_namespace().map_err(|error| with_causes(&error)).and_then(|namespace| {
            let table = Arc::clone(&job.table);
            ChangeWatcher::start(namespace.into(), table.port_id(), move |change| {
                // When the queue is full its findings are already evidence enough.
                let _ = send.try_send(change);
            })
            .map_err(|error| with_causes(&error))
        });
    match watching {
        Ok(watcher) => {
            *job.changes.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(watcher)
        }
        Err(problem) => job.note_gap(format!(
            "changes of the packet filter by others can't be noticed: {problem}"
        )),
    }
    changes
}

/// Somebody else changed the packet filter: evidence, and our rules are put back if they suffered.
fn tampering(job: &Job, change: &Change) {
    let verified = job.table.verify();
    let outcome = match &verified {
        Ok(()) => "our rules are untouched".to_owned(),
        Err(problem) => {
            let problem = with_causes(problem);
            match job.put_rules_back() {
                Ok(()) => format!("our rules had changed ({problem}) and were put back"),
                Err(error) => format!(
                    "our rules have changed ({problem}) and could not be put back: {}",
                    with_causes(&error)
                ),
            }
        }
    };
    let process = change.process.as_ref().map(|(pid, name)| Process {
        pid: Some(*pid),
        exe: Some(name.clone()),
        ..Process::default()
    });
    let known = process.as_ref().and_then(|process| process.pid).and_then(|pid| job.process(pid));
    job.recorder.detection(DetectionEvent {
        detection: DetectionType::Recorded(RecordedDetection::FirewallTampering),
        evidence: format!("{change}; {outcome}"),
        is_lockdown: false,
        process: known.or(process),
    });
    if verified.is_err() {
        job.note_gap(format!("somebody changed the packet filter: {outcome}"));
    }
}

/// Writes repeats down and prolongs the addresses of connections that are open but idle.
fn keep_up(job: &Job) {
    if job.recorder.has_repeats() {
        job.recorder.write_repeats();
    }
    match idle_grants(job) {
        Ok(grants) if grants.is_empty() => {}
        Ok(grants) => {
            if let Err(error) = job.table.add_grants(&grants) {
                job.note_gap(format!(
                    "addresses of open connections could not be kept open: {}",
                    with_causes(&error)
                ));
            }
        }
        Err(problem) => {
            tracing::warn!(job.id = job.id(), problem, "idle connections can't be looked at")
        }
    }
}

/// Grants for the remote ends of the job's open connections whose addresses would close soon.
fn idle_grants(job: &Job) -> Result<Vec<Grant>, String> {
    let expiring: Vec<_> = job
        .table
        .list_grants()
        .map_err(|error| with_causes(&error))?
        .into_iter()
        .filter(|grant| grant.remaining < TICK * 2)
        .collect();
    if expiring.is_empty() {
        return Ok(Vec::new());
    }
    let sockets = job.sensor.diagnostics().connected().map_err(|error| with_causes(&error))?;
    let mut grants = Vec::new();
    for socket in sockets {
        let flow = socket.flow();
        let remote = flow.destination;
        let Some(grant) = expiring
            .iter()
            .find(|grant| grant.address == remote.ip() && grant.ports.contains(remote.port()))
        else {
            continue;
        };
        grants.extend(job.book.grant_again(grant.address, grant.protocol, grant.ports, TICK * 5));
    }
    Ok(grants)
}
