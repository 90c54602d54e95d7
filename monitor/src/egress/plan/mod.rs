//! From a policy and a target to a rule set.
//!
//! One `inet` table: `output`, `forward` and `input` find out whose packet it is and hand the job's to `judge_*`, which
//! looks it up: denied, allowed by address, granted by name, in use. What no set has ends in `tail_*`. One `netdev`
//! table stops frames that bypass IP. Nothing is accepted because its flow is established: each packet is judged.

mod build;
mod device;
mod dns;
pub(crate) mod endpoints;
mod forward;
mod input;
mod judge;
mod output;
#[cfg(test)]
mod tests;

pub use self::dns::has_zones;

use self::build::{Logger, text_key};
use self::endpoints::{StaticEndpoints, endpoint_key, grant_classes, static_endpoints};
use super::log_prefix::RuleKind;
use super::rule_set::{
    Chain, ChainKind, ChainPolicy, Element, GrantClass, GrantSets, Hook, HookPoint, KeyField, Rule,
    RuleSet, Set, SetKind, Table, TableFamily,
};
use super::target::{CgroupId, EnforcementTarget, Flow, IpFamily};
use portcullis_common::endpoint::Protocol;
use portcullis_common::event::EnforcementScope;
use portcullis_common::policy::{EffectivePolicy, EgressMode};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// The named counters beside those of [`RuleKind::counter`].
pub mod counters {
    /// Packets that the kernel itself made in the job's name (resets, acknowledgements), and that no endpoint allows.
    pub const KERNEL_MADE: &str = "kernel_made";
    /// Queries of others to this job's resolver; dropped.
    pub const FOREIGN_RESOLVER: &str = "foreign_resolver";
    /// Packets from outside that nobody waits for.
    pub const NOISE: &str = "noise";
}

/// The priority of our filter chains: behind the usual ones (0), so that what others drop is not recorded as allowed,
/// and what they translate is judged as it leaves.
const FILTER_PRIORITY: i32 = 100;

/// The priority of our DNS redirection: in front of other people's destination NAT (-100), which would win otherwise.
const NAT_PRIORITY: i32 = -105;

/// The priority of the chains that set zones: in front of connection tracking (-200), where the usual `raw` chains are.
const RAW_PRIORITY: i32 = -300;

/// The most source ports of the resolver's upstream sockets at a time.
pub const MAX_UPSTREAM_PORTS: u32 = 4096;

/// The longest name of an interface in bytes (`IFNAMSIZ` - 1).
const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// Why no rule set can be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// In scope `job` there is nothing to tell the job's packets by.
    #[error(
        "scope `job` needs the job's cgroup or a runner user of its own; mount cgroup v2, give each runner its own \
         user, or use scope `host`"
    )]
    NoOwner,
    /// In scope `host` no uplink is known.
    #[error(
        "scope `host` needs the interfaces through which packets leave the machine, and none was found"
    )]
    NoUplink,
    /// The root of the cgroup hierarchy was named as the job's or as exempt: that is everybody.
    #[error("the cgroup of {whom} is the root of the hierarchy, which holds every process")]
    RootCgroup {
        /// Whose cgroup it is.
        whom: &'static str,
    },
    /// The runner's user is root.
    #[error(
        "the runner's user is root, so its packets can't be told from the machine's own; use scope `host`"
    )]
    RootRunner,
    /// An interface's name is empty, longer than 15 bytes, or has a NUL.
    #[error("`{0}` can't be the name of a network interface")]
    InterfaceName(String),
    /// A flow's ends are of different families.
    #[error("the adopted flow's ends are of different address families")]
    MixedFlow,
    /// Static ranges of the policy overlap in so many ways that the set would be too large.
    #[error(
        "the networks and port ranges of the policy make more than {limit} pieces; use fewer different port ranges"
    )]
    TooManyRanges {
        /// The limit.
        limit: usize,
    },
    /// Names of the policy stand with too many different port ranges.
    #[error("names of the policy stand with {found} different port ranges, more than {limit}")]
    TooManyPortRanges {
        /// How many there are.
        found: usize,
        /// The limit.
        limit: usize,
    },
}

