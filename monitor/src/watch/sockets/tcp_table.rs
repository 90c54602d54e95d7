//! The table of TCP sockets of both families at once.
//!
//! The kernel keeps the TCP sockets of all network namespaces in one table of up to some hundred thousand buckets, and goes
//! through all of them for each dump: half a millisecond on a machine with 24 GB. By `SOCK_DIAG_BY_FAMILY` it does that once for
//! IPv4 and once for IPv6; the older request tells both families in one pass. Kernels of 2.6.14 and newer have it
//! (`inet_diag_rcv_msg_compat` in `net/ipv4/inet_diag.c`).

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, ParseableParametrized,
};
use netlink_packet_sock_diag::inet::{InetResponse, StateFlags};
use netlink_packet_sock_diag::{SOCK_DIAG_BY_FAMILY, SockDiagMessage};

/// `TCPDIAG_GETSOCK` of `linux/inet_diag.h`.
pub(super) const TCPDIAG_GETSOCK: u16 = 18;

/// `sizeof(struct inet_diag_req)` of `linux/inet_diag.h`.
const REQUEST_LENGTH: usize = 60;

/// Where `idiag_states` is in it: four bytes and `struct inet_diag_sockid` come before.
const STATES_AT: usize = 52;

/// The request for every socket in one of these states: a `struct inet_diag_req` in which everything else is zero.
pub(super) fn request(states: &StateFlags) -> [u8; REQUEST_LENGTH] {
    let mut request = [0; REQUEST_LENGTH];
    if let Some(field) = request.get_mut(STATES_AT..STATES_AT + 4) {
        field.copy_from_slice(&states.bits().to_ne_bytes());
    }
    request
}

/// One socket. The kernel answers with the type of the request, and with what it answers to `SOCK_DIAG_BY_FAMILY` otherwise.
#[derive(Debug)]
pub(super) struct TcpSocket(pub(super) Option<Box<InetResponse>>);

impl NetlinkDeserializable for TcpSocket {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match SockDiagMessage::parse_with_param(payload, SOCK_DIAG_BY_FAMILY)? {
            SockDiagMessage::InetResponse(response) => Ok(Self(Some(response))),
            _ => Ok(Self(None)),
        }
    }
}
