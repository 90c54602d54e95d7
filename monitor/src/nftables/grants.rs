//! Grants as elements of sets.

use super::decode::FoundElement;
use super::encode::{ElementValue, add_elements, delete_elements};
use super::socket::{Batch, Refused};
use super::wire::kernel;
use crate::egress::grant::{Grant, GrantError};
use crate::egress::plan::endpoints::{address_bytes, endpoint_key, grant_class, number};
use crate::egress::rule_set::{GrantClass, GrantSets, RuleSet};
use crate::egress::target::IpFamily;
use portcullis_common::endpoint::{PortRange, Protocol};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A live grant, as the kernel holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LiveGrant {
    /// The address.
    pub address: IpAddr,
    /// The transport.
    pub protocol: Protocol,
    /// The ports; [`PortRange::ALL`] for ICMP.
    pub ports: PortRange,
    /// How long it stays open without another grant or packet.
    pub remaining: Duration,
    /// Whether packets have used it within the grace period.
    pub used: bool,
}

/// A grant that ends less than this later than one that is open already is not worth a transaction.
const NEGLIGIBLE: Duration = Duration::from_secs(1);

/// When each grant that we opened ends, so that a grant never shortens another one of the same address.
#[derive(Debug, Default)]
pub(super) struct Ledger(HashMap<String, HashMap<Box<[u8]>, Instant>>);

impl Ledger {
    /// Notes what a set held when it was read.
    pub(super) fn note(&mut self, set: &str, elements: &[FoundElement], now: Instant) {
        for element in elements {
            if let Some(remaining) = element.remaining {
                self.insert(set, &element.key, now + remaining);
            }
        }
    }

    /// Whether we ever opened this.
    pub(super) fn knows(&self, set: &str, key: &[u8]) -> bool {
        self.end(set, key).is_some()
    }

    /// What is open in a set at `now`.
    pub(super) fn open(&self, set: &str, now: Instant) -> Vec<FoundElement> {
        let ends = self.0.get(set).into_iter().flatten();
        ends.filter(|(_, end)| **end > now)
            .map(|(key, end)| FoundElement {
                key: key.to_vec(),
                end: None,
                remaining: Some(end.saturating_duration_since(now)),
            })
            .collect()
    }

    fn insert(&mut self, set: &str, key: &[u8], end: Instant) {
        if !self.0.contains_key(set) {
            self.0.insert(set.to_owned(), HashMap::new());
        }
        if let Some(ends) = self.0.get_mut(set) {
            ends.insert(key.into(), end);
        }
    }

    /// When the element ends.
    fn end(&self, set: &str, key: &[u8]) -> Option<Instant> {
        self.0.get(set)?.get(key).copied()
    }

    fn len(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }

    fn forget_ended(&mut self, now: Instant) {
        for ends in self.0.values_mut() {
            ends.retain(|_, end| *end > now);
        }
    }
}

/// What is to be added, by set and key.
#[derive(Debug, Default)]
pub(super) struct Additions(BTreeMap<(String, Vec<u8>), Duration>);

impl Additions {
    /// What `grants` need beyond what is open.
    pub(super) fn of(
        grants: &[Grant],
        rules: &RuleSet,
        ledger: &Ledger,
        now: Instant,
    ) -> Result<Self, GrantError> {
        let mut additions = BTreeMap::new();
        for grant in grants {
            let sets = sets_of(grant, rules)?;
            let key = (sets.granted.clone(), grant_key(grant, sets.class));
            let open = ledger
                .end(&key.0, &key.1)
                .map_or(Duration::ZERO, |end| end.saturating_duration_since(now));
            if grant.lifetime > open.saturating_add(NEGLIGIBLE) || open.is_zero() {
                let lifetime = additions.entry(key).or_insert(grant.lifetime);
                *lifetime = grant.lifetime.max(*lifetime);
            }
        }
        Ok(Self(additions))
    }

