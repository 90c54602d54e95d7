//! DNS redirection: whatever server a query is addressed to, the job's resolver gets it.

use super::build::{RuleBuilder, rule};
use super::{Plan, base_chain, chain, set};
use crate::egress::expression::{Expression, MetaKey, Register};
use crate::egress::rule_set::{Chain, ChainKind, HookPoint, Rule};
use crate::egress::target::{IpFamily, ResolverPorts};
use portcullis_common::event::EnforcementScope;

/// The port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

fn query() -> RuleBuilder {
    rule().meta_in(MetaKey::TransportProtocol, set::TRANSPORTS).destination_port(DNS_PORT)
}

impl Plan<'_> {
    pub(super) fn dns_chains(&self) -> Vec<Chain> {
        let output = base_chain(
            "dns_output",
            ChainKind::Nat,
            HookPoint::Output,
            vec![query().goto("dns_owner")],
        );
        let mut owner = vec![rule().jump("upstream")];
        owner.extend(self.infrastructure_rules());
        match self.target.scope {
            EnforcementScope::Job => {
                owner.extend(self.owned(|owner| owner.goto("dns_redirect"), RuleBuilder::accept));
                owner.extend(self.started_for_the_job("dns_redirect"));
            }
            EnforcementScope::Host => owner.push(rule().goto("dns_redirect")),
        }
        let redirect = |ports: ResolverPorts| {
            by_family(ports).map(|(family, port)| redirect(family, port)).collect()
        };
        // What containers ask, on bridges that come while the job runs too.
        let mut prerouting = vec![rule().arrives_by_loopback().accept()];
        prerouting.extend(self.of_other_namespaces().map(|condition| {
            condition
                .meta_in(MetaKey::TransportProtocol, set::TRANSPORTS)
                .destination_port(DNS_PORT)
                .goto("dns_forwarded")
        }));
        vec![
            output,
            chain("dns_owner", owner),
            chain("dns_redirect", redirect(self.target.resolver)),
            base_chain("dns_prerouting", ChainKind::Nat, HookPoint::Prerouting, prerouting),
            chain("dns_forwarded", redirect(self.target.container_resolver)),
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
