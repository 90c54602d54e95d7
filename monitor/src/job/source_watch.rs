//! Files of a job's workspace that are written: read from the kernel, and handed to
//! [`crate::detect::source_overwritten`].
//!
//! The kernel tells every write on the file system of the workspace, so a job can make as many as it likes. What that costs
//! is bounded: after each batch this rests for several times as long as it has worked, and what the kernel can't keep
//! meanwhile is lost and told.

use crate::caller::Worker;
use crate::detect::Finding;
use crate::detect::source_overwritten::{SourceFiles, Write};
use crate::respond::Responder;
use crate::sys::fanotify::{FileEvent, FileEvents};
use crate::sys::renames::{Rename, Renames};
use crate::watch::attribution::ProcessSensor;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, fstat};
use portcullis_common::event::{self, Process};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A rest of this many times the work follows each batch.
const REST: u32 = 4;

/// How long it rests at least where writers that have ended are known: a build writes a file after the other, and being woken
/// for each of them costs more than looking at it. The kernel keeps 16 384 writes meanwhile.
const LEAST_REST: Duration = Duration::from_millis(50);

/// So many writes in one batch are a flood, after which it rests no longer than it must.
const MANY: usize = 64;

/// Batches that are looked at once the job's Worker has ended: all that the kernel keeps, but not what others go on writing.
const LAST_BATCHES: u32 = 100;

/// Overwritten files of a job that have an event each. A job that overwrites more is told of as such, once.
const EVENT_LIMIT: usize = 10_000;

/// What a watch needs of its job.
#[derive(Debug)]
pub struct Watched {
    /// The job's Worker.
    pub worker: Arc<Worker>,
    /// Who has written.
    pub sensor: Arc<dyn ProcessSensor>,
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
    let mut told = Told::default();
    let mut last_batches = 0;
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
        let written = files.take()?;
        let count = written.len() + renamed.len();
        for written in written {
            match written {
                FileEvent::File { file, pid } => {
                    let write = write_to(watched, workspace, &file, pid);
                    let found = write.and_then(|write| Some((sources.add(&write)?, write)));
                    told.tell(watched, found, failed);
                }
                FileEvent::Lost => told.lost(failed),
            }
        }
        for rename in renamed {
            match rename {
                Rename::To { path, pid } => {
                    let write = rename_to(watched, workspace, path, pid);
                    let found = write.and_then(|write| Some((sources.add_rename(&write)?, write)));
                    told.tell(watched, found, failed);
                }
                Rename::Lost => told.lost(failed),
            }
        }
        if has_exited {
            last_batches += 1;
            if count == 0 || last_batches > LAST_BATCHES {
                return Ok(());
            }
            continue;
        }
        let is_calm = watched.sensor.remembers() && count < MANY;
        let least = if is_calm { LEAST_REST } else { Duration::ZERO };
        thread::sleep(least.max(begin.elapsed() * REST));
    }
}

/// What was told of a job so far.
#[derive(Debug, Default)]
struct Told {
    overwritten: usize,
    has_lost: bool,
}

impl Told {
    /// A finding, and an event as long as there are not too many.
    fn tell(
        &mut self,
        watched: &Watched,
        found: Option<(Finding, Write)>,
        failed: &impl Fn(String),
    ) {
        let Some((finding, write)) = found else { return };
        if self.overwritten < EVENT_LIMIT {
            let path = write.path.to_string_lossy().into_owned();
            watched.responder.recorder().file(event::FileEvent { path, process: write.writer });
            self.overwritten += 1;
            if self.overwritten == EVENT_LIMIT {
                failed(format!(
                    "{EVENT_LIMIT} source files were overwritten; more have no event of their own"
                ));
            }
        }
        watched.responder.answer(finding);
    }

    fn lost(&mut self, failed: &impl Fn(String)) {
        if !self.has_lost {
            failed("so many files were written at once that not all writes were looked at: overwritten source files may have gone unnoticed".to_owned());
        }
        self.has_lost = true;
    }
}

/// A write to an open file, when it is one of the workspace.
fn write_to(watched: &Watched, workspace: &Path, file: &OwnedFd, pid: u32) -> Option<Write> {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if !path.starts_with(workspace) {
        return None;
    }
    let facts = fstat(file).ok()?;
    let file = (facts.st_dev, facts.st_ino);
    Some(Write { file, path: plain(path), writer: writer(watched, pid) })
}

/// A file that has got the name of another one, when that is in the workspace.
fn rename_to(watched: &Watched, workspace: &Path, path: PathBuf, pid: u32) -> Option<Write> {
    if !path.starts_with(workspace) {
        return None;
    }
    let facts = fs::symlink_metadata(&path).ok()?;
    Some(Write { file: (facts.dev(), facts.ino()), path, writer: writer(watched, pid) })
}

/// Without the mark of a file that was renamed or removed since.
fn plain(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

fn writer(watched: &Watched, pid: u32) -> Option<Process> {
    watched.sensor.by_number(pid).filter(|process| process.exe.is_some())
}
