//! The end of a job, in this order: freeze, kill the cgroup, take the counters, write the report, remove the rules.
//!
//! The rules go last: as long as anything of the job lives, or a packet of it is on its way, it is judged.

use super::Job;
use super::detectors::Detectors;
use super::host::Host;
use super::last_known_good::write_atomically;
use super::spool_limits;
use crate::egress::log_prefix::RuleKind;
use crate::nftables::Counter;
use crate::record::reconcile::differences;
use crate::respond::containers::JobContainers;
use portcullis_common::event::{
    DetectionEvent, DetectionType, JobEvent, JobStage, RecordedDetection, RuleCounter,
};
use portcullis_common::hook::with_causes;
use portcullis_common::report::markdown;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

/// How long a killed job may take to be gone. 500 processes take 25 ms; one in an uninterruptible wait takes longer.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// How long no container of a job that was killed, or that had containers, may come before its end is believed.
const CONTAINERS_UNDER_WAY: Duration = Duration::from_secs(1);

/// How many problems with killing containers are told before it is given up.
const MAX_CONTAINER_PROBLEMS: usize = 16;

/// How long logged packets may take from the kernel's queue to the record.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two looks at the kernel's counters.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// Ends the job; blocks until everything of it is gone.
pub fn end(host: &Host, job: &Job, reason: &str) {
    // A lockdown that is under way ends first: it kills the Worker before it has written down why.
    let is_locked_down = job.responder.is_locked_down();
    kill_what_is_left(job, is_locked_down);
    kill_containers(host, job);
    if let Some(closed) = job.engine_sockets.lock().unwrap_or_else(PoisonError::into_inner).take() {
        closed.open();
    }
    job.name_services.open();
    let detectors = job.detectors.lock().unwrap_or_else(PoisonError::into_inner).take();
    let overruns = detectors.as_ref().map_or(0, Detectors::overruns);
    if overruns > 0 {
        job.note_gap(format!(
            "processes came and went faster than they could be followed ({overruns} times): use of sudo and programs without a file may have gone unnoticed"
        ));
    }
    drop(detectors);
    let resolver = job.resolver.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(resolver);
    job.dns_sink.flush();

    let counters = drained_counters(job);
    for difference in differences(&counters) {
        job.note_gap(difference);
    }
    let not_recorded = job.responder.not_recorded();
    if not_recorded > 0 {
        job.note_gap(format!(
            "{not_recorded} detections were counted and not recorded one by one: there were too many of a type"
        ));
    }
    if let Some(watched) = &job.sensors.watched {
        let lost = watched.end();
        if lost > 0 {
            job.note_gap(format!(
                "{lost} events of the kernel's sensors were lost: there were too many at once"
            ));
        }
    }
    let lost = job.dns_sink.lost() + job.recorder.totals().lost_events;
    if lost > 0 {
        job.note_gap(format!(
            "{lost} events could not be recorded: there were too many at once, or the disk is full"
        ));
    }
    let mut reason = reason.to_owned();
    if is_locked_down {
        "the job was killed by a lockdown".clone_into(&mut reason);
    }
    if job.group.is_some() {
        reason.push_str(" and its cgroup is empty");
    }
    let posture = job.posture();
    job.recorder.job(JobEvent { stage: JobStage::Ended, reason, counters });
    let spool = host.paths.spool().join(job.id());
    let report = job.recorder.report(&job.header(), posture);
    if let Err(error) = write_report(&spool, &report).and_then(|()| job.recorder.sync()) {
        tracing::error!(job.id = job.id(), error = %error, "the job's report could not be written");
    }

    if let Err(error) = job.remove_rules() {
        tracing::error!(job.id = job.id(), error = %with_causes(&error), "the job's rules could not be removed");
    }
    if let Err(error) = host.service_manager.forget(job.table.name().as_str()) {
        tracing::error!(job.id = job.id(), error = %error, "systemd could not be told to close the socket of the job's rules");
    }
    *job.packets.lock().unwrap_or_else(PoisonError::into_inner) = None;
    if let Some(Err(error)) = job.group.as_ref().map(crate::cgroup::JobCgroup::remove) {
        tracing::warn!(job.id = job.id(), error = %with_causes(&error), "the job's cgroup could not be removed");
    }
    if let Err(error) = fs::remove_dir_all(host.paths.jobs().join(job.id())) {
        tracing::error!(job.id = job.id(), error = %error, "the job's state could not be removed");
    }
    host.wake_uploads();
    spool_limits::prune(&host.paths.spool());
    let totals = job.recorder.totals();
    tracing::info!(
        job.id = job.id(),
        events = totals.events,
        blocked = totals.blocked,
        detections = totals.detections,
        "the job has ended"
    );
}

