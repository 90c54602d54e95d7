//! The chains that decide about the job's packets.

use super::build::{KeySource, RuleBuilder, protocol, rule, state, status};
use super::endpoints::{StaticEndpoints, number};
use super::{Plan, chain, counters, set};
use crate::egress::expression::{Expression, MetaKey, Rejection};
use crate::egress::log_prefix::{Path, RuleKind};
use crate::egress::rule_set::{Chain, GrantClass, GrantSets, Rule};
use crate::egress::target::IpFamily;
use portcullis_common::endpoint::Protocol;

/// The ways that the job's packets leave by.
const WAYS_OUT: [Path; 2] = [Path::Output, Path::Forward];

/// The type of an echo request.
const fn echo_request(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 8,
        IpFamily::V6 => 128,
    }
}

impl Plan<'_> {
    /// `judge_output`, `judge_forward` and what they go to.
    pub(super) fn judge_chains(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        for path in WAYS_OUT {
            let name = path.as_str();
            chains.push(chain(
                format!("judge_{name}"),
                IpFamily::ALL
                    .map(|family| {
                        rule().family(family).goto(format!("judge_{name}{}", family.digit()))
                    })
                    .into(),
            ));
            for family in IpFamily::ALL {
                chains.push(self.judge(path, family));
                chains.push(self.judge_echo(path, family));
            }
            for grants in &self.grants {
                chains.push(use_chain(path, grants));
            }
            chains.push(self.tail(path));
            chains.push(self.allowed(path));
            chains.push(self.denied(path));
            chains.push(self.blocked(path));
        }
        chains
    }

    /// Looks a packet of the family up. Denied comes first: it wins.
    fn judge(&self, path: Path, family: IpFamily) -> Chain {
        let icmp = number(Protocol::Icmp, family);
        let name = path.as_str();
        let digit = family.digit();
        let mut rules = vec![rule().transport(icmp).goto(format!("echo_{name}{digit}"))];
        let key = || rule().load_endpoint_key(family, KeySource::Port);
        rules.extend(self.denied_lookups(path, family, key));
        let adopted =
            self.target.adopted_flows.iter().any(|flow| super::family_of(&flow.local) == family);
        if path == Path::Output && adopted {
            // No log: these connections are the runner's own and older than the job.
            rules.push(
                rule()
                    .transport(protocol::TCP)
                    .load_flow_key(family, true)
                    .lookup(&format!("adopted{digit}"))
                    .accept(),
            );
        }
        rules.extend(self.allowed_lookups(path, family, key));
        for grants in self.grants.iter().filter(|grants| grants.family == family) {
            let GrantClass::Ports(protocol, ports) = grants.class else { continue };
            for set in [&grants.granted, &grants.active] {
                rules.push(
                    rule()
                        .transport(number(protocol, family))
                        .destination_ports(ports.first(), ports.last())
                        .load_destination(family, crate::egress::expression::Register::FIRST)
                        .lookup(set)
                        .goto(use_name(path, grants)),
                );
            }
        }
        rules.push(rule().goto(format!("tail_{name}")));
        chain(format!("judge_{name}{digit}"), rules)
    }

    /// Looks an ICMP packet up: only echo requests can be allowed.
    fn judge_echo(&self, path: Path, family: IpFamily) -> Chain {
        let key =
            || rule().icmp_type_is(echo_request(family)).load_endpoint_key(family, KeySource::Echo);
        let mut rules = self.denied_lookups(path, family, key);
        rules.extend(self.allowed_lookups(path, family, key));
        rules.push(rule().goto(format!("tail_{}", path.as_str())));
        chain(format!("echo_{}{}", path.as_str(), family.digit()), rules)
    }

    fn denied_lookups(
        &self,
        path: Path,
        family: IpFamily,
        key: impl Fn() -> RuleBuilder,
    ) -> Vec<Rule> {
        static_sets("denied", self.denied.get(&family), family)
            .map(|set| key().lookup(&set).goto(format!("denied_{}", path.as_str())))
            .collect()
    }

    fn allowed_lookups(
        &self,
        path: Path,
        family: IpFamily,
        key: impl Fn() -> RuleBuilder,
    ) -> Vec<Rule> {
        let mut rules: Vec<Rule> = static_sets("allowed", self.allowed.get(&family), family)
            .map(|set| key().lookup(&set).goto(format!("allowed_{}", path.as_str())))
            .collect();
        let exact =
            |grants: &&GrantSets| grants.family == family && grants.class == GrantClass::Exact;
        for grants in self.grants.iter().filter(exact) {
            for set in [&grants.granted, &grants.active] {
                rules.push(key().lookup(set).goto(use_name(path, grants)));
            }
        }
        rules
    }

    /// What no set has: containers of this host, packets that the kernel made, and the rest, which is stopped.
    fn tail(&self, path: Path) -> Chain {
        let mut rules = self.accept_to_containers();
        match path {
            Path::Output | Path::Input | Path::Device => {
                rules.push(rule().has(MetaKey::SocketUser).goto("blocked_output"));
                rules.extend(self.stop_errors_of_answers());
                for family in IpFamily::ALL {
                    rules.push(
                        rule()
                            .transport(number(Protocol::Icmp, family))
                            .load_icmp_type()
                            .lookup(&format!("{}{}", set::KERNEL_ICMP, family.digit()))
                            .accept(),
                    );
                }
                rules.push(rule().transport(protocol::IGMP).accept());
                let kernel_made = rule().count(counters::KERNEL_MADE);
                rules.push(if self.audit { kernel_made.accept() } else { kernel_made.drop() });
            }
            Path::Forward => {
                for family in IpFamily::ALL {
                    rules.push(
                        rule()
                            .transport(number(Protocol::Icmp, family))
                            .state_any(state::RELATED)
                            .load_icmp_type()
                            .lookup(&format!("{}{}", set::ICMP_ERRORS, family.digit()))
                            .accept(),
                    );
                }
                rules.push(rule().goto("blocked_forward"));
            }
        }
        chain(format!("tail_{}", path.as_str()), rules)
    }

    /// Accepts what comes from containers of this host.
    pub(super) fn accept_from_containers(&self) -> Vec<Rule> {
        self.of_containers(MetaKey::InputIndex, MetaKey::InputKind)
            .map(|of_containers| of_containers(rule()).accept())
            .collect()
    }

    /// Accepts what goes to containers of this host. Only to addresses that are not routed on the internet: root can lead
    /// any route into a veth or bridge, and from there, below IP, to an uplink.
    fn accept_to_containers(&self) -> Vec<Rule> {
        let conditions: Vec<_> =
            self.of_containers(MetaKey::OutputIndex, MetaKey::OutputKind).collect();
        let networks = IpFamily::ALL.into_iter().flat_map(|family| {
            local_networks(family).iter().map(move |(first, last)| (family, *first, *last))
        });
        networks
            .flat_map(|(family, first, last)| {
                conditions.iter().map(move |of_containers| {
                    of_containers(rule().destination_starts(family, first, last)).accept()
                })
            })
            .collect()
    }

    /// The conditions by which a packet belongs to an interface of containers.
    fn of_containers(
        &self,
        index: MetaKey,
        kind: MetaKey,
    ) -> impl Iterator<Item = Box<dyn Fn(RuleBuilder) -> RuleBuilder>> + use<> {
        let known: Option<Box<dyn Fn(RuleBuilder) -> RuleBuilder>> =
            (!self.target.container_bridges.is_empty()).then(|| {
                Box::new(move |rule: RuleBuilder| rule.meta_in(index, set::CONTAINER_BRIDGES)) as _
            });
        let new: Option<Box<dyn Fn(RuleBuilder) -> RuleBuilder>> =
            (!self.container_kinds().is_empty()).then(|| {
                Box::new(move |rule: RuleBuilder| {
                    rule.meta_in(kind, set::CONTAINER_KINDS).meta_not_in(index, set::UPLINKS)
                }) as _
            });
        known.into_iter().chain(new)
    }

    fn allowed(&self, path: Path) -> Chain {
        chain(format!("allowed_{}", path.as_str()), self.once_per_flow(RuleKind::Allowed, path))
    }

    /// Accepts what comes later in a flow, then logs and accepts its first packet, and packets that connection tracking does not
    /// know.
    pub(super) fn once_per_flow(&self, kind: RuleKind, path: Path) -> Vec<Rule> {
        vec![
            rule().status_any(status::CONFIRMED).accept(),
            self.logger.log(rule(), kind, path).accept(),
        ]
    }

    fn denied(&self, path: Path) -> Chain {
        let mut rules = vec![self.logger.log(rule(), RuleKind::Denied, path).done()];
        rules.extend(rejections(path));
        chain(format!("denied_{}", path.as_str()), rules)
    }

    fn blocked(&self, path: Path) -> Chain {
        let mut rules = Vec::new();
        if self.audit {
            rules.extend(self.once_per_flow(RuleKind::WouldBlock, path));
        } else {
            rules.push(self.logger.log(rule().reply(), RuleKind::Inbound, path).drop());
            rules.push(self.logger.log(rule(), RuleKind::Blocked, path).done());
            rules.extend(rejections(path));
        }
        chain(format!("blocked_{}", path.as_str()), rules)
    }
}