    /// One transaction for all of them.
    pub(super) fn batch(&self, rules: &RuleSet) -> Batch {
        let mut batch = Batch::new();
        let table = rules.name.as_str();
        let family = kernel::NFPROTO_INET;
        for set in rules.grants.iter().map(|sets| &sets.granted) {
            let values: Vec<ElementValue<'_>> = self
                .0
                .iter()
                .filter(|((name, _), _)| name == set)
                .map(|((_, key), lifetime)| ElementValue {
                    key,
                    end: None,
                    timeout: Some(*lifetime),
                })
                .collect();
            if values.is_empty() {
                continue;
            }
            add_elements(&mut batch, family, table, set, values.iter().copied());
            if !rules.element_update {
                // Adding again changes nothing on this kernel. Only now is each element sure to exist, so that it can
                // be deleted; all in one transaction, so that no packet sees it missing.
                delete_elements(&mut batch, family, table, set, values.iter().copied());
                add_elements(&mut batch, family, table, set, values);
            }
        }
        batch
    }

    /// Notes that they are open.
    pub(super) fn done(self, ledger: &mut Ledger, now: Instant, limit: usize) {
        if ledger.len() > limit {
            ledger.forget_ended(now);
        }
        for ((set, key), lifetime) in self.0 {
            ledger.insert(&set, &key, now + lifetime);
        }
    }
}

/// Why the kernel refused grants.
pub(super) fn refusal(refused: Refused, rules: &RuleSet) -> GrantError {
    if refused.source.raw_os_error() == Some(libc::ENFILE) {
        let limit = rules.grants.iter().map(|sets| sets.limit).max().unwrap_or_default();
        return GrantError::Full { limit: usize::try_from(limit).unwrap_or(usize::MAX) };
    }
    GrantError::Kernel(refused.source)
}

fn sets_of<'a>(grant: &Grant, rules: &'a RuleSet) -> Result<&'a GrantSets, GrantError> {
    let family = IpFamily::of(grant.address);
    let class = grant_class(grant.protocol, grant.ports);
    rules
        .grants
        .iter()
        .find(|sets| sets.family == family && sets.class == class)
        .ok_or(GrantError::NoSuchEndpoint { protocol: grant.protocol, ports: grant.ports })
}

fn grant_key(grant: &Grant, class: GrantClass) -> Vec<u8> {
    match class {
        GrantClass::Exact => {
            let port = if grant.protocol == Protocol::Icmp { 0 } else { grant.ports.first() };
            let protocol = number(grant.protocol, IpFamily::of(grant.address));
            endpoint_key(grant.address, protocol, port)
        }
        GrantClass::Ports(..) => address_bytes(grant.address),
    }
}

/// The grants of a pair of sets: what the monitor opened, and what packets keep open.
pub(super) fn live(
    sets: &GrantSets,
    granted: &[FoundElement],
    active: &[FoundElement],
) -> Vec<LiveGrant> {
    let mut remaining: BTreeMap<&[u8], (Duration, bool)> = BTreeMap::new();
    for (elements, used) in [(granted, false), (active, true)] {
        for element in elements {
            let entry = remaining.entry(&element.key).or_default();
            entry.0 = entry.0.max(element.remaining.unwrap_or_default());
            entry.1 |= used;
        }
    }
    remaining
        .into_iter()
        .filter_map(|(key, (remaining, used))| {
            let (address, protocol, ports) = read_key(key, sets)?;
            Some(LiveGrant { address, protocol, ports, remaining, used })
        })
        .collect()
}

fn read_key(key: &[u8], sets: &GrantSets) -> Option<(IpAddr, Protocol, PortRange)> {
    let (address, rest) = match sets.family {
        IpFamily::V4 => {
            let (bytes, rest) = key.split_first_chunk::<4>()?;
            (IpAddr::V4(Ipv4Addr::from(*bytes)), rest)
        }
        IpFamily::V6 => {
            let (bytes, rest) = key.split_first_chunk::<16>()?;
            (IpAddr::V6(Ipv6Addr::from(*bytes)), rest)
        }
    };
    match sets.class {
        GrantClass::Ports(protocol, ports) => Some((address, protocol, ports)),
        GrantClass::Exact => {
            let &[found, _, _, _, high, low, ..] = rest else { return None };
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp]
                .into_iter()
                .find(|protocol| number(*protocol, sets.family) == found)?;
            let ports = match protocol {
                Protocol::Icmp => PortRange::ALL,
                Protocol::Tcp | Protocol::Udp => {
                    PortRange::single(u16::from_be_bytes([high, low]))?
                }
            };
            Some((address, protocol, ports))
        }
    }
}
