//! Owned descriptors in the runtime's event loop.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor for reading with the runtime that this is called in.
///
/// # Errors
/// When epoll doesn't take it, as it does not take regular files.
pub fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always returns the same descriptor, and is closed by nobody else while the `AsyncFd`
    // owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}
