//! Descriptors that systemd passes: the listening socket (`sd_listen_fds(3)`), and what an earlier monitor gave it to keep
//! (`sd_pid_notify_with_fds(3)`).

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Mutex;

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START` of sd-daemon.h).
const FIRST_PASSED: RawFd = 3;

/// How many descriptors are taken at most: a wrong number must not make us close what is not ours.
const MAX_PASSED: u32 = 4096;

/// What systemd passed.
#[derive(Debug, Default)]
pub struct Passed {
    /// Listening sockets, by their units' names for them (`FileDescriptorName=`).
    pub listeners: Vec<(String, UnixListener)>,
    /// Netlink sockets that an earlier monitor gave to systemd, by the name that it gave them.
    pub kept: Vec<(String, OwnedFd)>,
}

/// Whether the descriptors were taken: they can be owned once only.
static TAKEN: Mutex<bool> = Mutex::new(false);

/// Takes what systemd passed to this process; nothing when it was started another way, and nothing the second time.
///
/// To be called before the process opens anything of its own under those numbers.
pub fn take_passed() -> Passed {
    {
        let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if std::mem::replace(&mut *taken, true) {
            return Passed::default();
        }
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Passed::default();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(MAX_PASSED);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut passed = Passed::default();
    for descriptor in (FIRST_PASSED..).take(count as usize) {
        let name = names.next().unwrap_or_default();
        let Ok(address) = getsockname::<SockaddrStorage>(descriptor) else { continue };
        // SAFETY: systemd says by LISTEN_PID and LISTEN_FDS that this descriptor was passed to this process and is nobody
        // else's; getsockname has just shown that it is open and a socket; TAKEN keeps a second owner away.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // Nothing is executed by us; a failure would only mean that it could be inherited.
        let _ = fcntl(socket.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        match address.family() {
            Some(AddressFamily::Unix) => {
                passed.listeners.push((name, UnixListener::from(socket)));
            }
            Some(AddressFamily::Netlink) => passed.kept.push((name, socket)),
            _ => {}
        }
    }
    passed
}
