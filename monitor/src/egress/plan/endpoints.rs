//! From endpoints to the elements of sets.

use super::PlanError;
use super::build::protocol;
use crate::egress::rule_set::{Element, GrantClass};
use crate::egress::target::IpFamily;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_common::endpoint::{Endpoint, Host, Protocol};
use portcullis_common::policy::Rule;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The most pieces that networks and port ranges of one list may fall into, per family.
pub(super) const MAX_RANGES: usize = 65_536;

/// The most different port ranges that names of a policy may stand with: each costs a rule that packets pass.
pub(super) const MAX_PORT_RANGES: usize = 64;

/// What the addresses of a list of endpoints come to, for one family.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct StaticEndpoints {
    /// Single addresses with single ports.
    pub(super) exact: BTreeSet<Element>,
    /// Everything else, not overlapping.
    pub(super) ranges: BTreeSet<Element>,
}

/// The number of a protocol in the family.
pub(crate) const fn number(protocol: Protocol, family: IpFamily) -> u8 {
    match (protocol, family) {
        (Protocol::Tcp, _) => protocol::TCP,
        (Protocol::Udp, _) => protocol::UDP,
        (Protocol::Icmp, IpFamily::V4) => protocol::ICMP,
        (Protocol::Icmp, IpFamily::V6) => protocol::ICMPV6,
    }
}

/// An address in network byte order.
pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The key address, protocol, port.
pub(crate) fn endpoint_key(address: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(24);
    match address {
        IpAddr::V4(address) => key.extend(address.octets()),
        IpAddr::V6(address) => key.extend(address.octets()),
    }
    key.extend([protocol, 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// The ports of an endpoint as they stand in keys: ICMP echo has port 0.
fn key_ports(endpoint: &Endpoint) -> (u16, u16) {
    match endpoint.protocol {
        Protocol::Icmp => (0, 0),
        Protocol::Tcp | Protocol::Udp => (endpoint.ports.first(), endpoint.ports.last()),
    }
}

/// The addresses and networks of `rules` in `family`.
pub(super) fn static_endpoints(
    rules: &[Arc<Rule>],
    family: IpFamily,
) -> Result<StaticEndpoints, PlanError> {
    // Collected first: a tree built from a whole list is made several times faster than one grown element by element.
    let (mut exact, mut pieces) = (Vec::new(), Vec::new());
    let mut ranges: BTreeMap<u8, Vec<(u16, u16, IpNet)>> = BTreeMap::new();
    for rule in rules {
        let endpoint = &rule.endpoint;
        let network = match &endpoint.host {
            Host::Name(_) | Host::Wildcard(_) => continue,
            Host::Address(address) => IpNet::from(*address),
            Host::Network(network) => *network,
        };
        if IpFamily::of(network.addr()) != family {
            continue;
        }
        let protocol = number(endpoint.protocol, family);
        let (first, last) = key_ports(endpoint);
        if network.prefix_len() == network.max_prefix_len() && first == last {
            let key = endpoint_key(network.addr(), protocol, first);
            exact.push(Element { key, end: None });
        } else {
            ranges.entry(protocol).or_default().push((first, last, network.trunc()));
        }
    }
    for (protocol, boxes) in ranges {
        for (first, last, network) in disjoint(&boxes)? {
            pieces.push(Element {
                key: endpoint_key(network.network(), protocol, first),
                end: Some(endpoint_key(network.broadcast(), protocol, last)),
            });
        }
    }
    if pieces.len() > MAX_RANGES {
        return Err(PlanError::TooManyRanges { limit: MAX_RANGES });
    }
    Ok(StaticEndpoints { exact: exact.into_iter().collect(), ranges: pieces.into_iter().collect() })
}

/// The same ports and networks without overlaps: the kernel's set of ranges refuses an element that overlaps another.
/// The ports are cut where a range starts or ends; in each piece the networks are united; equal neighbours are joined.
fn disjoint(boxes: &[(u16, u16, IpNet)]) -> Result<Vec<(u16, u16, IpNet)>, PlanError> {
    let cuts: BTreeSet<u32> = boxes
        .iter()
        .flat_map(|&(first, last, _)| [u32::from(first), u32::from(last) + 1])
        .collect();
    let cuts: Vec<u32> = cuts.into_iter().collect();
    let mut pieces: Vec<(u32, u32, Vec<IpNet>)> = Vec::new();
    let mut work = 0_usize;
    for pair in cuts.windows(2) {
        let &[start, end] = pair else { continue };
        let inside: Vec<IpNet> = boxes
            .iter()
            .filter(|&&(first, last, _)| u32::from(first) <= start && end <= u32::from(last) + 1)
            .map(|&(_, _, network)| network)
            .collect();
        work += boxes.len();
        if work > 256 * MAX_RANGES {
            return Err(PlanError::TooManyRanges { limit: MAX_RANGES });
        }
        if inside.is_empty() {
            continue;
        }
        let united = unite(&inside);
        match pieces.last_mut() {
            Some((_, last_end, networks)) if *last_end == start && *networks == united => {
                *last_end = end;
            }
            _ => pieces.push((start, end, united)),
        }
    }
    Ok(pieces
        .into_iter()
        .flat_map(|(start, end, networks)| {
            let first = u16::try_from(start).unwrap_or(u16::MAX);
            let last = u16::try_from(end - 1).unwrap_or(u16::MAX);
            networks.into_iter().map(move |network| (first, last, network))
        })
        .collect())
}

/// The smallest list of networks with the same addresses, sorted.
fn unite(networks: &[IpNet]) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for network in networks {
        match network {
            IpNet::V4(network) => v4.push(*network),
            IpNet::V6(network) => v6.push(*network),
        }
    }
    Ipv4Net::aggregate(&v4)
        .into_iter()
        .map(IpNet::V4)
        .chain(Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6))
        .collect()
}

/// The class of grants for the ports of an endpoint with a name.
pub(crate) fn grant_class(
    protocol: Protocol,
    ports: portcullis_common::endpoint::PortRange,
) -> GrantClass {
    if protocol == Protocol::Icmp || ports.is_single() {
        GrantClass::Exact
    } else {
        GrantClass::Ports(protocol, ports)
    }
}

/// The classes of grants that names of `rules` need; always [`GrantClass::Exact`], since it costs nothing.
pub(super) fn grant_classes(rules: &[Arc<Rule>]) -> Result<BTreeSet<GrantClass>, PlanError> {
    let classes: BTreeSet<GrantClass> = rules
        .iter()
        .filter(|rule| matches!(rule.endpoint.host, Host::Name(_) | Host::Wildcard(_)))
        .map(|rule| grant_class(rule.endpoint.protocol, rule.endpoint.ports))
        .chain([GrantClass::Exact])
        .collect();
    let found = classes.len() - 1;
    if found > MAX_PORT_RANGES {
        return Err(PlanError::TooManyPortRanges { found, limit: MAX_PORT_RANGES });
    }
    Ok(classes)
}
