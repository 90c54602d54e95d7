use super::*;
use crate::caller::testing::{FakeRunner, eventually};
use crate::caller::{ProcFs, ProcessTable, lineage};
use crate::cgroup::Hierarchy;
use crate::record::singles::MAX_SINGLES;
use portcullis_common::event::{EventKind, RecordedDetection};
use portcullis_common::policy::LockdownDetection;
use portcullis_common::resolution::ScopeKind;
use std::path::Path;
use std::time::Duration;

const SHELL: DetectionType = DetectionType::Lockdown(LockdownDetection::ReverseShell);

fn mode(enabled: bool, detections: &[LockdownDetection]) -> LockdownMode {
    LockdownMode { enabled, detections: detections.to_vec() }
}

#[test]
fn only_what_is_listed_and_switched_on_kills() {
    let both = [LockdownDetection::ReverseShell, LockdownDetection::PrivilegedContainer];
    assert_eq!(decide(SHELL, &mode(true, &both)), Decision::Lockdown);
    assert_eq!(decide(SHELL, &mode(false, &both)), Decision::Record);
    assert_eq!(
        decide(SHELL, &mode(true, &[LockdownDetection::RunnerWorkerMemoryRead])),
        Decision::Record
    );
    assert_eq!(decide(SHELL, &mode(true, &[])), Decision::Record);
    let recorded = DetectionType::Recorded(RecordedDetection::SudoUse);
    assert_eq!(decide(recorded, &mode(true, &both)), Decision::Record);
}

#[derive(Debug, Default)]
struct NoContainers;

impl JobContainers for NoContainers {
    fn kill(&self, _: Duration) -> (usize, Vec<String>) {
        (0, Vec::new())
    }
}

/// A job with a Worker and a cgroup of its own.
struct FakeJob {
    runner: FakeRunner,
    group: JobCgroup,
    worker: Arc<Worker>,
    recorder: Arc<Recorder>,
    spool: tempfile::TempDir,
}

impl FakeJob {
    fn start(name: &str) -> Self {
        let mut runner = FakeRunner::start();
        let pid: u32 = runner.ask("sleep 1000 >/dev/null & echo $!").parse().unwrap();
        let found = lineage(&ProcFs, ProcFs.key(pid).unwrap()).unwrap();
        let worker = Worker::open(found.worker().unwrap()).unwrap();
        let hierarchy = Hierarchy::find().unwrap();
        let id = format!("{name}{}", std::process::id());
        let group = JobCgroup::create(&hierarchy, worker.key(), &id).unwrap();
        let spool = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::open(spool.path(), &id).unwrap());
        Self { runner, group, worker: Arc::new(worker), recorder, spool }
    }

    fn responder(&self, lockdown: LockdownMode) -> Responder {
        Responder::new(Parts {
            job_id: "1".to_owned(),
            policy: PolicyReference {
                name: "hello".to_owned(),
                version: "1".to_owned(),
                scope: ScopeKind::Repository,
            },
            lockdown,
            worker: Arc::clone(&self.worker),
            group: Some(self.group.clone()),
            containers: Arc::new(NoContainers),
            recorder: Arc::clone(&self.recorder),
        })
    }

    fn detections(&self) -> Vec<DetectionEvent> {
        read(self.spool.path())
    }
}

impl Drop for FakeJob {
    fn drop(&mut self) {
        let _ = self.group.end(Duration::from_secs(20));
    }
}

fn read(spool: &Path) -> Vec<DetectionEvent> {
    let text = std::fs::read_to_string(spool.join("events.ndjson")).unwrap();
    let events = text
        .lines()
        .map(|line| serde_json::from_str::<portcullis_common::event::Event>(line).unwrap());
    events
        .filter_map(|event| match event.kind {
            EventKind::Detection(detection) => Some(detection),
            _ => None,
        })
        .collect()
}

fn finding() -> Finding {
    Finding::new(SHELL, "bash (pid 7) talks to 203.0.113.66", None)
}

#[test]
fn a_lockdown_kills_the_worker_and_all_below_it_and_says_so() {
    let job = FakeJob::start("lockdown");
    let responder = job.responder(mode(true, &[LockdownDetection::ReverseShell]));
    let members = job.group.processes().unwrap();
    assert!(members.len() >= 2, "{members:?}");
    assert_eq!(responder.answer(finding()), Decision::Lockdown);
    assert!(responder.is_locked_down());
    assert!(job.worker.has_exited().unwrap());
    eventually("the group is empty", || job.group.processes().unwrap().is_empty().then_some(()));
    let recorded = job.detections();
    assert_eq!(recorded.len(), 1);
    assert!(recorded[0].is_lockdown);
    assert!(recorded[0].evidence.contains("Worker dead after"), "{}", recorded[0].evidence);
    // A second finding kills nobody and is told all the same.
    responder.answer(finding());
    let recorded = job.detections();
    assert_eq!(recorded.len(), 2);
    assert!(!recorded[1].is_lockdown);
}

#[test]
fn without_lockdown_nothing_dies() {
    let mut job = FakeJob::start("recorded");
    let responder = job.responder(mode(false, &[LockdownDetection::ReverseShell]));
    assert_eq!(responder.answer(finding()), Decision::Record);
    assert!(!job.worker.has_exited().unwrap());
    assert_eq!(job.runner.ask("echo alive"), "alive");
    let recorded = job.detections();
    assert_eq!(recorded.len(), 1);
    assert!(!recorded[0].is_lockdown);
    // A flood is bounded: some are written one by one, more are counted, the rest is told at the end.
    for _ in 0..2 * RECORDED_OF_TYPE {
        responder.answer(finding());
    }
    assert_eq!(job.detections().len() as u64, MAX_SINGLES);
    assert_eq!(responder.not_recorded(), RECORDED_OF_TYPE + 1);
    assert!(ProcFs.process(job.worker.pid()).is_some());
}
