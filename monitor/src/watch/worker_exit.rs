//! The end of a Worker, by its pidfd.

use crate::caller::Worker;
use crate::sys::readiness::watch_readable;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// A Worker's exit, to be awaited without a thread. Holds a copy of the pidfd.
#[derive(Debug)]
pub struct WorkerExit {
    /// The pidfd; it becomes readable when the process exits.
    pidfd: AsyncFd<OwnedFd>,
}

impl WorkerExit {
    /// Registers the Worker's pidfd with the runtime that this is called in.
    ///
    /// # Errors
    /// When the descriptor can't be copied or registered.
    ///
    /// # Panics
    /// Outside of a runtime with I/O.
    pub fn watch(worker: &Worker) -> io::Result<Self> {
        Ok(Self { pidfd: watch_readable(worker.as_fd().try_clone_to_owned()?)? })
    }

    /// Waits until the Worker has exited, by itself or killed. Can be cancelled and called again.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn wait(&self) -> io::Result<()> {
        // A pidfd stays readable for good, so the readiness is left as it is.
        self.pidfd.readable().await.map(|mut guard| guard.retain_ready())
    }
}
