//! Generators of names and endpoints for property tests.

use super::{DnsName, Endpoint, Host, PortRange, Protocol};
use ipnet::IpNet;
use proptest::prelude::*;
use std::net::IpAddr;

/// Any name that is no IPv4 address in disguise.
pub(crate) fn dns_name() -> impl Strategy<Value = DnsName> {
    proptest::collection::vec("[a-z0-9_][a-z0-9_-]{0,10}", 0..4)
        .prop_flat_map(|labels| ("[a-z][a-z-]{0,6}", Just(labels)))
        .prop_map(|(last, mut labels)| {
            labels.push(last);
            DnsName::new(&labels.join(".")).unwrap()
        })
}

/// Any host that the grammar can name.
pub(crate) fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        dns_name().prop_map(Host::Name),
        dns_name()
            .prop_filter("public suffix", |name| !name.is_public_suffix())
            .prop_map(Host::Wildcard),
        any::<IpAddr>().prop_map(|address| Host::Address(address.to_canonical())),
        (any::<IpAddr>(), any::<u8>()).prop_map(|(address, prefix)| {
            let longest = if address.is_ipv4() { 33 } else { 129 };
            Host::from_network(IpNet::new(address, prefix % longest).unwrap())
        }),
    ]
}

/// Any endpoint that the grammar can name.
pub(crate) fn endpoint() -> impl Strategy<Value = Endpoint> {
    let ports =
        (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap());
    let ports = prop_oneof![
        Just(PortRange::ALL),
        ports,
        (1..=u16::MAX).prop_map(|p| PortRange::single(p).unwrap())
    ];
    (prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)], host(), ports)
        .prop_map(|(protocol, host, ports)| Endpoint {
            protocol,
            host,
            ports: if protocol == Protocol::Icmp { PortRange::ALL } else { ports },
        })
}
