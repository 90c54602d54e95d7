//! Locks that outlive a panicking thread, and a signal that ends server threads.

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also after a holder panicked: a failed test must still be able to clean up.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells server threads to end. Dropping the last [`Stop`] makes every [`Stopped`] readable.
#[derive(Debug)]
pub(crate) struct Stop {
    _writer: PipeWriter,
    reader: Arc<PipeReader>,
}

/// The side of a [`Stop`] that a server thread holds.
#[derive(Clone, Debug)]
pub(crate) struct Stopped(Arc<PipeReader>);

impl Stop {
    pub(crate) fn new() -> Result<Self> {
        let (reader, writer) =
            io::pipe().context("can't make the pipe that ends server threads")?;
        Ok(Self { _writer: writer, reader: Arc::new(reader) })
    }

    pub(crate) fn stopped(&self) -> Stopped {
        Stopped(Arc::clone(&self.reader))
    }
}

impl Stopped {
    /// Waits until one of `sockets` is readable; `false` when it is time to end.
    pub(crate) fn wait_readable(&self, sockets: &[BorrowedFd<'_>]) -> bool {
        let mut polled: Vec<PollFd<'_>> = sockets
            .iter()
            .copied()
            .chain([self.0.as_fd()])
            .map(|socket| PollFd::new(socket, PollFlags::POLLIN))
            .collect();
        loop {
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) => return !self.is_set(),
                Err(nix::Error::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Whether it is time to end.
    pub(crate) fn is_set(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}
