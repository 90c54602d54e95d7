//! Who reaches for the memory of a runner, where the kernel's sensors can't be loaded: by fanotify on procfs, and by audit.
//!
//! It is told afterwards: the reader has the descriptor by then, and is killed before it has read much or nothing. Of procfs only
//! the superblock that is mounted at `/proc` is watched. Audit tells who attaches by `ptrace` and who copies memory by
//! `process_vm_readv`, once it is done; `pidfd_getfd`, `perf_event_open` and `io_uring` are not seen. Unprivileged readers are
//! refused by the kernel, for the Worker and its Listener are not dumpable.

use crate::caller::{ProcFs, ProcessKey, Worker};
use crate::detect::memory_read::{
    AccessOutcome, MemoryAccess, MemoryAccessKind, MemoryTarget, TrustedReaders, memory_read,
};
use crate::respond::Responder;
use crate::sys::fanotify::{FileEvent, FileEvents, opened_on_procfs};
use crate::watch::attribution::ProcfsSensor;
use crate::watch::audit::{AuditReader, Way};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_common::event::{DetectionType, Process};
use portcullis_common::policy::LockdownDetection;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Readers of which an access of each kind is remembered, so that a loop of reads is one finding.
const REMEMBERED_READERS: usize = 4_096;

/// How long a killed tracer may take to end before what it has stopped is woken.
const TRACER_PATIENCE: Duration = Duration::from_secs(1);

/// What a watch needs of its job.
#[derive(Debug)]
pub(super) struct Watched {
    /// The job's Worker.
    pub(super) worker: Arc<Worker>,
    /// Snapshots of processes.
    pub(super) sensor: Arc<ProcfsSensor>,
    /// Where findings go.
    pub(super) responder: Arc<Responder>,
}

/// Starts the threads; they end with the Worker. `failed` is told what can't be noticed, and when events were lost.
pub(super) fn start(watched: Watched, failed: impl Fn(String) + Clone + Send + 'static) {
    let judge = Arc::new(Judge::new(watched));
    // First, and apart: audit takes a moment until it is known to tell anything, and the job runs already.
    let (of_opens, late) = (Arc::clone(&judge), failed.clone());
    let opens = opened_on_procfs().and_then(|events| {
        thread::Builder::new().name("memory-opens".to_owned()).spawn(move || {
            if let Err(error) = watch(&of_opens, &events, &late) {
                late(format!("who opens a runner's memory can't be told any more: {error}"));
            }
        })
    });
    if let Err(error) = opens {
        failed(format!("who opens a runner's memory can't be told: {error}"));
    }
    let late = failed.clone();
    let calls = thread::Builder::new().name("memory-calls".to_owned()).spawn(move || {
        match follow_calls(Arc::clone(&judge), late.clone()) {
            Ok(_followed) => {
                let _ = judge.watched.worker.wait_exit(Duration::MAX);
            }
            Err(error) => {
                late(format!("who traces a runner or copies its memory can't be told: {error}"));
            }
        }
    });
    if let Err(error) = calls {
        failed(format!("who traces a runner or copies its memory can't be told: {error}"));
    }
}

/// What both watches of a job share.
#[derive(Debug)]
struct Judge {
    watched: Watched,
    trusted: TrustedReaders,
    /// Who has reached for what already.
    seen: Mutex<HashSet<(ProcessKey, u32, MemoryAccessKind)>>,
}

impl Judge {
    fn new(watched: Watched) -> Self {
        let own = std::process::id();
        let trusted = TrustedReaders {
            monitor: ProcFs.key(own).unwrap_or(ProcessKey { pid: own, start_time: 0 }),
            worker: watched.worker.key(),
            listener: watched.worker.listener(),
        };
        Self { watched, trusted, seen: Mutex::default() }
    }

    fn target(&self, pid: u32) -> Option<MemoryTarget> {
        if pid == self.trusted.monitor.pid {
            Some(MemoryTarget::Monitor)
        } else if pid == self.trusted.worker.pid {
            Some(MemoryTarget::Worker)
        } else if self.trusted.listener.is_some_and(|listener| listener.pid == pid) {
            Some(MemoryTarget::Listener)
        } else {
            None
        }
    }

