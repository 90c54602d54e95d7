//! Netlink sockets that were kept elsewhere.

use netlink_sys::Socket;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// The netlink socket that `descriptor` refers to, such as one that systemd kept over a restart.
pub(crate) fn socket_from(descriptor: OwnedFd) -> Socket {
    // SAFETY: `into_raw_fd` gives up the ownership that the socket takes.
    unsafe { Socket::from_raw_fd(descriptor.into_raw_fd()) }
}