/// Freezes first, so that nothing can fork away from what kills it.
fn kill_what_is_left(job: &Job, is_locked_down: bool) {
    let Some(group) = &job.group else { return };
    if let Err(error) = group.freeze() {
        tracing::warn!(job.id = job.id(), error = %with_causes(&error), "the job could not be frozen");
    }
    // What a lockdown has killed is no left-over, even if it is not gone yet.
    let left = if is_locked_down { Vec::new() } else { group.processes().unwrap_or_default() };
    for pid in left.iter().take(32) {
        let process = job.process(*pid);
        let name = process
            .as_ref()
            .and_then(|process| process.exe.clone())
            .unwrap_or_else(|| "?".to_owned());
        job.recorder.detection(DetectionEvent {
            detection: DetectionType::Recorded(RecordedDetection::LeftOverProcess),
            evidence: format!("process {pid} ({name}) outlived the job's Worker and was killed"),
            is_lockdown: false,
            process,
        });
    }
    let killed = group.kill().and_then(|()| group.wait_empty(KILL_PATIENCE));
    match killed {
        Ok(true) => {}
        Ok(false) => job.note_gap(format!(
            "processes of the job were still there {} s after they were killed",
            KILL_PATIENCE.as_secs()
        )),
        Err(error) => job
            .note_gap(format!("the job's processes could not be killed: {}", with_causes(&error))),
    }
}

/// Kills the containers that the job leaves behind: nobody judges them once its rules are gone.
fn kill_containers(host: &Host, job: &Job) {
    if host.config.docker.keep_containers {
        return;
    }
    let mut killed = 0;
    let mut problems = Vec::new();
    let mut quiet_since = Instant::now();
    loop {
        let (of_this_pass, new_problems) = job.containers.kill(KILL_PATIENCE);
        problems.extend(new_problems);
        killed += of_this_pass;
        // An engine goes on making a container that it was asked for, although who asked is dead.
        let may_be_more = killed > 0 || job.responder.is_locked_down();
        if of_this_pass > 0 {
            quiet_since = Instant::now();
        } else if !may_be_more || quiet_since.elapsed() > CONTAINERS_UNDER_WAY {
            break;
        }
        if problems.len() > MAX_CONTAINER_PROBLEMS {
            break;
        }
        thread::sleep(CONTAINERS_UNDER_WAY / 5);
    }
    if killed > 0 {
        job.recorder.detection(DetectionEvent {
            detection: DetectionType::Recorded(RecordedDetection::LeftOverProcess),
            evidence: format!("{killed} containers outlived the job's Worker and were killed"),
            is_lockdown: false,
            process: None,
        });
    }
    for problem in problems {
        job.note_gap(problem);
    }
}

/// The kernel's counters beside the record, once the packets that are still in the kernel's queue have come through.
fn drained_counters(job: &Job) -> Vec<RuleCounter> {
    let deadline = Instant::now() + DRAIN_PATIENCE;
    loop {
        let counters = match job.table.counters() {
            Ok(counters) => counters,
            Err(error) => {
                job.note_gap(format!(
                    "the kernel's counters can't be read: {}",
                    with_causes(&error)
                ));
                return Vec::new();
            }
        };
        let beside = beside_record(job, counters);
        if differences(&beside).is_empty() || Instant::now() >= deadline {
            return beside;
        }
        thread::sleep(DRAIN_PAUSE);
    }
}

/// Counters of rules that log beside what was recorded; the others have nothing to differ from.
fn beside_record(job: &Job, counters: Vec<Counter>) -> Vec<RuleCounter> {
    let kind = |name: &str| RuleKind::ALL.into_iter().find(|kind| kind.counter() == name);
    counters
        .into_iter()
        .map(|counter| RuleCounter {
            recorded: kind(&counter.name)
                .map_or(counter.packets, |kind| job.recorder.packets(kind)),
            rule: counter.name,
            packets: counter.packets,
            bytes: counter.bytes,
        })
        .collect()
}

/// Writes the report beside the job's events; it also says that the job is over.
pub(super) fn write_report(
    spool: &Path,
    report: &portcullis_common::report::Report,
) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(report).map_err(io::Error::other)?;
    // Before the other, whose presence says that the job is over. A job that was killed shows it to nobody: its completed
    // hook does not run.
    write_atomically(&spool.join("report.md"), markdown(report).as_bytes())?;
    write_atomically(&spool.join("report.json"), &bytes)
}
