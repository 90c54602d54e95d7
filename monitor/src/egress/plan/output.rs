//! Packets that processes of the Worker's network namespace send.

use super::build::{RuleBuilder, protocol, rule, state, status};
use super::dns::by_family;
use super::endpoints::address_bytes;
use super::{
    Plan, base_chain, chain, counters, family_of, infrastructure_set, other_jobs_set, set,
};
use crate::egress::expression::{MetaKey, Register};
use crate::egress::rule_set::{Chain, ChainKind, HookPoint, Rule};
use crate::egress::target::IpFamily;
use portcullis_common::event::EnforcementScope;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How deep below the root of the hierarchy younger groups are looked for. Those of container engines and service managers
/// lie 2 to 6 deep.
const MAX_GROUP_LEVEL: u32 = 12;

/// The user that the monitor runs as.
const ROOT: u32 = 0;

/// Has `upstream` look at what comes from one of its ports: hardly any packet does.
pub(super) fn upstream() -> Rule {
    rule().load_source_port(Register::FIRST).lookup(set::UPSTREAM_PORTS).jump("upstream")
}

impl Plan<'_> {
    /// `output`: whose packet is it?
    pub(super) fn output(&self) -> Chain {
        // Every packet of the job passes here: what few packets have is asked first, and the rest in chains of its own.
        let asked = self.resolver_ports().map(|port| rule().destination_port(port).jump("asks"));
        let mut rules: Vec<Rule> = asked.collect();
        for port in &self.target.closed_ports {
            let to_engine = |owner: RuleBuilder| {
                owner.leaves_by_loopback().transport(protocol::TCP).destination_port(*port)
            };
            rules.extend(self.owned(
                |owner| to_engine(owner).goto("denied_output"),
                |other| to_engine(other).accept(),
            ));
        }
        rules.push(rule().leaves_by_loopback().accept());
        rules.extend(self.infrastructure_rules());
        rules.push(upstream());
        let ports: BTreeSet<u16> =
            by_family(self.target.container_resolver).map(|(_, port)| port).collect();
        rules.extend(ports.into_iter().map(|port| rule().source_port(port).jump("answers")));
        match self.target.scope {
            EnforcementScope::Job => {
                rules.extend(self.owned(|owner| owner.goto("judge_output"), RuleBuilder::accept));
                // Another job's table may have redirected a query of what nobody owns to that job's resolver; the packet
                // still has its old way out.
                for (family, loopback) in [
                    (IpFamily::V4, &[127, 0, 0, 1][..]),
                    (IpFamily::V6, &Ipv6Addr::LOCALHOST.octets()),
                ] {
                    let redirected = rule().status_any(status::DESTINATION_NAT);
                    rules.push(redirected.family(family).destination(family, loopback).accept());
                }
                rules.extend(self.started_for_the_job("judge_output"));
            }
            EnforcementScope::Host => {
                // The kernel's answer to a connection that `input` let in belongs to no full socket yet, so that the
                // cgroup of its listener can't be told. What a process forges has a full socket and is judged.
                rules.push(rule().full_socket().goto("judge_output"));
                rules.push(
                    rule()
                        .transport(protocol::TCP)
                        .tcp_syn_ack()
                        .reply()
                        .state_any(state::ESTABLISHED)
                        .accept(),
                );
                rules.push(rule().goto("judge_output"));
            }
        }
        base_chain("output", ChainKind::Filter, HookPoint::Output, rules)
    }

    /// The chains that tell the job, the monitor and the infrastructure apart.
    pub(super) fn owner_chains(&self) -> Vec<Chain> {
        vec![
            chain("resolver", self.resolver_rules()),
            chain("asks", self.questions()),
            chain("upstream", self.upstream_rules()),
            chain("answers", self.resolver_answers()),
        ]
    }

    /// The ports that the job's resolver listens on, for whomever.
    fn resolver_ports(&self) -> impl Iterator<Item = u16> + use<> {
        let ports = [self.target.resolver, self.target.container_resolver];
        let ports: BTreeSet<u16> =
            ports.into_iter().flat_map(by_family).map(|(_, port)| port).collect();
        ports.into_iter()
    }

    /// What is sent to the job's resolver.
    fn questions(&self) -> Vec<Rule> {
        let of_containers = by_family(self.target.container_resolver).map(|(family, port)| {
            rule()
                .leaves_by_loopback()
                .family(family)
                .meta_in(MetaKey::TransportProtocol, set::TRANSPORTS)
                .destination_port(port)
                .goto("resolver")
        });
        let of_host = self.resolvers().into_iter().map(|resolver| {
            let family = family_of(&resolver);
            rule()
                .family(family)
                .destination(family, &address_bytes(resolver.ip()))
                .meta_in(MetaKey::TransportProtocol, set::TRANSPORTS)
                .destination_port(resolver.port())
                .goto("resolver")
        });
        of_containers.chain(of_host).collect()
    }

    /// Where the job's resolver listens.
    fn resolvers(&self) -> Vec<SocketAddr> {
        let ports = self.target.resolver;
        let v4 = ports.v4.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        let v6 = ports.v6.map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port));
        v4.into_iter().chain(v6).collect()
    }

    /// Who may ask the job's resolver: in scope `job` only the job.
    fn resolver_rules(&self) -> Vec<Rule> {
        let foreign = |other: RuleBuilder| other.count(counters::FOREIGN_RESOLVER).drop();
        // A redirected query still has its old way out; nothing else reaches this host's own address but by loopback.
        let outside = rule()
            .leaves_otherwise()
            .status_none(status::DESTINATION_NAT)
            .count(counters::FOREIGN_RESOLVER)
            .drop();
        match self.target.scope {
            EnforcementScope::Host => vec![outside, rule().accept()],
            EnforcementScope::Job => {
                let mut rules = vec![outside];
                rules.extend(self.owned(RuleBuilder::accept, foreign));
                rules.extend(self.in_younger_groups(RuleBuilder::accept));
                rules.push(foreign(rule()));
                rules
            }
        }
    }

    /// The monitor's own queries: from its cgroup, from its resolver's ports, to its servers.
    fn upstream_rules(&self) -> Vec<Rule> {
        IpFamily::ALL
            .into_iter()
            .filter(|family| {
                self.target.upstreams.iter().any(|server| family_of(server) == *family)
            })
            .map(|family| {
                self.monitor(
                    rule().family(family).meta_in(MetaKey::TransportProtocol, set::TRANSPORTS),
                )
                .load_source_port(Register::FIRST)
                .lookup(set::UPSTREAM_PORTS)
                .load_endpoint_key(family, super::build::KeySource::Port)
                .lookup(&format!("upstreams{}", family.digit()))
                .accept()
            })
            .collect()
    }

    /// The resolver's answers to containers.
    fn resolver_answers(&self) -> Vec<Rule> {
        by_family(self.target.container_resolver)
            .map(|(family, port)| {
                self.monitor(
                    rule()
                        .meta_not_in(MetaKey::OutputIndex, set::UPLINKS)
                        .family(family)
                        .meta_in(MetaKey::TransportProtocol, set::TRANSPORTS)
                        .source_port(port),
                )
                .accept()
            })
            .collect()
    }

    /// Only packets of the monitor.
    fn monitor(&self, rule: RuleBuilder) -> RuleBuilder {
        match self.target.monitor_cgroup {
            Some(cgroup) if cgroup.level > 0 => rule.cgroup(cgroup),
            _ => rule.user(ROOT),
        }
    }

    /// Lets packets of the infrastructure's sockets pass.
    pub(super) fn infrastructure_rules(&self) -> Vec<Rule> {
        self.infrastructure
            .keys()
            .map(|level| rule().cgroup_in(*level, &infrastructure_set(*level)).accept())
            .collect()
    }

    /// Rules about the job's sockets in scope `job`, by group and by user, `theirs` about those of other jobs: the group
    /// comes first, and a user tells only what no job's group does. An earlier job of the same runner has the same user.
    pub(super) fn owned(
        &self,
        ours: impl Fn(RuleBuilder) -> Rule,
        theirs: impl Fn(RuleBuilder) -> Rule,
    ) -> Vec<Rule> {
        let cgroup = self.target.job_cgroup.map(|cgroup| ours(rule().cgroup(cgroup)));
        let others = self
            .other_jobs
            .keys()
            .map(|level| theirs(rule().cgroup_in(*level, &other_jobs_set(*level))));
        let user = self.target.runner_uid.map(|uid| ours(rule().user(uid)));
        cgroup.into_iter().chain(others).chain(user).collect()
    }

    /// Sends what daemons started since the job began, for whomever, to `chain`, in scope `job`: a container in the host's
    /// network, a transient unit. Whose it is can't be told, so each running job judges it, and it may do what all of
    /// them may. Comes after [`Self::owned`], which has sorted out what other jobs' groups do.
    pub(super) fn started_for_the_job(&self, chain: &str) -> Vec<Rule> {
        self.in_younger_groups(|younger| younger.goto(chain))
    }

    /// Rules about sockets in groups that are younger than the job's.
    fn in_younger_groups(&self, judge: impl Fn(RuleBuilder) -> Rule) -> Vec<Rule> {
        let Some(own) = self.target.job_cgroup else { return Vec::new() };
        (1..=MAX_GROUP_LEVEL).map(|level| judge(rule().cgroup_younger_than(level, own))).collect()
    }
}