/// What is put in force for `policy` on `target`.
///
/// # Errors
/// When the target can't be enforced as described; nothing is left out silently ([`RuleSet::gaps`] names what the
/// kernel can't do).
pub fn rule_set(
    policy: &EffectivePolicy,
    target: &EnforcementTarget,
) -> Result<RuleSet, PlanError> {
    check(target)?;
    let plan = Plan::new(policy, target)?;
    let mut tables = vec![plan.inet_table()];
    let mut gaps = Vec::new();
    if target.kernel.netdev_egress && !target.uplinks.is_empty() {
        tables.push(plan.netdev_table());
        for uplink in target.uplinks.iter().filter(|uplink| uplink.mac.is_none()) {
            gaps.push(format!(
                "{}: no Ethernet address known, frames of a macvlan child leave",
                uplink.interface.name
            ));
        }
    } else {
        gaps.push(
            "frames that bypass IP (AF_PACKET, macvlan) leave: no egress hook for interfaces"
                .to_owned(),
        );
    }
    for (family, port) in [("IPv4", target.resolver.v4), ("IPv6", target.resolver.v6)] {
        if port.is_none() {
            gaps.push(format!("DNS over {family} is not redirected: no resolver listens there"));
        }
    }
    Ok(RuleSet {
        name: target.table.clone(),
        owner: target.owner,
        tables,
        grants: plan.grants,
        element_update: target.kernel.element_update,
        gaps,
    })
}

/// Refuses targets that would open everything, or that the kernel would misread.
fn check(target: &EnforcementTarget) -> Result<(), PlanError> {
    match target.scope {
        EnforcementScope::Job => {
            if target.job_cgroup.is_none() && target.runner_uid.is_none() {
                return Err(PlanError::NoOwner);
            }
            if target.runner_uid == Some(0) {
                return Err(PlanError::RootRunner);
            }
        }
        EnforcementScope::Host if target.uplinks.is_empty() => return Err(PlanError::NoUplink),
        EnforcementScope::Host => {}
    }
    if target.job_cgroup.is_some_and(|cgroup| cgroup.level == 0) {
        return Err(PlanError::RootCgroup { whom: "the job" });
    }
    if target.infrastructure.iter().any(|cgroup| cgroup.level == 0) {
        return Err(PlanError::RootCgroup { whom: "an infrastructure unit" });
    }
    if target.other_jobs.iter().any(|cgroup| cgroup.level == 0) {
        return Err(PlanError::RootCgroup { whom: "another job" });
    }
    let names = target.uplinks.iter().map(|uplink| &uplink.interface.name);
    for name in names {
        if name.is_empty() || name.len() > MAX_INTERFACE_NAME_BYTES || name.contains('\0') {
            return Err(PlanError::InterfaceName(name.clone()));
        }
    }
    let mixed = |flow: &Flow| flow.local.is_ipv4() != flow.remote.is_ipv4();
    if target.adopted_flows.iter().any(mixed) {
        return Err(PlanError::MixedFlow);
    }
    Ok(())
}

/// The names of sets that are not per family and class of grants.
mod set {
    pub(super) const TRANSPORTS: &str = "transports";
    pub(super) const UPLINKS: &str = "uplinks";
    pub(super) const CONTAINER_BRIDGES: &str = "container_bridges";
    pub(super) const CONTAINER_KINDS: &str = "container_kinds";
    pub(super) const KNOWN_INTERFACES: &str = "known_interfaces";
    pub(super) const UPSTREAM_PORTS: &str = "upstream_ports";
    pub(super) const KERNEL_ICMP: &str = "kernel_icmp";
    pub(super) const INBOUND_ICMP: &str = "inbound_icmp";
    pub(super) const ICMP_ERRORS: &str = "icmp_errors";
}

/// The set of the resolver's upstream source ports, the only one that the monitor changes beside the grants.
pub(crate) const UPSTREAM_PORTS: &str = set::UPSTREAM_PORTS;

/// Everything that the chains are made from.
#[derive(Debug)]
struct Plan<'a> {
    target: &'a EnforcementTarget,
    audit: bool,
    logger: Logger,
    denied: BTreeMap<IpFamily, StaticEndpoints>,
    allowed: BTreeMap<IpFamily, StaticEndpoints>,
    /// The infrastructure's cgroups by level.
    infrastructure: BTreeMap<u32, BTreeSet<Element>>,
    /// The cgroups of other runners' younger jobs by level.
    other_jobs: BTreeMap<u32, BTreeSet<Element>>,
    grants: Vec<GrantSets>,
}

impl<'a> Plan<'a> {
    fn new(policy: &EffectivePolicy, target: &'a EnforcementTarget) -> Result<Self, PlanError> {
        let mut denied = BTreeMap::new();
        let mut allowed = BTreeMap::new();
        for family in IpFamily::ALL {
            denied.insert(family, static_endpoints(&policy.denied, family)?);
            allowed.insert(family, static_endpoints(&policy.allowed, family)?);
        }
        let classes = grant_classes(&policy.allowed)?;
        let grants = classes
            .iter()
            .flat_map(|&class| IpFamily::ALL.map(|family| grant_sets(class, family, target)))
            .collect();
        Ok(Self {
            target,
            audit: policy.egress == EgressMode::Audit,
            logger: Logger { table: target.table.clone(), group: target.nflog_group },
            denied,
            allowed,
            infrastructure: by_level(&target.infrastructure),
            other_jobs: by_level(&target.other_jobs),
            grants,
        })
    }

