//! Which names, addresses and other endpoints an endpoint covers.

use super::{DnsName, Endpoint, Host, PortRange, Protocol};
use ipnet::{IpNet, Ipv4Net};
use std::net::IpAddr;

/// The other end of a call, by the name that was resolved or by its address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer<'a> {
    /// A name.
    Name(&'a DnsName),
    /// An address; an IPv4-mapped IPv6 address counts as IPv4.
    Address(IpAddr),
}

impl Host {
    /// A host for a network; IPv4-mapped networks become IPv4, a network of one address becomes that address.
    pub fn from_network(network: IpNet) -> Self {
        let network = match network.trunc() {
            IpNet::V6(six) if six.prefix_len() >= 96 => six
                .network()
                .to_ipv4_mapped()
                .and_then(|four| Ipv4Net::new(four, six.prefix_len() - 96).ok())
                .map_or(IpNet::V6(six), IpNet::V4),
            other => other,
        };
        if network.prefix_len() == network.max_prefix_len() {
            Self::Address(network.addr())
        } else {
            Self::Network(network)
        }
    }

    /// Whether `name` is this name or, for a wildcard, lies below it by whole labels. Addresses match no name.
    pub fn matches_name(&self, name: &DnsName) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Wildcard(parent) => name.is_below(parent),
            Self::Address(_) | Self::Network(_) => false,
        }
    }

    /// Whether `address` is this address or lies in this network. Names match no address.
    pub fn matches_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            Self::Address(own) => own.to_canonical() == address,
            Self::Network(network) => network.contains(&address),
            Self::Name(_) | Self::Wildcard(_) => false,
        }
    }

    /// Whether everything that `other` matches is matched by this host, too.
    pub fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Name(name)) => self.matches_name(name),
            (Self::Wildcard(own), Self::Wildcard(name)) => own == name || name.is_below(own),
            (_, Self::Address(address)) => self.matches_address(*address),
            (Self::Network(own), Self::Network(network)) => own.contains(network),
            _ => false,
        }
    }
}

impl PortRange {
    /// Whether every port of `other` lies in this range.
    pub const fn includes(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

impl Endpoint {
    /// Whether a call by `protocol` to `peer` at `port` is what this endpoint names. For [`Protocol::Icmp`], `port` does
    /// not matter; for the others a call without a port is not covered.
    pub fn covers(&self, protocol: Protocol, peer: Peer<'_>, port: Option<u16>) -> bool {
        let host = match peer {
            Peer::Name(name) => self.host.matches_name(name),
            Peer::Address(address) => self.host.matches_address(address),
        };
        let port = protocol == Protocol::Icmp || port.is_some_and(|port| self.ports.contains(port));
        self.protocol == protocol && host && port
    }

    /// Whether every call that `other` names is named by this endpoint, too.
    pub fn includes(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host.includes(&other.host)
            && (self.protocol == Protocol::Icmp || self.ports.includes(other.ports))
    }

    /// Whether the endpoint names every address of IPv4 or of IPv6, or half of them: `0.0.0.0/0`, `[::/1]`.
    pub fn is_unrestricted(&self) -> bool {
        matches!(&self.host, Host::Network(network) if network.prefix_len() <= 1)
    }
}
