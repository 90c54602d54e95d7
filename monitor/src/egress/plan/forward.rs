//! Packets of containers and of other network namespaces.

use super::build::{RuleBuilder, rule, state};
use super::{Plan, base_chain, set};
use crate::egress::expression::MetaKey;
use crate::egress::rule_set::{Chain, ChainKind, HookPoint};
use portcullis_common::event::EnforcementScope;

impl Plan<'_> {
    /// `forward`: what does not come from an uplink is the job's (scope `host`); what comes from a container bridge or
    /// from an interface younger than the job is (scope `job`).
    pub(super) fn forward(&self) -> Chain {
        let rules = match self.target.scope {
            EnforcementScope::Host => vec![
                rule().meta_not_in(MetaKey::InputIndex, set::UPLINKS).goto("judge_forward"),
                rule().meta_in(MetaKey::OutputIndex, set::UPLINKS).accept(),
                rule().state_any(state::ESTABLISHED | state::RELATED).reply().accept(),
                rule().goto("inbound_forward"),
            ],
            EnforcementScope::Job => self
                .of_other_namespaces()
                .map(|of_other_namespaces| of_other_namespaces.goto("judge_forward"))
                .collect(),
        };
        base_chain("forward", ChainKind::Filter, HookPoint::Forward, rules)
    }

    /// The beginnings of rules about packets that come from containers and other network namespaces of the job: not from
    /// an uplink (scope `host`); from a container bridge or from an interface younger than the job (scope `job`).
    pub(super) fn of_other_namespaces(&self) -> impl Iterator<Item = RuleBuilder> + use<> {
        match self.target.scope {
            EnforcementScope::Host => {
                vec![rule().meta_not_in(MetaKey::InputIndex, set::UPLINKS)]
            }
            EnforcementScope::Job => vec![
                rule().meta_in(MetaKey::InputIndex, set::CONTAINER_BRIDGES),
                rule().meta_not_in(MetaKey::InputIndex, set::KNOWN_INTERFACES),
            ],
        }
        .into_iter()
    }
}
