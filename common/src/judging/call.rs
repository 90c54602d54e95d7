//! A call that is over, judged by a policy that was not in force for it.

use super::addresses::special_use;
use super::github_hosts::POLICY_NAME;
use super::names::{NamePolicy, NameVerdict};
use crate::endpoint::{Endpoint, Host, PortRange, Protocol};
use crate::policy::{EffectivePolicy, Rule};
use std::net::IpAddr;
use std::sync::Arc;

/// A call as a record has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    /// The transport.
    pub protocol: Protocol,
    /// The name that led to the address; `None` when the address itself was called.
    pub name: Option<String>,
    /// The address; `None` when only the name is known any more.
    pub address: Option<IpAddr>,
    /// The port; `None` for ICMP.
    pub port: Option<u16>,
}

impl Call {
    /// The call to a destination as a report writes it (`registry.npmjs.org:443`, `udp://192.0.2.7:53`) with the address
    /// that a name led to. `None` for what no endpoint of a policy can name: connections from outside, frames that bypass
    /// IP, other transports.
    pub fn of_destination(destination: &str, address: Option<IpAddr>) -> Option<Self> {
        let endpoint: Endpoint = destination.parse().ok()?;
        let port = match endpoint.protocol {
            Protocol::Icmp => None,
            _ if endpoint.ports.is_single() => Some(endpoint.ports.first()),
            _ => return None,
        };
        let (name, address) = match endpoint.host {
            Host::Name(name) => (Some(name.as_str().to_owned()), address),
            Host::Address(address) => (None, Some(address)),
            Host::Wildcard(_) | Host::Network(_) => return None,
        };
        Some(Self { protocol: endpoint.protocol, name, address, port })
    }
}

/// What a policy says about a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CallVerdict {
    /// Rules allow it: all that cover it, at least one.
    Allowed(Vec<Arc<Rule>>),
    /// A rule denies it, in audit mode, too.
    Denied(Arc<Rule>),
    /// Its name is allowed, and leads to an address of special use that the policy does not name.
    SpecialUse(&'static str),
    /// Nothing allows it.
    NotListed,
}

/// A policy, indexed for judging many calls.
#[derive(Debug)]
pub struct CallJudge {
    rules: NamePolicy,
}

impl CallJudge {
    /// Indexes a policy. `github_hosts` are the hosts that a runner can't do without; they are allowed by every policy.
    pub fn new(policy: &EffectivePolicy, github_hosts: &[Arc<Rule>]) -> Self {
        let allowed: Vec<Arc<Rule>> = policy.allowed.iter().chain(github_hosts).cloned().collect();
        Self { rules: NamePolicy::compile(&allowed, &policy.denied) }
    }

    /// Whether a rule is one of those that every policy has.
    pub fn is_built_in(rule: &Rule) -> bool {
        &*rule.policy == POLICY_NAME
    }

    /// Judges a call as resolver and kernel would have done, one after the other.
    pub fn judge(&self, call: &Call) -> CallVerdict {
        match &call.name {
            Some(name) => self.judge_name(name, call),
            None => call
                .address
                .map_or(CallVerdict::NotListed, |address| self.judge_address(address, call)),
        }
    }

    fn judge_name(&self, name: &str, call: &Call) -> CallVerdict {
        let openings = match self.rules.judge(name) {
            NameVerdict::Allowed { openings, .. } => openings,
            NameVerdict::Denied(rule) => return CallVerdict::Denied(rule),
            // The resolver does not answer, whatever the address is.
            NameVerdict::NotListed => return CallVerdict::NotListed,
        };
        if let Some(address) = call.address
            && let Some(rule) = self.rules.denied_at(call.protocol, address, call.port)
        {
            return CallVerdict::Denied(Arc::clone(rule));
        }
        let covers = |ports: PortRange| {
            call.protocol == Protocol::Icmp || call.port.is_some_and(|port| ports.contains(port))
        };
        let rules: Vec<Arc<Rule>> = openings
            .iter()
            .filter(|opening| opening.protocol == call.protocol && covers(opening.ports))
            .map(|opening| Arc::clone(&opening.rule))
            .collect();
        let by_address = |address| match self.judge_address(address, call) {
            CallVerdict::Allowed(rules) => Some(CallVerdict::Allowed(rules)),
            _ => None,
        };
        if rules.is_empty() {
            // The name resolves for another port; then the address alone decides.
            return call.address.and_then(by_address).unwrap_or(CallVerdict::NotListed);
        }
        match call.address.map(|address| (address, special_use(address))) {
            Some((address, Some(usage))) if !self.rules.names_address(address) => {
                CallVerdict::SpecialUse(usage)
            }
            _ => CallVerdict::Allowed(rules),
        }
    }