    fn inet_table(&self) -> Table {
        let mut chains = vec![self.output(), self.forward(), self.input()];
        chains.extend(self.judge_chains());
        chains.extend(self.owner_chains());
        chains.extend(self.inbound_chains());
        chains.extend(self.dns_chains());
        let mut counters: Vec<&'static str> = RuleKind::ALL
            .into_iter()
            .filter(|kind| !kind.is_of_frames())
            .map(RuleKind::counter)
            .collect();
        counters.extend([counters::KERNEL_MADE, counters::FOREIGN_RESOLVER, counters::NOISE]);
        Table { family: TableFamily::Inet, counters, sets: self.inet_sets(), chains }
    }

    fn inet_sets(&self) -> Vec<Set> {
        let target = self.target;
        let index = |interface: &super::target::Interface| interface.index.to_ne_bytes().to_vec();
        let mut sets = vec![
            exact(set::TRANSPORTS, [KeyField::Protocol], [6_u8, 17].map(|protocol| vec![protocol])),
            exact(
                set::UPLINKS,
                [KeyField::InterfaceIndex],
                target.uplinks.iter().map(|uplink| index(&uplink.interface)),
            ),
            exact(
                set::CONTAINER_BRIDGES,
                [KeyField::InterfaceIndex],
                target.container_bridges.iter().map(index),
            ),
            exact(
                set::CONTAINER_KINDS,
                [KeyField::InterfaceName],
                self.container_kinds().iter().map(|kind| text_key(kind)),
            ),
            exact(
                set::KNOWN_INTERFACES,
                [KeyField::InterfaceIndex],
                target.known_interfaces.iter().map(index),
            ),
            Set {
                kind: SetKind::Changing,
                limit: Some(MAX_UPSTREAM_PORTS),
                ..exact(
                    set::UPSTREAM_PORTS,
                    [KeyField::Port],
                    target.upstream_source_ports.iter().map(|port| port.to_be_bytes().to_vec()),
                )
            },
        ];
        let groups = |(name, elements): (String, &BTreeSet<Element>)| Set {
            name,
            kind: SetKind::Exact,
            key: vec![KeyField::Cgroup],
            limit: None,
            elements: elements.clone(),
        };
        let named = |name: fn(u32) -> String| {
            move |(level, elements): (&u32, _)| groups((name(*level), elements))
        };
        sets.extend(self.infrastructure.iter().map(named(infrastructure_set)));
        sets.extend(self.other_jobs.iter().map(named(other_jobs_set)));
        for family in IpFamily::ALL {
            sets.extend(self.family_sets(family));
        }
        sets
    }

    fn family_sets(&self, family: IpFamily) -> Vec<Set> {
        let digit = family.digit();
        let target = self.target;
        let (address, icmp_type) = match family {
            IpFamily::V4 => (KeyField::Ipv4Address, KeyField::IcmpType),
            IpFamily::V6 => (KeyField::Ipv6Address, KeyField::Icmpv6Type),
        };
        let endpoint = [address, KeyField::Protocol, KeyField::Port];
        let upstreams = target.upstreams.iter().filter(|server| family_of(server) == family);
        let flows = target.adopted_flows.iter().filter(|flow| family_of(&flow.local) == family);
        let mut sets = vec![
            exact(
                format!("upstreams{digit}"),
                endpoint,
                upstreams.flat_map(|server| {
                    [6, 17].map(|protocol| endpoint_key(server.ip(), protocol, server.port()))
                }),
            ),
            exact(
                format!("adopted{digit}"),
                [address, KeyField::Port, address, KeyField::Port],
                flows.map(flow_key),
            ),
        ];
        for (name, types) in [
            (set::KERNEL_ICMP, icmp_types(family).kernel_made),
            (set::INBOUND_ICMP, icmp_types(family).inbound),
            (set::ICMP_ERRORS, icmp_types(family).errors),
        ] {
            let types = types.iter().map(|icmp_type| vec![*icmp_type]);
            sets.push(exact(format!("{name}{digit}"), [icmp_type], types));
        }
        for (name, found) in [("denied", &self.denied), ("allowed", &self.allowed)] {
            let Some(found) = found.get(&family) else { continue };
            for (suffix, kind, elements) in
                [("", SetKind::Exact, &found.exact), ("_ranges", SetKind::Ranges, &found.ranges)]
            {
                if !elements.is_empty() {
                    sets.push(Set {
                        name: format!("{name}{suffix}{digit}"),
                        kind,
                        key: endpoint.to_vec(),
                        limit: None,
                        elements: elements.clone(),
                    });
                }
            }
        }
        for grants in self.grants.iter().filter(|grants| grants.family == family) {
            let key = match grants.class {
                GrantClass::Exact => endpoint.to_vec(),
                GrantClass::Ports(..) => vec![address],
            };
            for (name, kind) in
                [(&grants.granted, SetKind::Granted), (&grants.active, SetKind::Active)]
            {
                sets.push(Set {
                    name: name.clone(),
                    kind,
                    key: key.clone(),
                    limit: Some(grants.limit),
                    elements: BTreeSet::new(),
                });
            }
        }
        sets
    }

