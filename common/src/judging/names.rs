//! The policy's endpoints, sorted so that judging a name costs as many look-ups as the name has labels.

use super::addresses::NetworkIndex;
use crate::endpoint::{Host, PortRange, Protocol};
use crate::policy::Rule;
use std::net::IpAddr;
use std::sync::Arc;

/// What a rule opens for the addresses of a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opening {
    /// The transport.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
    /// The rule responsible.
    pub rule: Arc<Rule>,
}

/// What the policy says about a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NameVerdict {
    /// A rule denies it, and nothing of what is allowed remains.
    Denied(Arc<Rule>),
    /// Rules allow it.
    Allowed {
        /// What is opened; not empty. Port ranges that a denied endpoint takes away are gone already.
        openings: Vec<Opening>,
        /// The name below which a wildcard allows it (`npmjs.org` of `*.npmjs.org`), when no rule names it exactly.
        wildcard: Option<Arc<str>>,
    },
    /// Nothing names it.
    NotListed,
}

/// One rule that a name leads to.
#[derive(Clone, Debug)]
struct Entry {
    denied: bool,
    /// Whether it is for every name below this one, instead of for the name itself.
    below: bool,
    rule: Arc<Rule>,
}

/// The rules by name, and the addresses that the policy names itself.
#[derive(Debug, Default)]
pub struct NamePolicy {
    /// Sorted by name, the rules of one name in the policy's order: a policy can have tens of thousands, for which this is
    /// less than half of what a hash table takes, and who asks waits for an upstream anyway.
    names: Vec<(Arc<str>, Entry)>,
    allowed_networks: NetworkIndex,
    denied_networks: NetworkIndex,
}

impl NamePolicy {
    /// Indexes a policy's endpoints.
    pub fn compile(allowed: &[Arc<Rule>], denied: &[Arc<Rule>]) -> Self {
        let mut policy = Self::default();
        for rule in allowed {
            policy.add(rule, false);
        }
        for rule in denied {
            policy.add(rule, true);
        }
        policy.names.sort_by(|(one, _), (other, _)| one.cmp(other));
        policy.names.shrink_to_fit();
        policy
    }

    fn add(&mut self, rule: &Arc<Rule>, denied: bool) {
        let rule = Arc::clone(rule);
        let networks = if denied { &mut self.denied_networks } else { &mut self.allowed_networks };
        match &rule.endpoint.host {
            Host::Address(address) => networks.insert((*address).into(), rule),
            Host::Network(network) => networks.insert(*network, rule),
            Host::Name(name) => {
                self.names.push((name.shared(), Entry { denied, below: false, rule }));
            }
            Host::Wildcard(base) => {
                self.names.push((base.shared(), Entry { denied, below: true, rule }));
            }
        }
    }

    /// What is listed for exactly this name.
    fn listed(&self, name: &str) -> &[(Arc<str>, Entry)] {
        let first = self.names.partition_point(|(listed, _)| **listed < *name);
        let from = self.names.get(first..).unwrap_or_default();
        let count = from.partition_point(|(listed, _)| **listed == *name);
        from.get(..count).unwrap_or_default()
    }

    /// Judges `name`: lower case, without a trailing dot, its labels free of dots (a checked
    /// question of DNS gives such a name).
    pub fn judge(&self, name: &str) -> NameVerdict {
        let mut matching: Vec<&Entry> = Vec::new();
        let mut exact = false;
        let mut wildcard = None;
        for (_, entry) in self.listed(name).iter().filter(|(_, entry)| !entry.below) {
            exact |= !entry.denied;
            matching.push(entry);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            rest = parent;
            for (base, entry) in self.listed(parent).iter().filter(|(_, entry)| entry.below) {
                if wildcard.is_none() && !entry.denied {
                    wildcard = Some(Arc::clone(base));
                }
                matching.push(entry);
            }
        }
        let denied = || matching.iter().filter(|entry| entry.denied).map(|entry| &entry.rule);
        let openings: Vec<Opening> = matching
            .iter()
            .filter(|entry| !entry.denied)
            .flat_map(|entry| remaining(&entry.rule, denied()))
            .collect();
        if !openings.is_empty() {
            return NameVerdict::Allowed { openings, wildcard: wildcard.filter(|_| !exact) };
        }
        denied().next().map_or(NameVerdict::NotListed, |rule| NameVerdict::Denied(Arc::clone(rule)))
    }

    /// Whether the policy itself allows `address`, alone or in a network: only then may a name that leads to an address
    /// of special use open it.
    pub fn names_address(&self, address: IpAddr) -> bool {
        self.allowed_networks.find(address).next().is_some()
    }

    /// Whether the policy denies a call to `address`: the rule responsible. `port` does not matter for [`Protocol::Icmp`].
    pub fn denied_at(
        &self,
        protocol: Protocol,
        address: IpAddr,
        port: Option<u16>,
    ) -> Option<&Arc<Rule>> {
        self.denied_networks.find(address).find(|rule| concerns(rule, protocol, port))
    }

    /// The rules that allow a call to `address` by itself, whatever name led there.
    pub fn allowed_at(
        &self,
        protocol: Protocol,
        address: IpAddr,
        port: Option<u16>,
    ) -> impl Iterator<Item = &Arc<Rule>> {
        self.allowed_networks.find(address).filter(move |rule| concerns(rule, protocol, port))
    }

    /// What remains of `opening` for `address` after the denied addresses and networks.
    pub fn openings_at(&self, opening: &Opening, address: IpAddr) -> Vec<PortRange> {
        remaining_ports(opening.protocol, opening.ports, self.denied_networks.find(address))
    }
}

/// Whether a rule is about this transport and port.
fn concerns(rule: &Rule, protocol: Protocol, port: Option<u16>) -> bool {
    rule.endpoint.protocol == protocol
        && (protocol == Protocol::Icmp
            || port.is_some_and(|port| rule.endpoint.ports.contains(port)))
}

/// `rule` without the ports that `denied` rules of the same transport take away.
fn remaining<'rules>(
    rule: &Arc<Rule>,
    denied: impl Iterator<Item = &'rules Arc<Rule>>,
) -> impl Iterator<Item = Opening> {
    let protocol = rule.endpoint.protocol;
    let rule = Arc::clone(rule);
    remaining_ports(protocol, rule.endpoint.ports, denied).into_iter().map(move |ports| Opening {
        protocol,
        ports,
        rule: Arc::clone(&rule),
    })
}

/// `ports` without those of `denied`.
fn remaining_ports<'rules>(
    protocol: Protocol,
    ports: PortRange,
    denied: impl Iterator<Item = &'rules Arc<Rule>>,
) -> Vec<PortRange> {
    denied.filter(|rule| rule.endpoint.protocol == protocol).fold(vec![ports], |ranges, rule| {
        let taken = rule.endpoint.ports;
        ranges
            .into_iter()
            .flat_map(|range| {
                let before = taken
                    .first()
                    .checked_sub(1)
                    .and_then(|end| PortRange::new(range.first(), range.last().min(end)));
                let after = taken
                    .last()
                    .checked_add(1)
                    .and_then(|start| PortRange::new(range.first().max(start), range.last()));
                before.into_iter().chain(after)
            })
            .collect()
    })
}

#[cfg(test)]
mod tests;