    fn judge_address(&self, address: IpAddr, call: &Call) -> CallVerdict {
        if let Some(rule) = self.rules.denied_at(call.protocol, address, call.port) {
            return CallVerdict::Denied(Arc::clone(rule));
        }
        let rules: Vec<Arc<Rule>> =
            self.rules.allowed_at(call.protocol, address, call.port).cloned().collect();
        if rules.is_empty() { CallVerdict::NotListed } else { CallVerdict::Allowed(rules) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, CallJudge, CallVerdict};
    use crate::judging::github_hosts::github_hosts;
    use crate::policy::{EffectivePolicy, EgressMode, Rule};
    use std::sync::Arc;

    fn rules(texts: &[&str]) -> Vec<Arc<Rule>> {
        texts
            .iter()
            .map(|text| {
                let endpoint = text.parse().unwrap();
                Arc::new(Rule { endpoint, text: (*text).into(), policy: "p".into() })
            })
            .collect()
    }

    #[test]
    fn calls_are_judged_as_resolver_and_kernel_do() {
        let policy = EffectivePolicy {
            allowed: rules(&[
                "a.test:443",
                "*.b.test:1-99",
                "x.b.test:50",
                "10.0.0.0/8:5432",
                "10.1.0.0/16:443",
                "icmp://192.0.2.1",
                "udp://a.test:53",
            ]),
            denied: rules(&[
                "10.6.0.0/16:*",
                "evil.b.test:*",
                "x.b.test:60-70",
                "198.51.100.0/24:443",
            ]),
            ..EffectivePolicy::built_in(EgressMode::Block)
        };
        let judge = CallJudge::new(&policy, &github_hosts("github.com").unwrap());
        for (destination, address, expected) in [
            ("a.test:443", None, "allowed by a.test:443"),
            ("a.test:443", Some("203.0.113.1"), "allowed by a.test:443"),
            ("a.test:80", Some("203.0.113.1"), "not listed"),
            ("udp://a.test:443", None, "not listed"),
            ("udp://a.test:53", None, "allowed by udp://a.test:53"),
            ("deep.x.b.test:7", None, "allowed by *.b.test:1-99"),
            ("x.b.test:50", None, "allowed by x.b.test:50, *.b.test:1-99"),
            ("x.b.test:65", None, "not listed"),
            ("b.test:50", None, "not listed"),
            ("evil.b.test:50", None, "denied by evil.b.test:*"),
            // A name must be allowed; an address of special use besides.
            ("a.test:443", Some("10.2.0.1"), "allowed by a.test:443"),
            ("a.test:443", Some("127.0.0.1"), "special: loopback"),
            ("a.test:443", Some("10.6.0.1"), "denied by 10.6.0.0/16:*"),
            ("a.test:443", Some("198.51.100.7"), "denied by 198.51.100.0/24:443"),
            ("a.test:5432", Some("10.2.0.1"), "allowed by 10.0.0.0/8:5432"),
            ("db.test:5432", Some("10.2.0.1"), "not listed"),
            ("10.2.0.1:5432", None, "allowed by 10.0.0.0/8:5432"),
            ("10.6.0.1:5432", None, "denied by 10.6.0.0/16:*"),
            ("10.2.0.1:443", None, "not listed"),
            ("icmp://192.0.2.1", None, "allowed by icmp://192.0.2.1"),
            ("icmp://192.0.2.2", None, "not listed"),
            ("github.com:443", None, "allowed by github.com:443"),
        ] {
            let call = Call::of_destination(destination, address.map(|text| text.parse().unwrap()))
                .unwrap();
            let found = match judge.judge(&call) {
                CallVerdict::Allowed(rules) => {
                    let texts: Vec<&str> = rules.iter().map(|rule| &*rule.text).collect();
                    format!("allowed by {}", texts.join(", "))
                }
                CallVerdict::Denied(rule) => format!("denied by {rule}"),
                CallVerdict::SpecialUse(usage) => format!("special: {usage}"),
                CallVerdict::NotListed => "not listed".to_owned(),
            };
            assert_eq!(found, expected, "{destination} {address:?}");
        }
    }

    #[test]
    fn what_no_endpoint_can_name_is_no_call() {
        for destination in
            ["from 192.0.2.1:22", "frame of arp", "132://192.0.2.1", "a.test:1-9", "x y"]
        {
            assert_eq!(Call::of_destination(destination, None), None, "{destination}");
        }
    }
}
