//! Packets that arrive: replies are not a way out, so nobody outside opens a flow to the job.

use super::build::{RuleBuilder, protocol, rule, state};
use super::dns::by_family;
use super::endpoints::number;
use super::{Plan, base_chain, chain, counters, family_of, set};
use crate::egress::expression::MetaKey;
use crate::egress::log_prefix::{Path, RuleKind};
use crate::egress::rule_set::{Chain, ChainKind, HookPoint, Rule};
use crate::egress::target::IpFamily;
use portcullis_common::endpoint::Protocol;
use portcullis_common::event::EnforcementScope;

/// `PACKET_HOST`: a packet to this host alone.
const UNICAST: u8 = 0;

impl Plan<'_> {
    /// `input`.
    pub(super) fn input(&self) -> Chain {
        // Most of what arrives are replies: nothing is asked of them before.
        let mut rules = vec![
            rule().arrives_by_loopback().accept(),
            rule().state_any(state::ESTABLISHED | state::RELATED).reply().accept(),
        ];
        // The resolver listens on every address for containers, and for nobody else.
        for (family, port) in by_family(self.target.container_resolver) {
            let asked = |rule: RuleBuilder| {
                rule.family(family)
                    .meta_in(MetaKey::TransportProtocol, set::TRANSPORTS)
                    .destination_port(port)
            };
            rules.extend(self.of_other_namespaces().map(|rule| asked(rule).accept()));
            rules.push(asked(rule()).count(counters::FOREIGN_RESOLVER).drop());
        }
        // A connection older than the rules can be known to connection tracking the wrong way round.
        for family in IpFamily::ALL {
            if self.target.adopted_flows.iter().any(|flow| family_of(&flow.local) == family) {
                rules.push(
                    rule()
                        .family(family)
                        .transport(protocol::TCP)
                        .load_flow_key(family, false)
                        .lookup(&format!("adopted{}", family.digit()))
                        .accept(),
                );
            }
        }
        rules.extend(self.accept_from_containers());
        match self.target.scope {
            EnforcementScope::Job => {
                rules.extend(self.owned(|owner| owner.goto("inbound_input"), RuleBuilder::accept));
                rules.extend(self.started_for_the_job("inbound_input"));
            }
            EnforcementScope::Host => rules.extend(self.host_rules()),
        }
        base_chain("input", ChainKind::Filter, HookPoint::Input, rules)
    }

    fn host_rules(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = IpFamily::ALL
            .map(|family| {
                rule()
                    .transport(number(Protocol::Icmp, family))
                    .load_icmp_type()
                    .lookup(&format!("{}{}", set::INBOUND_ICMP, family.digit()))
                    .accept()
            })
            .into();
        rules.push(rule().transport(protocol::IGMP).accept());
        for (family, server, client) in [(IpFamily::V4, 67, 68), (IpFamily::V6, 547, 546)] {
            rules.push(
                rule()
                    .family(family)
                    .transport(protocol::UDP)
                    .source_port(server)
                    .destination_port(client)
                    .accept(),
            );
        }
        rules.extend(self.infrastructure_rules());
        rules.push(rule().full_socket().goto("inbound_input"));
        // What completes a connection that was let in above belongs to no full socket yet.
        rules.push(rule().state_any(state::ESTABLISHED).accept());
        rules.push(self.stop(rule().count(counters::NOISE)));
        rules
    }

    /// The chains for flows opened from outside.
    pub(super) fn inbound_chains(&self) -> Vec<Chain> {
        [Path::Input, Path::Forward]
            .map(|path| {
                let mut rules =
                    vec![self.stop(
                        rule().meta_not(MetaKey::PacketType, [UNICAST]).count(counters::NOISE),
                    )];
                if self.audit {
                    rules.extend(self.once_per_flow(RuleKind::WouldBlockInbound, path));
                } else {
                    rules.push(self.logger.log(rule(), RuleKind::Inbound, path).drop());
                }
                chain(format!("inbound_{}", path.as_str()), rules)
            })
            .into()
    }

    /// Drops, or in audit mode accepts.
    pub(super) fn stop(&self, rule: RuleBuilder) -> Rule {
        if self.audit { rule.accept() } else { rule.drop() }
    }
}
