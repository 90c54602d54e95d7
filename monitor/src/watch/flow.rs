//! Flows: what a packet and a socket have in common.

use std::net::{IpAddr, SocketAddr};

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `IPPROTO_UDPLITE`.
pub const UDP_LITE: u8 = 136;
/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_ICMPV6`.
pub const ICMP_V6: u8 = 58;

/// A five-tuple seen from this machine: the source is the local side. Ports are 0 where the protocol has none.
/// IPv4-mapped IPv6 addresses are written as IPv4: it is IPv4 that goes over the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Flow {
    /// The IP protocol number.
    pub protocol: u8,
    /// The local side.
    pub source: SocketAddr,
    /// The remote side.
    pub destination: SocketAddr,
}

impl Flow {
    /// A flow with both addresses in canonical form.
    pub fn new(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Self {
        Self { protocol, source: canonical(source), destination: canonical(destination) }
    }
}

/// Writes IPv4-mapped addresses as IPv4, and drops scope and flow label.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether a socket bound to `bound` takes part in traffic of the local address `used`.
pub(crate) fn is_bound_for(bound: IpAddr, used: IpAddr) -> bool {
    bound == used || bound.is_unspecified()
}