    fn judge(&self, pid: u32, target_pid: u32, kind: MemoryAccessKind) {
        let Some(target) = self.target(target_pid) else { return };
        let reader = ProcFs.key(pid).unwrap_or(ProcessKey { pid, start_time: 0 });
        let inspected = self.watched.sensor.inspector().inspect(reader);
        let process = inspected.map_or_else(
            || Process { pid: Some(pid), ..Process::default() },
            |process| Process::clone(&process),
        );
        let access = MemoryAccess {
            reader,
            process,
            target,
            target_pid,
            kind,
            outcome: AccessOutcome::Unknown,
        };
        let Some(finding) = memory_read(&access, &self.trusted) else { return };
        let detection = DetectionType::Lockdown(LockdownDetection::RunnerWorkerMemoryRead);
        if self.watched.responder.would_lock_down(detection) {
            // Before anything else: it may be reading. A reader outside of the job is in no group that dies with it.
            let _ = crate::caller::kill(reader);
            if kind == MemoryAccessKind::Ptrace {
                wake_after(reader, target_pid);
            }
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= REMEMBERED_READERS {
            seen.clear();
        }
        if seen.insert((reader, target_pid, kind)) {
            drop(seen);
            self.watched.responder.answer(finding);
        }
    }
}

/// What a tracer stopped stays so when the tracer is killed.
fn wake_after(tracer: ProcessKey, target: u32) {
    let deadline = Instant::now() + TRACER_PATIENCE;
    while ProcFs.is_alive(tracer) && Instant::now() < deadline {
        thread::sleep(TRACER_PATIENCE / 100);
    }
    let stat = procfs::process::Process::new(target.cast_signed()).and_then(|target| target.stat());
    if stat.is_ok_and(|stat| stat.state == 'T') {
        let _ = kill(Pid::from_raw(target.cast_signed()), Signal::SIGCONT);
    }
}

fn watch(judge: &Judge, events: &FileEvents, failed: &impl Fn(String)) -> io::Result<()> {
    let own = std::process::id();
    let mut has_lost = false;
    loop {
        let mut waiting = [
            PollFd::new(events.as_fd(), PollFlags::POLLIN),
            PollFd::new(judge.watched.worker.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let has_exited = waiting[1].any().unwrap_or(true);
        for event in events.take()? {
            match event {
                FileEvent::File { pid, .. } if pid == own => {}
                FileEvent::File { file, pid } => {
                    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
                    if let Some(target) = path.ok().and_then(|path| whose_memory(&path)) {
                        judge.judge(pid, target, MemoryAccessKind::ProcMem);
                    }
                }
                FileEvent::Lost if has_lost => {}
                FileEvent::Lost => {
                    has_lost = true;
                    failed("so many files of procfs were opened at once that not all were looked at: a read of the runner's memory may have gone unnoticed".to_owned());
                }
            }
        }
        if has_exited {
            return Ok(());
        }
    }
}

/// Judges what audit tells, until the reader is dropped.
fn follow_calls(
    judge: Arc<Judge>,
    failed: impl Fn(String) + Send + 'static,
) -> io::Result<AuditReader> {
    let mut has_lost = false;
    AuditReader::start(move |reach| {
        let Some(reach) = reach else {
            if !has_lost {
                failed("so many calls were told by audit at once that not all were looked at: a read of the runner's memory may have gone unnoticed".to_owned());
            }
            has_lost = true;
            return;
        };
        let (kind, target) = match reach.way {
            Way::Ptrace => (MemoryAccessKind::Ptrace, Some(reach.into)),
            Way::VmRead => (MemoryAccessKind::ProcessVmRead, process_of_thread(reach.into)),
            Way::VmWrite => (MemoryAccessKind::ProcessVmWrite, process_of_thread(reach.into)),
        };
        if let Some(target) = target {
            judge.judge(reach.by, target, kind);
        }
    })
}

/// The process of a thread.
fn process_of_thread(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// The process whose memory the file is: `…/PID/mem` or `…/PID/task/TID/mem` of any mount.
fn whose_memory(path: &Path) -> Option<u32> {
    let mut parts = path.components().rev().map(|part| part.as_os_str().to_str());
    if parts.next()?? != "mem" {
        return None;
    }
    let number = parts.next()??;
    let process = match parts.next() {
        Some(Some("task")) => parts.next()??,
        _ => number,
    };
    process.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::lineage;
    use crate::caller::testing::{FakeRunner, eventually};
    use crate::record::recorder::Recorder;
    use crate::respond::Parts;
    use crate::respond::containers::JobContainers;
    use crate::watch::audit::tests::{is_first_network_namespace, uses_rules};
    use portcullis_common::event::PolicyReference;
    use portcullis_common::policy::LockdownMode;
    use portcullis_common::resolution::ScopeKind;

    #[test]
    fn memory_is_known_by_its_path_on_any_mount() {
        for (path, pid) in [
            ("/proc/812/mem", Some(812)),
            ("/proc/812/task/815/mem", Some(812)),
            ("/mnt/other/812/mem", Some(812)),
            ("/812/mem", Some(812)),
            ("/proc/812/maps", None),
            ("/proc/812/net/mem", None),
            ("/dev/mem", None),
        ] {
            assert_eq!(whose_memory(Path::new(path)), pid, "{path}");
        }
    }

    #[test]
    fn an_opened_memory_is_told_with_who_opened_it() {
        let events = opened_on_procfs().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "exec 3</proc/$PPID/mem; exec sleep 1000"])
            .spawn()
            .unwrap();
        let own = std::process::id();
        eventually("the event", || {
            events.take().unwrap().into_iter().find_map(|event| match event {
                FileEvent::File { file, pid } if pid == child.id() => {
                    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
                    (whose_memory(&path.ok()?)? == own).then_some(())
                }
                _ => None,
            })
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[derive(Debug)]
    struct NoContainers;

    impl JobContainers for NoContainers {
        fn kill(&self, _: Duration) -> (usize, Vec<String>) {
            (0, Vec::new())
        }
    }

    /// Without a lockdown it is only recorded, so that the Worker stays and the watch with it.
    #[test]
    fn who_copies_the_workers_memory_is_found_as_long_as_it_runs() {
        if !is_first_network_namespace() {
            return;
        }
        let mut runner = FakeRunner::start();
        let pid: u32 = runner.ask("sleep 1000 >/dev/null & echo $!").parse().unwrap();
        let found = lineage(&ProcFs, ProcFs.key(pid).unwrap()).unwrap();
        let worker = Arc::new(Worker::open(found.worker().unwrap()).unwrap());
        let spool = tempfile::tempdir().unwrap();
        let responder = Responder::new(Parts {
            job_id: "1".to_owned(),
            policy: PolicyReference {
                name: "hello".to_owned(),
                version: "1".to_owned(),
                scope: ScopeKind::Repository,
            },
            lockdown: LockdownMode { enabled: false, detections: Vec::new() },
            worker: Arc::clone(&worker),
            group: None,
            containers: Arc::new(NoContainers),
            recorder: Arc::new(Recorder::open(spool.path(), "1").unwrap()),
        });
        let watched = Watched {
            worker: Arc::clone(&worker),
            sensor: Arc::new(ProcfsSensor::new(&worker, None).unwrap()),
            responder: Arc::new(responder),
        };
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let told = Arc::clone(&failures);
        start(watched, move |failure| told.lock().unwrap().push(failure));

        let script = format!(
            "import ctypes\nc=ctypes.CDLL(None)\nb=ctypes.create_string_buffer(8)\nclass V(ctypes.Structure): _fields_=[('b',ctypes.c_void_p),('n',ctypes.c_size_t)]\na=int(next(l for l in open('/proc/{0}/maps') if 'stack' in l).split('-')[0],16)\nassert c.process_vm_readv({0},ctypes.byref(V(ctypes.addressof(b),8)),1,ctypes.byref(V(a,8)),1,0)==8",
            worker.pid()
        );
        // The first time may come before anybody looks, and each reader is one finding.
        eventually("two readers are recorded", || {
            let output = std::process::Command::new("python3").args(["-c", &script]).output();
            assert!(output.unwrap().status.success());
            let events = fs::read_to_string(spool.path().join("events.ndjson")).unwrap();
            (events.matches("by process_vm_readv").count() >= 2).then_some(())
        });
        assert!(failures.lock().unwrap().is_empty(), "{failures:?}");
        assert!(uses_rules());
        drop(runner);
        eventually("the rules are left to others", || (!uses_rules()).then_some(()));
    }
}
