//! A running job: waits for its Worker's exit, undoes tampering, keeps used addresses open, writes repeats down.

use super::Job;
use super::end::end;
use super::host::Host;
use crate::containers::facts::cgroup_of;
use crate::containers::identity::id_in_path;
use crate::egress::grant::Grant;
use crate::nftables::{Change, ChangeWatcher, Notice, ObjectKind};
use crate::sys::memory;
use crate::sys::readiness::watch_readable;
use crate::watch::worker_exit::WorkerExit;
use portcullis_common::event::{DetectionEvent, DetectionType, Process, RecordedDetection};
use portcullis_common::hook::with_causes;
use portcullis_common::text::log_line;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// How often repeats are written down and connections that are open but idle have their addresses prolonged. Well below
/// the grace period, and seldom enough that an idle monitor does nothing worth measuring.
const TICK: Duration = Duration::from_mins(1);

/// How often memory that is free is given back: what reading the policy has used, and what bursts of events leave.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// Events after which there is something to give back.
const GIVE_BACK_EVENTS: u64 = 4_096;

/// Actions of one change that its evidence lists.
const SHOWN_ACTIONS: usize = 8;

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
    let mut tampering = match Tampering::watch(&job) {
        Ok(tampering) => Some(tampering),
        Err(problem) => {
            job.note_gap(format!(
                "changes of the packet filter by others can't be noticed: {problem}"
            ));
            None
        }
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    let mut giving_back = interval(GIVE_BACK);
    giving_back.set_missed_tick_behavior(MissedTickBehavior::Delay);
    giving_back.reset();
    // The first time in any case.
    let mut given_back_at = None;
    loop {
        tokio::select! {
            _ = exit.wait() => break,
            Some(notice) = notices.recv() => {
                let job = Arc::clone(&job);
                blocking(move || job.recorder.posture(notice, job.posture())).await;
            }
            noticed = next_notices(&mut tampering) => match noticed {
                Ok(notices) => {
                    let job = Arc::clone(&job);
                    blocking(move || notices.iter().for_each(|notice| tampered(&job, notice))).await;
                }
                Err(error) => {
                    tampering = None;
                    job.note_gap(format!("changes of the packet filter by others can't be noticed any more: {error}"));
                }
            },
            _ = giving_back.tick() => {
                let events = job.recorder.totals().events;
                if given_back_at.is_none_or(|at| events >= at + GIVE_BACK_EVENTS) {
                    let is_first = given_back_at.replace(events).is_none();
                    let host = Arc::clone(&host);
                    blocking(move || {
                        if is_first {
                            host.prepare_next();
                        }
                        memory::give_back();
                    })
                    .await;
                }
            }
            _ = tick.tick() => {
                let (host, job) = (Arc::clone(&host), Arc::clone(&job));
                blocking(move || {
                    keep_up(&host, &job);
                    // What listing thousands of open addresses has used.
                    memory::give_back();
                })
                .await;
            }
        }
    }
    finish(host, job, on_end).await;
}

async fn finish(host: Arc<Host>, job: Arc<Job>, on_end: impl FnOnce(&Job) + Send + 'static) {
    blocking(move || {
        end(&host, &job, "the Worker has exited");
        on_end(&job);
        // What it takes to know a job.
        drop(job);
        host.prepare_next();
        memory::give_back();
    })
    .await;
}

/// Runs what may block without holding up other jobs; a panic in it is logged and costs this job's step only.
pub(super) async fn blocking(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!(error = %error, "a step of a job's life failed");
    }
}

/// Sees what others do to nftables in the job's network namespace.
#[derive(Debug)]
struct Tampering {
    watcher: ChangeWatcher,
    readable: AsyncFd<OwnedFd>,
}

impl Tampering {
    fn watch(job: &Job) -> Result<Self, String> {
        let namespace = job.worker.network_namespace().map_err(|error| with_causes(&error))?;
        let watcher =
            ChangeWatcher::open(namespace.as_fd()).map_err(|error| with_causes(&error))?;
        let readable = watcher
            .as_fd()
            .try_clone_to_owned()
            .and_then(watch_readable)
            .map_err(|error| with_causes(&error))?;
        Ok(Self { watcher, readable })
    }

    /// Waits for what others do. Never returns without something to look at; can be cancelled.
    async fn next(&mut self) -> io::Result<Vec<Notice>> {
        loop {
            let mut ready = self.readable.readable().await?;
            let notices = self.watcher.take()?;
            ready.clear_ready();
            if !notices.is_empty() {
                return Ok(notices);
            }
        }
    }
}

