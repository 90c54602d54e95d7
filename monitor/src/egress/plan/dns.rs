//! DNS redirection: whatever server a query is addressed to, the job's resolver gets it.

use super::build::{RuleBuilder, rule};
use super::endpoints::number;
use super::output::upstream;
use super::{NAT_PRIORITY, Plan, RAW_PRIORITY, chain, set};
use crate::egress::expression::{Expression, MetaKey, Register};
use crate::egress::rule_set::{Chain, ChainKind, ChainPolicy, Hook, HookPoint, Rule};
use crate::egress::target::{IpFamily, KernelSupport, ResolverPorts};
use portcullis_common::endpoint::Protocol;
use portcullis_common::event::EnforcementScope;

/// The port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// What is done in front of connection tracking and behind it, by the same rules about whose query it is.
#[derive(Clone, Copy)]
struct Stage {
    /// What the names of its chains start with.
    name: &'static str,
    kind: ChainKind,
    priority: i32,
    /// What is done with a query that goes to this port.
    act: fn(IpFamily, u16) -> Rule,
}

/// Gives the query's flow a zone of its own. Address translation is decided with the first packet of a flow, so that one from
/// before the rules would go on past the redirection; nor must a flow of an earlier job lead to that job's resolver. The
/// resolver's port is what makes a zone's flows equal.
const ZONE: Stage = Stage {
    name: "zone",
    kind: ChainKind::Filter,
    priority: RAW_PRIORITY,
    act: |family, port| {
        rule()
            .family(family)
            .with(Expression::Load { to: Register::FIRST, value: port.to_ne_bytes().to_vec() })
            .with(Expression::SetOriginalZone { from: Register::FIRST })
            .accept()
    },
};

/// Leads it to the resolver.
const REDIRECTION: Stage =
    Stage { name: "dns", kind: ChainKind::Nat, priority: NAT_PRIORITY, act: redirect };

impl Stage {
    fn chain_name(self, end: &str) -> String {
        format!("{}_{end}", self.name)
    }

    fn base_chain(self, point: HookPoint, end: &str, rules: Vec<Rule>) -> Chain {
        let hook =
            Hook { kind: self.kind, point, priority: self.priority, policy: ChainPolicy::Accept };
        Chain { name: self.chain_name(end), hook: Some(hook), rules }
    }
}

/// Whether flows of DNS get a zone. Only where every packet to port 53 is judged: the job's are told by their socket where
/// others are not, and what the kernel sends for a connection that is closed already has none.
pub fn has_zones(kernel: KernelSupport, scope: EnforcementScope) -> bool {
    kernel.conntrack_zones && scope == EnforcementScope::Host
}

/// "Destination unreachable" about a packet that came from a name server's port (RFC 792, RFC 4443 §3.1): the error's own
/// header has 8 bytes, and an answer's IP header has no options.
fn error_of_answer(family: IpFamily) -> RuleBuilder {
    let (unreachable, header) = match family {
        IpFamily::V4 => (3, 20),
        IpFamily::V6 => (1, 40),
    };
    rule()
        .transport(number(Protocol::Icmp, family))
        .icmp_type_is(unreachable)
        .transport_bytes(8 + header, &DNS_PORT.to_be_bytes())
}

/// The port is looked at first: hardly any packet has it, and all pass here.
fn query() -> RuleBuilder {
    rule().destination_port(DNS_PORT).meta_in(MetaKey::TransportProtocol, set::TRANSPORTS)
}

impl Plan<'_> {
    pub(super) fn dns_chains(&self) -> Vec<Chain> {
        let mut chains = self.dns_stage(REDIRECTION);
        if has_zones(self.target.kernel, self.target.scope) {
            chains.extend(self.dns_stage(ZONE));
        }
        chains
    }

    /// Stops what this host's kernel says of answers to ports that were closed meanwhile. It addresses the server that was
    /// asked, and quotes the answer; connection tracking does not find the flow, for an error has no zone. Audit mode stops
    /// nothing.
    pub(super) fn stop_errors_of_answers(&self) -> Vec<Rule> {
        if self.audit || !has_zones(self.target.kernel, self.target.scope) {
            return Vec::new();
        }
        let stopped = |family| error_of_answer(family).count(super::counters::KERNEL_MADE).drop();
        IpFamily::ALL.map(stopped).into()
    }

    fn dns_stage(&self, stage: Stage) -> Vec<Chain> {
        let (of_host, of_containers) = (stage.chain_name("host"), stage.chain_name("containers"));
        let asked = stage.chain_name("owner");
        let output = vec![query().goto(&asked)];
        let mut owner = vec![upstream()];
        owner.extend(self.infrastructure_rules());
        match self.target.scope {
            EnforcementScope::Job => {
                owner.extend(self.owned(|owner| owner.goto(&of_host), RuleBuilder::accept));
                owner.extend(self.started_for_the_job(&of_host));
            }
            EnforcementScope::Host => owner.push(rule().goto(&of_host)),
        }
        let act = |ports: ResolverPorts| {
            by_family(ports).map(|(family, port)| (stage.act)(family, port)).collect()
        };
        // What containers ask, on bridges that come while the job runs too.
        let arriving = stage.chain_name("arriving");
        let mut prerouting = vec![query().goto(&arriving)];
        if stage.name == ZONE.name {
            // Errors of containers lead to the resolver by their flow, as without zones.
            prerouting.extend(IpFamily::ALL.map(|family| error_of_answer(family).goto(&arriving)));
        }
        let mut arrived = vec![rule().arrives_by_loopback().accept()];
        arrived.extend(self.of_other_namespaces().map(|condition| condition.goto(&of_containers)));
        vec![
            stage.base_chain(HookPoint::Output, "output", output),
            chain(asked, owner),
            chain(of_host, act(self.target.resolver)),
            stage.base_chain(HookPoint::Prerouting, "prerouting", prerouting),
            chain(arriving, arrived),
            chain(of_containers, act(self.target.container_resolver)),
        ]
    }
}

/// The families that have a port.
pub(super) fn by_family(ports: ResolverPorts) -> impl Iterator<Item = (IpFamily, u16)> {
    [(IpFamily::V4, ports.v4), (IpFamily::V6, ports.v6)]
        .into_iter()
        .filter_map(|(family, port)| Some((family, port?)))
}

fn redirect(family: IpFamily, port: u16) -> Rule {
    rule()
        .family(family)
        .with(Expression::Load { to: Register::FIRST, value: port.to_be_bytes().to_vec() })
        .with(Expression::Redirect { port: Register::FIRST })
        .done()
}
