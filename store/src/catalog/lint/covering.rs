//! Which endpoints of a list cover which others, without comparing each with each.
//!
//! What covers an endpoint names the same host, a wildcard above it, or a network around it: those are a handful, and each is
//! looked up. Of endpoints with one host, sorted by their lowest port, one that reaches far enough is found by bisection.

use ipnet::IpNet;
use portcullis_common::endpoint::{DnsName, Endpoint, Host, PortRange, Protocol};
use std::collections::{BTreeSet, HashMap};

/// The ports of one endpoint of a host.
#[derive(Clone, Copy, Debug)]
struct Ports {
    range: PortRange,
    /// Its place in the list.
    index: usize,
    /// Of the ranges up to this one, the one that reaches farthest: its highest port, and its place in the list.
    farthest: (u16, usize),
}

/// A list of endpoints, by host.
#[derive(Debug, Default)]
pub(super) struct Covering {
    /// Where the ports of each host are.
    hosts: HashMap<(Protocol, Host), usize>,
    /// The ports of each host, by the lowest.
    ports: Vec<Vec<Ports>>,
    /// For each endpoint of the list how many ranges of its host come before its own.
    places: Vec<usize>,
    ipv4_lengths: BTreeSet<u8>,
    ipv6_lengths: BTreeSet<u8>,
}

impl Covering {
    /// Indexes a list.
    pub(super) fn of<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Self {
        let mut new = Self::default();
        for (index, endpoint) in endpoints.enumerate() {
            if let Host::Network(network) = &endpoint.host {
                let lengths = match network {
                    IpNet::V4(_) => &mut new.ipv4_lengths,
                    IpNet::V6(_) => &mut new.ipv6_lengths,
                };
                lengths.insert(network.prefix_len());
            }
            let range = endpoint.ports;
            let ports = Ports { range, index, farthest: (range.last(), index) };
            let next = new.ports.len();
            let host =
                *new.hosts.entry((endpoint.protocol, endpoint.host.clone())).or_insert(next);
            if host == next {
                new.ports.push(Vec::new());
            }
            if let Some(of_host) = new.ports.get_mut(host) {
                of_host.push(ports);
            }
            new.places.push(0);
        }
        for of_host in &mut new.ports {
            // Of equal ranges the first of the list comes first.
            of_host.sort_by_key(|ports| {
                (ports.range.first(), u16::MAX - ports.range.last(), ports.index)
            });
            let mut farthest = (0, 0);
            for (place, ports) in of_host.iter_mut().enumerate() {
                if ports.range.last() > farthest.0 {
                    farthest = (ports.range.last(), ports.index);
                }
                ports.farthest = farthest;
                if let Some(own) = new.places.get_mut(ports.index) {
                    *own = place;
                }
            }
        }
        new
    }

    /// An endpoint of the list that covers this one.
    pub(super) fn find(&self, endpoint: &Endpoint) -> Option<usize> {
        self.around(endpoint)
            .filter_map(|host| self.ports.get(host))
            .filter_map(|ports| reaching(up_to(ports, endpoint.ports), endpoint.ports))
            .min()
    }

    /// Another endpoint of the list that covers the one of this place in it. Of two that mean the same the first covers the
    /// second, and not the other way round.
    pub(super) fn find_other(&self, endpoint: &Endpoint, index: usize) -> Option<usize> {
        let own = self.hosts.get(&(endpoint.protocol, endpoint.host.clone())).copied();
        self.around(endpoint)
            .filter_map(|host| {
                let ports = self.ports.get(host)?;
                let ports = if Some(host) == own {
                    ports.get(..*self.places.get(index)?)?
                } else {
                    up_to(ports, endpoint.ports)
                };
                reaching(ports, endpoint.ports)
            })
            .min()
    }

