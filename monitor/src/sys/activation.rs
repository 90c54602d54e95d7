//! Socket activation by systemd (`sd_listen_fds(3)`).

use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockname};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixListener;

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START` of sd-daemon.h).
const FIRST_PASSED: RawFd = 3;

/// The most sockets that are taken: the monitor has two socket units.
const MOST_PASSED: u32 = 8;

/// The listening sockets that systemd passed to this process, by name (`FileDescriptorName=`); none when it was started
/// another way.
///
/// To be called once, before the process opens anything of its own under those numbers.
pub fn listening_sockets() -> Vec<(String, UnixListener)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(MOST_PASSED);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    (FIRST_PASSED..)
        .take(usize::try_from(count).unwrap_or(0))
        .filter_map(|descriptor| {
            let name = names.next().unwrap_or_default();
            let address = getsockname::<SockaddrStorage>(descriptor).ok()?;
            if address.family() != Some(nix::sys::socket::AddressFamily::Unix) {
                return None;
            }
            // SAFETY: systemd says by LISTEN_PID and LISTEN_FDS that this descriptor was passed to this process and is
            // nobody else's; getsockname has just shown that it is open and a Unix socket.
            #[expect(
                unsafe_code,
                reason = "a descriptor that another program left open has no owner yet"
            )]
            let socket = unsafe { UnixListener::from_raw_fd(descriptor) };
            Some((name, socket))
        })
        .collect()
}
