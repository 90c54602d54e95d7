//! Running code in another network namespace.

use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

/// Runs `work` on a thread of its own inside the network namespace that `namespace` (an open `/proc/PID/ns/net`)
/// refers to, and returns its result. Sockets opened by `work` stay in that namespace for good.
///
/// # Errors
/// When the thread can't be started or the namespace can't be entered (needs `CAP_SYS_ADMIN`).
pub fn in_network_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok::<T, nix::Error>(work())
        })?;
        match worker.join() {
            Ok(result) => result.map_err(io::Error::from),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
