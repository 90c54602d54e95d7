//! The Worker of a job, held by a pidfd.

use super::table::{ProcFs, ProcessKey, ProcessTable};
use super::{CallerError, WorkerCandidate};
use crate::sys::pidfd;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A `Runner.Worker` that is held by a pidfd: signals reach it or nobody.
#[derive(Debug)]
pub struct Worker {
    /// Which process.
    key: ProcessKey,
    /// Its real user id.
    uid: u32,
    /// Its executable when it was opened.
    executable: PathBuf,
    /// The Listener that started it, when that was known.
    listener: Option<ProcessKey>,
    /// Its pidfd.
    pidfd: OwnedFd,
}

impl Worker {
    /// Takes hold of a Worker that [`super::lineage`] found.
    ///
    /// # Errors
    /// [`CallerError::Gone`] when it has exited meanwhile, [`CallerError::Pidfd`].
    pub fn open(candidate: &WorkerCandidate) -> Result<Self, CallerError> {
        Ok(Self {
            key: candidate.worker,
            uid: candidate.uid,
            executable: candidate.executable.clone(),
            listener: Some(candidate.listener),
            pidfd: open_verified(candidate.worker)?,
        })
    }

    /// Takes hold again of a Worker that was bound before the monitor was started again.
    ///
    /// # Errors
    /// [`CallerError::Gone`] when it has exited meanwhile, [`CallerError::Pidfd`].
    pub fn reopen(key: ProcessKey) -> Result<Self, CallerError> {
        let pidfd = open_verified(key)?;
        let gone = || CallerError::Gone { pid: key.pid };
        let entry = ProcFs.process(key.pid).filter(|entry| entry.key == key).ok_or_else(gone)?;
        let listener = ProcFs
            .process(entry.parent)
            .filter(super::table::ProcessEntry::is_named_listener)
            .map(|listener| listener.key);
        let executable = entry.executable.ok_or_else(gone)?;
        Ok(Self { key, uid: entry.uid, executable, listener, pidfd })
    }

    /// Which process it is.
    pub fn key(&self) -> ProcessKey {
        self.key
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.key.pid
    }

    /// Its real user id: the runner's user.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its executable when it was opened.
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// The Listener that started it; `None` when it was gone at [`Worker::reopen`].
    pub fn listener(&self) -> Option<ProcessKey> {
        self.listener
    }

    /// The Worker as [`super::lineage`] finds it; `None` when the Listener was gone at [`Worker::reopen`].
    pub fn candidate(&self) -> Option<WorkerCandidate> {
        Some(WorkerCandidate {
            worker: self.key,
            uid: self.uid,
            executable: self.executable.clone(),
            listener: self.listener?,
            callers: Vec::new(),
        })
    }

    /// Whether it has exited.
    ///
    /// # Errors
    /// When the pidfd can't be polled.
    pub fn has_exited(&self) -> io::Result<bool> {
        pidfd::has_exited(&self.pidfd)
    }

    /// Sends SIGKILL; a Worker that has exited already is no error.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd::send_signal(self.pidfd.as_fd(), Signal::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Waits until it has exited; `false` when `patience` ran out.
    ///
    /// # Errors
    /// When the pidfd can't be polled.
    pub fn wait_exit(&self, patience: Duration) -> io::Result<bool> {
        pidfd::wait_exit(&self.pidfd, patience)
    }

    /// Opens its network namespace, for [`crate::sys::namespace::in_network_namespace`].
    ///
    /// # Errors
    /// [`CallerError::Gone`] when it has exited.
    pub fn network_namespace(&self) -> Result<File, CallerError> {
        let gone = || CallerError::Gone { pid: self.key.pid };
        let namespace = File::open(format!("/proc/{}/ns/net", self.key.pid)).map_err(|_| gone())?;
        // Alive now means that the pid was not recycled when the file was opened.
        if self.has_exited().unwrap_or(true) { Err(gone()) } else { Ok(namespace) }
    }
}

impl AsFd for Worker {
    /// The pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Opens a pidfd for exactly the process that `key` names.
pub(crate) fn open_verified(key: ProcessKey) -> Result<OwnedFd, CallerError> {
    let gone = CallerError::Gone { pid: key.pid };
    let descriptor = match pidfd::open(key.pid) {
        Ok(descriptor) => descriptor,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(gone),
        Err(source) => return Err(CallerError::Pidfd { pid: key.pid, source }),
    };
    let same = ProcFs.key(key.pid) == Some(key);
    // In this order: alive after the start time was read means that it was this process' start time.
    let exited = pidfd::has_exited(&descriptor)
        .map_err(|source| CallerError::Pidfd { pid: key.pid, source })?;
    if same && !exited { Ok(descriptor) } else { Err(gone) }
}