    /// For each endpoint of the list whether it covers one of these.
    pub(super) fn cover_any<'a>(&self, narrow: impl Iterator<Item = &'a Endpoint>) -> Vec<bool> {
        let mut below: Vec<Vec<(u16, u16)>> = vec![Vec::new(); self.ports.len()];
        for endpoint in narrow {
            for host in self.around(endpoint) {
                if let Some(below) = below.get_mut(host) {
                    below.push((endpoint.ports.first(), endpoint.ports.last()));
                }
            }
        }
        let mut covers = vec![false; self.places.len()];
        for (of_host, below) in self.ports.iter().zip(&mut below) {
            below.sort_unstable();
            // Of the ranges from each one on, how near the nearest ends.
            let mut nearest = u16::MAX;
            for range in below.iter_mut().rev() {
                nearest = nearest.min(range.1);
                range.1 = nearest;
            }
            for ports in of_host {
                let start = below.partition_point(|range| range.0 < ports.range.first());
                let is_within = below.get(start).is_some_and(|range| range.1 <= ports.range.last());
                if let Some(covers) = covers.get_mut(ports.index) {
                    *covers = is_within;
                }
            }
        }
        covers
    }

    /// The hosts of the list that include the endpoint's.
    fn around<'a>(&'a self, endpoint: &'a Endpoint) -> impl Iterator<Item = usize> + 'a {
        let mut hosts = vec![endpoint.host.clone()];
        match &endpoint.host {
            Host::Name(name) | Host::Wildcard(name) => hosts.extend(above(name)),
            Host::Address(address) => hosts.extend(self.networks((*address).into())),
            Host::Network(network) => hosts.extend(self.networks(*network)),
        }
        hosts.into_iter().filter_map(|host| self.hosts.get(&(endpoint.protocol, host)).copied())
    }

    /// Wider networks around a network, of the lengths that the list has.
    fn networks(&self, network: IpNet) -> impl Iterator<Item = Host> {
        let lengths = match network {
            IpNet::V4(_) => &self.ipv4_lengths,
            IpNet::V6(_) => &self.ipv6_lengths,
        };
        lengths
            .range(..network.prefix_len())
            .filter_map(move |length| IpNet::new(network.addr(), *length).ok())
            .map(|network| Host::Network(network.trunc()))
    }
}

/// The ranges that begin early enough to cover another.
fn up_to(ports: &[Ports], wanted: PortRange) -> &[Ports] {
    let end = ports.partition_point(|ports| ports.range.first() <= wanted.first());
    ports.get(..end).unwrap_or_default()
}

/// Of ranges that begin early enough, one that reaches to the end of `wanted`.
fn reaching(ranges: &[Ports], wanted: PortRange) -> Option<usize> {
    ranges
        .last()
        .map(|ports| ports.farthest)
        .filter(|(last, _)| *last >= wanted.last())
        .map(|(_, index)| index)
}

/// The wildcards over the names above this one.
fn above(name: &DnsName) -> impl Iterator<Item = Host> {
    let text = name.as_str();
    text.match_indices('.')
        .filter_map(|(at, _)| DnsName::new(text.get(at + 1..)?).ok())
        .map(Host::Wildcard)
}

#[cfg(test)]
mod tests {
    use super::Covering;
    use portcullis_common::endpoint::Endpoint;
    use std::fmt::Write as _;

    /// Every pair compared.
    fn covers(wide: &Endpoint, narrow: &Endpoint) -> bool {
        wide.protocol == narrow.protocol
            && wide.host.includes(&narrow.host)
            && wide.ports.includes(narrow.ports)
    }

    /// All combinations of some hosts, protocols and ports, so that there is much to cover.
    fn endpoints() -> Vec<Endpoint> {
        let hosts = [
            "a.test", "*.a.test", "x.a.test", "*.x.a.test", "y.x.a.test", "b.test", "0.0.0.0/0",
            "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "[2001:db8::]/32", "[2001:db8::7]",
        ];
        let mut texts = String::new();
        for host in hosts {
            for ports in ["443", "1-1000", "400-500", "443-9000", "*", "443"] {
                for protocol in ["tcp", "udp"] {
                    // Writing to a String can't fail.
                    let host = host.replace("]/32", "/32]");
                    let _ = writeln!(texts, "{protocol}://{host}:{ports}");
                }
            }
        }
        texts.push_str("icmp://10.1.2.3\nicmp://10.0.0.0/8\nicmp://a.test\n");
        texts.lines().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn looking_up_finds_what_comparing_all_finds() {
        let all = endpoints();
        // In several orders, for of two that mean the same the first counts.
        for step in [1, 7, 41] {
            let list: Vec<&Endpoint> =
                (0..all.len()).map(|index| &all[index * step % all.len()]).collect();
            let covering = Covering::of(list.iter().copied());
            for (index, endpoint) in list.iter().enumerate() {
                let is_wider = |other: usize| {
                    other != index
                        && covers(list[other], endpoint)
                        && !(covers(endpoint, list[other]) && other > index)
                };
                let found = covering.find_other(endpoint, index);
                assert_eq!(found.is_some(), (0..list.len()).any(is_wider), "{endpoint}");
                assert!(found.is_none_or(is_wider), "{endpoint}: {found:?}");
            }
            let (some, others) = list.split_at(list.len() / 2);
            let covering = Covering::of(some.iter().copied());
            for endpoint in others {
                let found = covering.find(endpoint);
                let expected = some.iter().any(|wide| covers(wide, endpoint));
                assert_eq!(found.is_some(), expected, "{endpoint}");
                assert!(found.is_none_or(|index| covers(some[index], endpoint)), "{endpoint}");
            }
            let covering_any = covering.cover_any(others.iter().copied());
            for (wide, found) in some.iter().zip(covering_any) {
                let expected = others.iter().any(|endpoint| covers(wide, endpoint));
                assert_eq!(found, expected, "{wide}");
            }
        }
    }
}
