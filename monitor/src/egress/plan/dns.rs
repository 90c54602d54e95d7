//! DNS redirection: whatever server a query is addressed to, the job's resolver gets it.

use super::build::{RuleBuilder, rule, text_key};
use super::endpoints::address_bytes;
use super::{Plan, base_chain, chain, family_of, set};
use crate::egress::expression::{Expression, MetaKey, Register};
use crate::egress::rule_set::{Chain, ChainKind, HookPoint, Rule};
use crate::egress::target::{ForwardedDns, IpFamily};
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
                owner.extend(self.owners().map(|owner| owner.goto("dns_redirect")));
                owner.extend(self.started_for_the_job("dns_redirect"));
            }
            EnforcementScope::Host => owner.push(rule().goto("dns_redirect")),
        }
        let ports =
            [(IpFamily::V4, self.target.resolver.v4), (IpFamily::V6, self.target.resolver.v6)];
        let redirect =
            ports.into_iter().filter_map(|(family, port)| Some(redirect(family, port?))).collect();
        let mut chains = vec![output, chain("dns_owner", owner), chain("dns_redirect", redirect)];
        if !self.target.forwarded_dns.is_empty() {
            let rules = self.target.forwarded_dns.iter().map(forwarded).collect();
            chains.push(base_chain("dns_prerouting", ChainKind::Nat, HookPoint::Prerouting, rules));
        }
        chains
    }
}

fn redirect(family: IpFamily, port: u16) -> Rule {
    rule()
        .family(family)
        .with(Expression::Load { to: Register::FIRST, value: port.to_be_bytes().to_vec() })
        .with(Expression::Redirect { port: Register::FIRST })
        .done()
}

fn forwarded(forwarded: &ForwardedDns) -> Rule {
    let family = family_of(&forwarded.resolver);
    let port = Register::FIRST.plus(4);
    query()
        .meta(MetaKey::InputName, text_key(&forwarded.interface))
        .family(family)
        .with(Expression::Load {
            to: Register::FIRST,
            value: address_bytes(forwarded.resolver.ip()),
        })
        .with(Expression::Load {
            to: port,
            value: forwarded.resolver.port().to_be_bytes().to_vec(),
        })
        .with(Expression::DestinationNat {
            v6: family == IpFamily::V6,
            address: Register::FIRST,
            port,
        })
        .done()
}