    /// The kinds of interfaces that lead to containers of this host. Only with the egress backstop, which stops what
    /// leaves by a bridge or veth that was tied to an uplink; else only the bridges that are known.
    fn container_kinds(&self) -> &'static [&'static str] {
        let possible = self.target.kernel.netdev_egress && !self.target.uplinks.is_empty();
        if possible { &["bridge", "veth"] } else { &[] }
    }
}

/// The ICMP types of a family that pass by themselves.
struct IcmpTypes {
    /// What the kernel itself sends: errors, echo replies, neighbour discovery, multicast listeners.
    kernel_made: &'static [u8],
    /// What may arrive.
    inbound: &'static [u8],
    /// Errors about packets of a flow.
    errors: &'static [u8],
}

const fn icmp_types(family: IpFamily) -> IcmpTypes {
    match family {
        IpFamily::V4 => IcmpTypes {
            kernel_made: &[0, 3, 11, 12],
            inbound: &[3, 8, 11, 12],
            errors: &[3, 11, 12],
        },
        IpFamily::V6 => IcmpTypes {
            kernel_made: &[1, 2, 3, 4, 129, 130, 131, 132, 133, 134, 135, 136, 143],
            inbound: &[1, 2, 3, 4, 128, 130, 131, 132, 133, 134, 135, 136, 143],
            errors: &[1, 2, 3, 4],
        },
    }
}

fn family_of(address: &SocketAddr) -> IpFamily {
    IpFamily::of(address.ip())
}

fn infrastructure_set(level: u32) -> String {
    format!("infrastructure_{level}")
}

fn other_jobs_set(level: u32) -> String {
    format!("other_jobs_{level}")
}

/// Cgroups as elements of one set for each level.
fn by_level(groups: &[CgroupId]) -> BTreeMap<u32, BTreeSet<Element>> {
    let mut found: BTreeMap<u32, BTreeSet<Element>> = BTreeMap::new();
    for CgroupId { id, level } in groups {
        let element = Element { key: id.to_ne_bytes().to_vec(), end: None };
        found.entry(*level).or_default().insert(element);
    }
    found
}

fn grant_sets(class: GrantClass, family: IpFamily, target: &EnforcementTarget) -> GrantSets {
    let suffix = match class {
        GrantClass::Exact => family.digit().to_string(),
        GrantClass::Ports(protocol, ports) => {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Icmp => "icmp",
            };
            format!("_{protocol}_{}_{}_{}", ports.first(), ports.last(), family.digit())
        }
    };
    GrantSets {
        family,
        class,
        granted: format!("granted{suffix}"),
        active: format!("active{suffix}"),
        grace: target.grace,
        limit: target.max_grants,
    }
}

/// A permanent set of exact keys.
fn exact(
    name: impl Into<String>,
    key: impl Into<Vec<KeyField>>,
    elements: impl IntoIterator<Item = Vec<u8>>,
) -> Set {
    Set {
        name: name.into(),
        kind: SetKind::Exact,
        key: key.into(),
        limit: None,
        elements: elements.into_iter().map(|key| Element { key, end: None }).collect(),
    }
}

/// A port as one of several fields of a key.
fn port_key(port: u16) -> Vec<u8> {
    let mut key = port.to_be_bytes().to_vec();
    key.extend([0, 0]);
    key
}

fn flow_key(flow: &Flow) -> Vec<u8> {
    [flow.local, flow.remote]
        .into_iter()
        .flat_map(|end| [endpoints::address_bytes(end.ip()), port_key(end.port())].concat())
        .collect()
}

/// A chain that others jump to.
fn chain(name: impl Into<String>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), hook: None, rules }
}

/// A chain of a hook.
fn base_chain(name: &str, kind: ChainKind, point: HookPoint, rules: Vec<Rule>) -> Chain {
    let priority = match kind {
        ChainKind::Filter => FILTER_PRIORITY,
        ChainKind::Nat => NAT_PRIORITY,
    };
    let hook = Hook { kind, point, priority, policy: ChainPolicy::Accept };
    Chain { name: name.to_owned(), hook: Some(hook), rules }
}