/// The first two bytes of networks that are not routed on the internet, where containers live (RFC 6890): private,
/// shared, link-local and benchmarking addresses of IPv4; unique local and link-local ones of IPv6.
const fn local_networks(family: IpFamily) -> &'static [([u8; 2], [u8; 2])] {
    match family {
        IpFamily::V4 => &[
            ([10, 0], [10, 255]),
            ([100, 64], [100, 127]),
            ([169, 254], [169, 254]),
            ([172, 16], [172, 31]),
            ([192, 168], [192, 168]),
            ([198, 18], [198, 19]),
        ],
        IpFamily::V6 => &[([0xfc, 0], [0xfd, 0xff]), ([0xfe, 0x80], [0xfe, 0xbf])],
    }
}

/// The sets of static endpoints that are not empty.
fn static_sets<'a>(
    name: &'a str,
    found: Option<&'a StaticEndpoints>,
    family: IpFamily,
) -> impl Iterator<Item = String> + 'a {
    found.into_iter().flat_map(move |found| {
        [("", &found.exact), ("_ranges", &found.ranges)]
            .into_iter()
            .filter(|(_, elements)| !elements.is_empty())
            .map(move |(suffix, _)| format!("{name}{suffix}{}", family.digit()))
    })
}

fn use_name(path: Path, grants: &GrantSets) -> String {
    format!("use_{}_{}", path.as_str(), grants.active)
}

