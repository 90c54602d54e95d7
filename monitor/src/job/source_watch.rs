//! Files of a job's workspace that are written: read from the kernel, and handed to
//! [`crate::detect::source_overwritten`].
//!
//! The kernel tells every write on the file system of the workspace, so a job can make as many as it likes. What that costs
//! is bounded: after each batch this rests for several times as long as it has worked, and what the kernel can't keep
//! meanwhile is lost and told.

use crate::caller::{ProcFs, Worker};
use crate::detect::source_overwritten::{SourceFiles, Write};
use crate::respond::Responder;
use crate::sys::fanotify::{FileEvent, FileEvents};
use crate::watch::attribution::ProcfsSensor;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, fstat};
use portcullis_common::event::{self, Process};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// A rest of this many times the work follows each batch.
const REST: u32 = 4;

/// Overwritten files of a job that have an event each. A job that overwrites more is told of as such, once.
const EVENT_LIMIT: usize = 10_000;

/// What a watch needs of its job.
#[derive(Debug)]
pub struct Watched {
    /// The job's Worker.
    pub worker: Arc<Worker>,
    /// Snapshots of processes.
    pub sensor: Arc<ProcfsSensor>,
    /// Where findings go.
    pub responder: Arc<Responder>,
}

/// Starts to watch the workspace (a path as the Worker sees it); the thread ends with the Worker. `failed` is told when
/// writes were lost.
///
/// # Errors
/// When the workspace can't be opened or the kernel can't tell.
pub fn start(
    watched: Watched,
    workspace: &str,
    failed: impl Fn(String) + Send + 'static,
) -> io::Result<()> {
    let directory = open_workspace(&watched.worker, workspace)?;
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    let files = FileEvents::written(directory.as_fd())?;
    thread::Builder::new()
        .name("sources".to_owned())
        .spawn(move || {
            if let Err(error) = watch(&watched, &path, &files, &failed) {
                failed(format!("writes to source files can't be noticed any more: {error}"));
            }
        })
        .map(drop)
}

fn open_workspace(worker: &Worker, workspace: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(Path::new(&format!("/proc/{}/root", worker.pid())), flags, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, workspace, how)?)
}

fn watch(
    watched: &Watched,
    workspace: &Path,
    files: &FileEvents,
    failed: &impl Fn(String),
) -> io::Result<()> {
    let mut sources = SourceFiles::default();
    let mut has_lost = false;
    let mut overwritten = 0_usize;
    loop {
        let mut waiting = [
            PollFd::new(files.as_fd(), PollFlags::POLLIN),
            PollFd::new(watched.worker.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let has_exited = waiting[1].any().unwrap_or(true);
        let begin = Instant::now();
        for written in files.take()? {
            match written {
                FileEvent::File { file, pid } => {
                    if judge(
                        watched,
                        workspace,
                        &mut sources,
                        &file,
                        pid,
                        overwritten < EVENT_LIMIT,
                    ) {
                        overwritten += 1;
                        if overwritten == EVENT_LIMIT {
                            failed(format!(
                                "{EVENT_LIMIT} source files were overwritten; more have no event of their own"
                            ));
                        }
                    }
                }
                FileEvent::Lost if has_lost => {}
                FileEvent::Lost => {
                    has_lost = true;
                    failed("so many files were written at once that not all writes were looked at: overwritten source files may have gone unnoticed".to_owned());
                }
            }
        }
        if has_exited {
            return Ok(());
        }
        thread::sleep(begin.elapsed() * REST);
    }
}

/// Judges one write; says whether it is the first to a file that was checked out. Then it is a finding, and an event with
/// `has_event`.
fn judge(
    watched: &Watched,
    workspace: &Path,
    sources: &mut SourceFiles,
    file: &OwnedFd,
    pid: u32,
    has_event: bool,
) -> bool {
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
        return false;
    };
    if !path.starts_with(workspace) {
        return false;
    }
    let Ok(facts) = fstat(file) else { return false };
    let write = Write {
        file: (facts.st_dev, facts.st_ino),
        path: plain(path),
        writer: writer(watched, pid),
    };
    let Some(finding) = sources.add(&write) else { return false };
    if has_event {
        let path = write.path.to_string_lossy().into_owned();
        watched.responder.recorder().file(event::FileEvent { path, process: write.writer });
    }
    watched.responder.answer(finding);
    true
}

/// Without the mark of a file that was renamed or removed since.
fn plain(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

fn writer(watched: &Watched, pid: u32) -> Option<Process> {
    let key = ProcFs.key(pid)?;
    let process = watched.sensor.inspector().inspect(key)?;
    process.exe.is_some().then(|| Process::clone(&process))
}
