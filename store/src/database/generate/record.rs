//! What is recorded of a made job beside its calls: what it executed, what was detected, and its report.

use super::super::unsigned;
use jiff::{SignedDuration, Timestamp};
use portcullis_common::event::{
    Ancestor, DetectionEvent, DetectionType, EnforcementScope, Event, EventKind, Feature,
    FeatureState, PolicyReference, Posture, PostureLevel, Process, ProcessEvent, RecordedDetection,
};
use portcullis_common::policy::{EgressMode, LockdownDetection};
use portcullis_common::report::Report;
use portcullis_common::resolution::{Identity, ScopeKind};

/// Programs that each job executes.
pub(super) const PROGRAMS_OF_JOB: u32 = 30;

/// Of so many jobs one has a detection.
pub(super) const JOBS_OF_DETECTION: u32 = 10;

/// The first process of a job's step; the programs are its children, or those of the one before.
const SHELL_PID: u32 = 1000;

/// The events of one job after its calls, whose last has the number `last_seq`: a tree of programs in two steps, and for each
/// tenth job a detection, of which each third had killed it.
pub(super) fn events(
    job_id: &str,
    job_number: u32,
    started_at: Timestamp,
    last_seq: u64,
) -> Vec<Event> {
    let programs = (0..PROGRAMS_OF_JOB)
        .map(|number| EventKind::Process(ProcessEvent { process: program(number), count: 1 }));
    let detection = (job_number.is_multiple_of(JOBS_OF_DETECTION))
        .then(|| EventKind::Detection(detection(job_number / JOBS_OF_DETECTION)));
    programs
        .chain(detection)
        .zip(1_u32..)
        .map(|(kind, number)| Event {
            job_id: job_id.to_owned(),
            seq: last_seq + u64::from(number),
            time: started_at + SignedDuration::from_millis(i64::from(number) * 100),
            kind,
        })
        .collect()
}

/// Three in a row are one branch: a shell, a compiler, an assembler.
fn program(number: u32) -> Process {
    const BRANCH: [&str; 3] = ["/usr/bin/make", "/usr/bin/gcc", "/usr/bin/as"];
    let depth = number % 3;
    let pid = SHELL_PID + 1 + number;
    let ancestors = (1..=depth)
        .map(|above| (pid - above, BRANCH[(depth - above) as usize]))
        .chain([(SHELL_PID, "/usr/bin/bash")])
        .map(|(pid, exe)| Ancestor { pid, exe: exe.to_owned() })
        .collect();
    let exe = BRANCH[depth as usize];
    Process {
        pid: Some(pid),
        start_time: Some(u64::from(pid)),
        exe: Some(exe.to_owned()),
        argv: vec![exe.to_owned(), format!("part-{number}")],
        uid: Some(1001),
        cwd: Some("/home/runner/work".to_owned()),
        ancestors,
        step: Some(if number < PROGRAMS_OF_JOB / 2 { "build" } else { "test" }.to_owned()),
    }
}

fn detection(number: u32) -> DetectionEvent {
    let (detection, evidence) = match number % 3 {
        0 => (
            DetectionType::Lockdown(LockdownDetection::ReverseShell),
            "bash (pid 1001): standard input and output lead to 203.0.113.9:4444",
        ),
        1 => (DetectionType::Recorded(RecordedDetection::SudoUse), "sudo (pid 1001) became user 0"),
        _ => (
            DetectionType::Recorded(RecordedDetection::SourceFileOverwritten),
            "/home/runner/work/src/main.c was overwritten by as (pid 1003)",
        ),
    };
    DetectionEvent {
        detection,
        evidence: evidence.to_owned(),
        is_lockdown: number.is_multiple_of(3),
        process: Some(program(number % PROGRAMS_OF_JOB)),
    }
}

/// What was in force on a host: on each fifth something is weaker than it could be.
pub(super) fn posture(host_number: u32) -> Posture {
    let is_degraded = host_number % 5 == 4;
    let feature = |name: &str, state, reason: &str| Feature {
        name: name.to_owned(),
        state,
        reason: reason.to_owned(),
    };
    let owner = if is_degraded {
        feature("table-owner", FeatureState::Missing, "this kernel is older than 5.12")
    } else {
        feature("table-owner", FeatureState::Active, "nobody else can change the table")
    };
    Posture {
        level: if is_degraded { PostureLevel::Degraded } else { PostureLevel::Enforced },
        scope: EnforcementScope::Job,
        features: vec![feature("nftables", FeatureState::Active, "read back and verified"), owner],
        warnings: is_degraded
            .then(|| "table-owner: this kernel is older than 5.12".to_owned())
            .into_iter()
            .collect(),
    }
}

/// A report with these sums; its destinations are the sums of the calls, and stored as such.
pub(super) fn report(
    job_id: &str,
    organization: &str,
    posture: Posture,
    (allowed, blocked): (i64, i64),
) -> Report {
    Report {
        job_id: job_id.to_owned(),
        policy: PolicyReference {
            name: "generated".to_owned(),
            version: "1".to_owned(),
            scope: ScopeKind::Organization,
        },
        target: organization.to_owned(),
        identity: Identity::Asserted,
        mode: EgressMode::Block,
        posture,
        allowed: unsigned(allowed),
        blocked: unsigned(blocked),
        would_block: 0,
        destinations: Vec::new(),
        destinations_left_out: 0,
        detections: Vec::new(),
        fail_job: false,
    }
}
