//! Socket activation by systemd (`sd_listen_fds(3)`).

use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockname};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixListener;

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START` of sd-daemon.h).
const FIRST_PASSED: RawFd = 3;

/// The listening socket that systemd passed to this process; `None` when it was started another way.
///
/// To be called once, before the process opens anything of its own under that number.
pub fn listening_socket() -> Option<UnixListener> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS") != Some(1) {
        return None;
    }
    let name = getsockname::<SockaddrStorage>(FIRST_PASSED).ok()?;
    if name.family() != Some(nix::sys::socket::AddressFamily::Unix) {
        return None;
    }
    // SAFETY: systemd says by LISTEN_PID and LISTEN_FDS that descriptor 3 was passed to this process and is nobody
    // else's; getsockname has just shown that it is open and a Unix socket.
    #[expect(unsafe_code, reason = "a descriptor that another program left open has no owner yet")]
    let socket = unsafe { UnixListener::from_raw_fd(FIRST_PASSED) };
    Some(socket)
}