/// Prolongs the grant that a packet uses. In a chain of its own: when the set is full the rule ends, and the packet is
/// still allowed.
fn use_chain(path: Path, grants: &GrantSets) -> Chain {
    let allowed = || rule().goto(format!("allowed_{}", path.as_str()));
    let update = |loaded: RuleBuilder| {
        loaded
            .with(Expression::Update {
                set: grants.active.clone(),
                from: crate::egress::expression::Register::FIRST,
                timeout: grants.grace,
            })
            .done()
    };
    let family = grants.family;
    let rules = match grants.class {
        GrantClass::Exact => {
            let icmp = number(Protocol::Icmp, family);
            vec![
                update(rule().transport(icmp).load_endpoint_key(family, KeySource::Echo)),
                rule().transport(icmp).goto(format!("allowed_{}", path.as_str())),
                update(rule().load_endpoint_key(family, KeySource::Port)),
                allowed(),
            ]
        }
        GrantClass::Ports(..) => vec![
            update(rule().load_destination(family, crate::egress::expression::Register::FIRST)),
            allowed(),
        ],
    };
    chain(use_name(path, grants), rules)
}

/// Stops a packet so that its sender learns it at once.
///
/// A connection attempt of this host's own processes is dropped instead: a reset is delivered inside of `connect`, and
/// leaves no socket by which the process could be found. The monitor ends the attempt when it has looked that up
/// (`SocketDiagnostics::refuse`); without a monitor it is stopped all the same, and times out.
fn rejections(path: Path) -> Vec<Rule> {
    let mut rules = Vec::new();
    if path == Path::Output {
        rules.push(rule().transport(protocol::TCP).state_any(state::NEW).drop());
    }
    rules.push(rule().transport(protocol::TCP).reject(Rejection::TcpReset));
    rules.push(rule().reject(Rejection::AdministrativelyProhibited));
    rules
}