/// Waits for tampering; for ever when it can't be watched.
async fn next_notices(tampering: &mut Option<Tampering>) -> io::Result<Vec<Notice>> {
    match tampering {
        Some(tampering) => tampering.next().await,
        None => std::future::pending().await,
    }
}

/// Somebody else changed the packet filter: evidence, and our rules are put back if they suffered.
fn tampered(job: &Job, notice: &Notice) {
    let verified = job.table.verify();
    if let (Ok(()), Notice::Changed(change)) = (&verified, notice)
        && !opens_addresses(job, notice)
        && is_of_an_engine(job, change)
    {
        tracing::debug!(job.id = job.id(), "{}; our rules are untouched", describe(change));
        return;
    }
    let outcome = match &verified {
        Ok(()) if !opens_addresses(job, notice) => "our rules are untouched".to_owned(),
        Ok(()) => match job.put_rules_back() {
            Ok(()) => "the addresses that are open in our table were set back".to_owned(),
            Err(error) => format!(
                "the addresses that are open in our table could not be set back: {}",
                with_causes(&error)
            ),
        },
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
    let (what, process) = match notice {
        Notice::Changed(change) => (describe(change), culprit(job, change)),
        Notice::Lost => {
            ("so many changes of the packet filter that not all could be read".to_owned(), None)
        }
    };
    job.recorder.detection(DetectionEvent {
        detection: DetectionType::Recorded(RecordedDetection::FirewallTampering),
        evidence: format!("{what}; {outcome}"),
        is_lockdown: false,
        process,
    });
    if verified.is_err() {
        job.note_gap(format!("somebody changed the packet filter: {outcome}"));
    }
}

/// Whether somebody else may have changed which addresses are open: the elements of those sets come and go, so that they
/// are no part of what is verified. An owner of the table is refused by the kernel to everybody else.
fn opens_addresses(job: &Job, notice: &Notice) -> bool {
    match notice {
        Notice::Changed(change) => {
            change.more_actions > 0
                || change.actions.iter().any(|action| {
                    action.object == ObjectKind::Elements
                        && action.table == job.table.name().as_str()
                })
        }
        Notice::Lost => true,
    }
}

/// Programs by which container engines write their own rules when they make networks and containers.
const ENGINE_PROGRAMS: [&str; 4] = ["dockerd", "iptables", "ip6tables", "netavark"];

/// Whether a change that left our rules alone is an engine's: one of its programs, and neither the job nor a container. A
/// program that has ended already is known by its name only; it could lie, and gains nothing by it.
fn is_of_an_engine(job: &Job, change: &Change) -> bool {
    let is_named = change.process.as_deref().is_some_and(|name| ENGINE_PROGRAMS.contains(&name));
    let group = change.pid.and_then(cgroup_of);
    let is_jobs = group.is_some_and(|group| {
        id_in_path(&group).is_some()
            || job.group.as_ref().is_some_and(|own| group.starts_with(&own.identity().path))
    });
    is_named && !is_jobs
}

/// The process that made a change: as its sensor knows it, or the name and number that the kernel told.
fn culprit(job: &Job, change: &Change) -> Option<Process> {
    let told = Process { pid: change.pid, exe: change.process.clone(), ..Process::default() };
    change.pid.and_then(|pid| job.process(pid)).or_else(|| told.pid.map(|_| told))
}

fn describe(change: &Change) -> String {
    let mut out = String::from("the packet filter was changed:");
    for action in change.actions.iter().take(SHOWN_ACTIONS) {
        // Writing to a String can't fail.
        let _ = write!(
            out,
            " {:?} {:?} {} {};",
            action.kind,
            action.object,
            log_line(&action.table, 64),
            log_line(&action.name, 64)
        );
    }
    let shown = change.actions.len().min(SHOWN_ACTIONS);
    let more = change.more_actions + (change.actions.len() - shown) as u64;
    if more > 0 {
        let _ = write!(out, " and {more} more;");
    }
    out.pop();
    out
}

/// Writes repeats down, follows the machine's own services, and prolongs the addresses of connections that are open but idle.
fn keep_up(host: &Host, job: &Job) {
    if job.recorder.has_repeats() {
        job.recorder.write_repeats();
    }
    if let Err(problem) = job.follow_infrastructure(host.infrastructure_groups()) {
        job.note_gap(format!(
            "services of the machine that were started anew are not exempt: {problem}"
        ));
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
            tracing::warn!(job.id = job.id(), problem, "idle connections can't be looked at");
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
    let sockets =
        job.sensors.sockets.diagnostics().connected().map_err(|error| with_causes(&error))?;
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
