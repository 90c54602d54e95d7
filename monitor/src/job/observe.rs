//! From what the watchers saw to events: pure.

use super::grant_book::NamedAddress;
use crate::dns::{DnsObservation, DnsOutcome, Reason};
use crate::egress::log_prefix::{LogPrefix, Path, RuleKind};
use crate::record::summary::DENIED_PREFIX;
use crate::watch::flow;
use crate::watch::packet::Headers;
use portcullis_common::endpoint::{Endpoint, Host, Protocol};
use portcullis_common::event::{Direction, DnsEvent, NetworkEvent, PolicyReference, Process};
use portcullis_common::policy::{EffectivePolicy, Rule};
use portcullis_common::report::FRAME_RULE;
use std::net::IpAddr;
use std::sync::Arc;

/// What stands for the absence of a rule.
pub const NO_RULE: &str = "no endpoint allows it";

/// The rule of connections that somebody outside opened.
pub const INBOUND_RULE: &str = "inbound connections are not the job's: replies are not a way out";

/// The protocol's name for events: `tcp`, `udp`, `icmp`, `icmpv6`, or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        flow::TCP => "tcp".to_owned(),
        flow::UDP => "udp".to_owned(),
        flow::ICMP => "icmp".to_owned(),
        flow::ICMP_V6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// The destination of a logged packet, or the peer of one that came in: address and port.
pub fn peer(headers: &Headers, path: Path) -> (IpAddr, Option<u16>) {
    match path {
        // Of a call from outside the interesting ends are who calls and which of our ports.
        Path::Input => (headers.source, headers.ports.map(|ports| ports.destination)),
        Path::Output | Path::Forward | Path::Device => {
            (headers.destination, headers.ports.map(|ports| ports.destination))
        }
    }
}

/// The event of a logged packet. `name` is what our resolver gave the address for.
pub fn network_event(
    headers: &Headers,
    prefix: &LogPrefix,
    name: Option<NamedAddress>,
    process: Option<Process>,
    policy: &EffectivePolicy,
    reference: &PolicyReference,
) -> NetworkEvent {
    let (address, port) = peer(headers, prefix.path);
    let protocol = protocol_name(headers.protocol);
    let direction = match prefix.path {
        Path::Output | Path::Device => Direction::Outbound,
        Path::Forward => Direction::Forwarded,
        Path::Input => Direction::Inbound,
    };
    // A name that opened nothing here must not stand beside a call that was stopped: it would say that the call went
    // to that name, and an address has many. Audit tells the name that was asked for, also one that opens other ports
    // there: a policy that is to allow the call has to name it.
    let opens = |name: &NamedAddress| {
        name.opened.as_ref().is_some_and(|opened| opened.covers(&protocol, port))
    };
    let name = match prefix.kind {
        RuleKind::Allowed => name.filter(opens),
        RuleKind::WouldBlock => name.filter(|name| !opens(name)),
        RuleKind::Blocked
        | RuleKind::Denied
        | RuleKind::Inbound
        | RuleKind::WouldBlockInbound
        | RuleKind::Frame
        | RuleKind::WouldBlockFrame => None,
    };
    let rule = match prefix.kind {
        RuleKind::Allowed => name
            .as_ref()
            .and_then(|name| name.opened.as_ref())
            .map(|opened| opened.rule.clone())
            .or_else(|| rule_for(&policy.allowed, headers.protocol, address, port))
            .unwrap_or_else(|| "a connection that the runner had before the job".to_owned()),
        RuleKind::Denied => rule_for(&policy.denied, headers.protocol, address, port)
            .map_or_else(|| DENIED_PREFIX.to_owned(), |rule| format!("{DENIED_PREFIX} by {rule}")),
        RuleKind::Blocked | RuleKind::WouldBlock => NO_RULE.to_owned(),
        RuleKind::Inbound | RuleKind::WouldBlockInbound => INBOUND_RULE.to_owned(),
        RuleKind::Frame | RuleKind::WouldBlockFrame => FRAME_RULE.to_owned(),
    };
    let (name, cname_chain) =
        name.map_or((None, Vec::new()), |name| (Some(name.name), name.cname_chain));
    NetworkEvent {
        verdict: prefix.kind.verdict(),
        direction,
        protocol,
        address,
        port,
        name,
        cname_chain,
        packets: 1,
        bytes: Some(u64::from(headers.length)),
        process,
        container: None,
        rule,
        policy: reference.clone(),
    }
}

/// The event of a query.
pub fn dns_event(
    observation: &DnsObservation,
    process: Option<Process>,
    container: Option<String>,
    reference: &PolicyReference,
) -> DnsEvent {
    let outcome: &DnsOutcome = &observation.outcome;
    DnsEvent {
        verdict: outcome.verdict,
        name: outcome.name.to_string(),
        query_type: outcome.query_type.to_string(),
        addresses: outcome.granted.to_vec(),
        cname_chain: outcome.cname_chain.clone(),
        rule: outcome.reason.to_string(),
        response_code: outcome.response_code.to_owned(),
        count: 1,
        process,
        container,
        policy: reference.clone(),
    }
}

/// Whether a refused query is only what stub resolvers do by themselves, so that no call of the job was stopped: an
/// allowed name with a search domain appended, a local name, a server that did not answer.
pub fn is_no_call(outcome: &DnsOutcome) -> bool {
    matches!(outcome.reason, Reason::Local | Reason::SearchDomain | Reason::Upstream(_))
}

/// The first rule with an address or network that covers the destination.
fn rule_for(
    rules: &[Arc<Rule>],
    protocol: u8,
    address: IpAddr,
    port: Option<u16>,
) -> Option<String> {
    rules
        .iter()
        .find(|rule| covers(&rule.endpoint, protocol, address, port))
        .map(|rule| rule.text.to_string())
}

fn covers(endpoint: &Endpoint, protocol: u8, address: IpAddr, port: Option<u16>) -> bool {
    let of_protocol = match endpoint.protocol {
        Protocol::Tcp => protocol == flow::TCP,
        Protocol::Udp => protocol == flow::UDP,
        Protocol::Icmp => matches!(protocol, flow::ICMP | flow::ICMP_V6),
    };
    let of_port = endpoint.protocol == Protocol::Icmp
        || port.is_some_and(|port| endpoint.ports.contains(port));
    let of_host = match &endpoint.host {
        Host::Address(allowed) => *allowed == address,
        Host::Network(network) => network.contains(&address),
        Host::Name(_) | Host::Wildcard(_) => false,
    };
    of_protocol && of_port && of_host
}

#[cfg(test)]
mod tests;
