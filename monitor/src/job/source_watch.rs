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
use crate::sys::renames::{Rename, Renames};
use crate::watch::attribution::ProcfsSensor;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, fstat};
use portcullis_common::event::Process;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// A rest of this many times the work follows each batch.
const REST: u32 = 4;

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
    let renames = Renames::of(directory.as_fd());
    if let Err(error) = &renames {
        failed(format!("source files that are replaced by a rename can't be noticed: {error}"));
    }
    let renames = renames.ok();
    thread::Builder::new()
        .name("sources".to_owned())
        .spawn(move || {
            if let Err(error) = watch(&watched, &path, &files, renames.as_ref(), &failed) {
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
    renames: Option<&Renames>,
    failed: &impl Fn(String),
) -> io::Result<()> {
    let mut sources = SourceFiles::default();
    let mut has_lost = false;
    let mut lost = || {
        if !has_lost {
            failed("so many files were written at once that not all writes were looked at: overwritten source files may have gone unnoticed".to_owned());
        }
        has_lost = true;
    };
    loop {
        let mut waiting = vec![
            PollFd::new(watched.worker.as_fd(), PollFlags::POLLIN),
            PollFd::new(files.as_fd(), PollFlags::POLLIN),
        ];
        waiting.extend(renames.map(|renames| PollFd::new(renames.as_fd(), PollFlags::POLLIN)));
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let has_exited = waiting[0].any().unwrap_or(true);
        let begin = Instant::now();
        // Taken before the writes, and judged after them: what is renamed was written before, and is not checked out twice.
        let renamed = renames.map(Renames::take).transpose()?.unwrap_or_default();
        for written in files.take()? {
            match written {
                FileEvent::File { file, pid } => {
                    judge(watched, workspace, &mut sources, &file, pid);
                }
                FileEvent::Lost => lost(),
            }
        }
        for rename in renamed {
            match rename {
                Rename::To { path, pid } => {
                    judge_rename(watched, workspace, &mut sources, path, pid);
                }
                Rename::Lost => lost(),
            }
        }
        if has_exited {
            return Ok(());
        }
        thread::sleep(begin.elapsed() * REST);
    }
}

fn judge(watched: &Watched, workspace: &Path, sources: &mut SourceFiles, file: &OwnedFd, pid: u32) {
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else { return };
    if !path.starts_with(workspace) {
        return;
    }
    let Ok(facts) = fstat(file) else { return };
    let write = Write {
        file: (facts.st_dev, facts.st_ino),
        path: plain(path),
        writer: writer(watched, pid),
    };
    if let Some(finding) = sources.add(&write) {
        watched.responder.answer(finding);
    }
}

fn judge_rename(
    watched: &Watched,
    workspace: &Path,
    sources: &mut SourceFiles,
    path: PathBuf,
    pid: u32,
) {
    if !path.starts_with(workspace) {
        return;
    }
    let Ok(facts) = fs::symlink_metadata(&path) else { return };
    let write = Write { file: (facts.dev(), facts.ino()), path, writer: writer(watched, pid) };
    if let Some(finding) = sources.add_rename(&write) {
        watched.responder.answer(finding);
    }
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
