//! Endpoints: what a policy allows or denies, `[tcp://|udp://|icmp://]HOST[:PORT[-PORT]|:*]`.
//!
//! No scheme means TCP, no port means 443. The host is a DNS name, `*.name`, an address or a network in CIDR notation,
//! IPv6 in brackets: `[2001:db8::7]:443`, `[2001:db8::/32]:443`. Two texts with one meaning have one value:
//! names are lower-case A-labels, IPv4-mapped IPv6 addresses are IPv4, a network of one address is that address.
//!
//! `0.0.0.0/0` and `[::/0]` are accepted: opening everything is sometimes what an operator wants (`icmp://0.0.0.0/0`),
//! and a reviewer sees it in the document. [`Endpoint::is_unrestricted`] finds such entries, so that a posture can warn.

mod error;
mod matching;
mod name;
mod parse;
mod text;

#[cfg(test)]
pub(crate) mod strategy;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use error::{EndpointError, EndpointProblem, NameError, NameProblem};
pub use matching::Peer;
pub use name::{DnsName, MAX_LABEL_BYTES, MAX_NAME_BYTES};
pub use parse::MAX_ENDPOINT_BYTES;

/// The port of an endpoint that names none: HTTPS.
const DEFAULT_PORT: PortRange = PortRange { first: 443, last: 443 };

/// The transport of an endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP, the default of the grammar.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and `ICMPv6` echo; such an endpoint has no port.
    Icmp,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortRange {
    /// The lowest port of the range; at least 1.
    first: u16,
    /// The highest port of the range; at least `first`.
    last: u16,
}

impl PortRange {
    /// Every port, written `:*`.
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    /// The range of one port; `None` for port 0, which no endpoint can name.
    pub const fn single(port: u16) -> Option<Self> {
        Self::new(port, port)
    }

    /// An inclusive range; `None` when it is empty or starts at port 0.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first { None } else { Some(Self { first, last }) }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether the range is exactly one port.
    pub const fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Whether `port` lies in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// The host part of an endpoint.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Host {
    /// One name.
    Name(DnsName),
    /// `*.name`: any number of labels below `name`, not `name` itself.
    Wildcard(DnsName),
    /// One address.
    Address(IpAddr),
    /// A network in CIDR notation, its host bits zero.
    Network(ipnet::IpNet),
}

/// One entry of `allowed-endpoints` or `denied-endpoints`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Endpoint {
    /// The transport.
    pub protocol: Protocol,
    /// Whom it names.
    pub host: Host,
    /// The ports; [`PortRange::ALL`] when the protocol is [`Protocol::Icmp`].
    pub ports: PortRange,
}
