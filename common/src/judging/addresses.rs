//! An index of the networks that a policy names, and the addresses that no name may open by itself.

pub use crate::address::special_use;

use crate::policy::Rule;
use ipnet::IpNet;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Networks with their rules: finding those around an address costs one look-up for each prefix length in use.
#[derive(Debug, Default)]
pub struct NetworkIndex {
    rules: HashMap<IpNet, Vec<Arc<Rule>>>,
    ipv4_lengths: BTreeSet<u8>,
    ipv6_lengths: BTreeSet<u8>,
}

impl NetworkIndex {
    /// Adds a rule for `network`.
    pub fn insert(&mut self, network: IpNet, rule: Arc<Rule>) {
        let lengths = match network {
            IpNet::V4(_) => &mut self.ipv4_lengths,
            IpNet::V6(_) => &mut self.ipv6_lengths,
        };
        lengths.insert(network.prefix_len());
        self.rules.entry(network.trunc()).or_default().push(rule);
    }

    /// The rules of all networks around `address`.
    pub fn find(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Rule>> {
        let lengths = match address {
            IpAddr::V4(_) => &self.ipv4_lengths,
            IpAddr::V6(_) => &self.ipv6_lengths,
        };
        lengths
            .iter()
            .filter_map(move |length| IpNet::new(address, *length).ok())
            .filter_map(|network| self.rules.get(&network.trunc()))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Endpoint, Host, PortRange, Protocol};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn rule(text: &str) -> (IpNet, Arc<Rule>) {
        let network: IpNet = text.parse().unwrap();
        let endpoint = Endpoint {
            protocol: Protocol::Tcp,
            host: Host::Network(network),
            ports: PortRange::ALL,
        };
        (network, Arc::new(Rule { endpoint, text: text.into(), policy: "p".into() }))
    }

    proptest! {
        /// The index finds exactly the networks that contain the address.
        #[test]
        fn the_index_is_a_scan(
            networks in prop::collection::vec((any::<bool>(), any::<u128>(), 0u8..=128), 0..20),
            pick in any::<prop::sample::Index>(),
            noise in any::<u8>(),
        ) {
            let networks: Vec<IpNet> = networks
                .into_iter()
                .map(|(is_ipv4, bits, length)| {
                    let ipv4 = Ipv4Addr::from_bits(u32::try_from(bits >> 96).unwrap());
                    if is_ipv4 {
                        IpNet::new(ipv4.into(), length % 33).unwrap().trunc()
                    } else {
                        IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap().trunc()
                    }
                })
                .collect();
            let mut index = NetworkIndex::default();
            for network in &networks {
                let (network, rule) = rule(&network.to_string());
                index.insert(network, rule);
            }
            let address = match networks.get(pick.index(networks.len().max(1))) {
                Some(IpNet::V4(network)) =>
                    Ipv4Addr::from_bits(network.addr().to_bits() ^ u32::from(noise)).into(),
                Some(IpNet::V6(network)) =>
                    Ipv6Addr::from_bits(network.addr().to_bits() ^ u128::from(noise)).into(),
                None => IpAddr::from(Ipv4Addr::LOCALHOST),
            };
            let mut found: Vec<_> = index.find(address).map(|rule| rule.text.to_string()).collect();
            let mut expected: Vec<_> = networks
                .iter()
                .filter(|network| network.contains(&address))
                .map(ToString::to_string)
                .collect();
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
