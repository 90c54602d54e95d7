//! The one change of interfaces that is ours to make: the loopback of a network namespace that we made.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use std::io;

/// `RTM_NEWLINK`, `NLM_F_REQUEST | NLM_F_ACK`, `IFF_UP` (linux/rtnetlink.h, linux/netlink.h, linux/if.h).
const NEW_LINK: u16 = 16;
const REQUEST_WITH_ACK: u16 = 1 | 4;
const UP: u32 = 1;

/// The loopback's index in each network namespace.
const LOOPBACK: i32 = 1;

/// Sets the loopback interface of the calling thread's network namespace up.
pub(crate) fn set_loopback_up() -> io::Result<()> {
    let mut message = Vec::with_capacity(32);
    // struct nlmsghdr
    message.extend(32_u32.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_WITH_ACK.to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family and type, index, flags, and which flags change
    message.extend([0; 4]);
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send(&message, 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message")),
    }
}
