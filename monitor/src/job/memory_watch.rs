//! Who opens the memory of a runner, where the kernel's sensors can't be loaded: by fanotify on procfs.
//!
//! It is told afterwards: the reader has the descriptor by then, and is killed before it has read much or nothing. Only the
//! superblock of procfs that is mounted at `/proc` is watched; a new mount in another pid namespace, `ptrace` and
//! `process_vm_readv` are not seen. Unprivileged readers are refused by the kernel, for the Worker and its Listener are not
//! dumpable.

use crate::caller::{ProcFs, ProcessKey, Worker};
use crate::detect::memory_read::{
    AccessOutcome, MemoryAccess, MemoryAccessKind, MemoryTarget, TrustedReaders, memory_read,
};
use crate::respond::Responder;
use crate::sys::fanotify::{FileEvent, FileEvents, opened_on_procfs};
use crate::watch::attribution::ProcfsSensor;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portcullis_common::event::{DetectionType, Process};
use portcullis_common::policy::LockdownDetection;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;

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

/// Starts the thread; it ends with the Worker. `failed` is told when events were lost.
///
/// # Errors
/// When the kernel can't tell.
pub(super) fn start(watched: Watched, failed: impl Fn(String) + Send + 'static) -> io::Result<()> {
    let events = opened_on_procfs()?;
    thread::Builder::new()
        .name("memory-opens".to_owned())
        .spawn(move || {
            if let Err(error) = watch(&watched, &events, &failed) {
                failed(format!("who opens a runner's memory can't be told any more: {error}"));
            }
        })
        .map(drop)
}

fn watch(watched: &Watched, events: &FileEvents, failed: &impl Fn(String)) -> io::Result<()> {
    let own = std::process::id();
    let trusted = TrustedReaders {
        monitor: ProcFs.key(own).unwrap_or(ProcessKey { pid: own, start_time: 0 }),
        worker: watched.worker.key(),
        listener: watched.worker.listener(),
    };
    let mut seen = HashSet::new();
    let mut has_lost = false;
    loop {
        let mut waiting = [
            PollFd::new(events.as_fd(), PollFlags::POLLIN),
            PollFd::new(watched.worker.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let has_exited = waiting[1].any().unwrap_or(true);
        for event in events.take()? {
            match event {
                FileEvent::File { pid, .. } if pid == own => {}
                FileEvent::File { file, pid } => judge(watched, &trusted, &mut seen, &file, pid),
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

fn judge(
    watched: &Watched,
    trusted: &TrustedReaders,
    seen: &mut HashSet<(ProcessKey, u32)>,
    file: &OwnedFd,
    pid: u32,
) {
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else { return };
    let Some(target_pid) = whose_memory(&path) else { return };
    let target = if target_pid == trusted.monitor.pid {
        MemoryTarget::Monitor
    } else if target_pid == trusted.worker.pid {
        MemoryTarget::Worker
    } else if trusted.listener.is_some_and(|listener| listener.pid == target_pid) {
        MemoryTarget::Listener
    } else {
        return;
    };
    let reader = ProcFs.key(pid).unwrap_or(ProcessKey { pid, start_time: 0 });
    let inspected = watched.sensor.inspector().inspect(reader);
    let process = inspected.map_or_else(
        || Process { pid: Some(pid), ..Process::default() },
        |process| Process::clone(&process),
    );
    let access = MemoryAccess {
        reader,
        process,
        target,
        target_pid,
        kind: MemoryAccessKind::ProcMem,
        outcome: AccessOutcome::Unknown,
    };
    let Some(finding) = memory_read(&access, trusted) else { return };
    let detection = DetectionType::Lockdown(LockdownDetection::RunnerWorkerMemoryRead);
    if watched.responder.would_lock_down(detection) {
        // Before anything else: it may be reading. A reader outside of the job is in no group that dies with it.
        let _ = crate::caller::kill(reader);
    }
    if seen.insert((reader, target_pid)) {
        watched.responder.answer(finding);
    }
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
            .args(["-c", "exec 3</proc/$PPID/mem; sleep 1000"])
            .spawn()
            .unwrap();
        let own = std::process::id();
        crate::caller::testing::eventually("the event", || {
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
}
