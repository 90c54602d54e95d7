use super::{INBOUND_RULE, NO_RULE, network_event};
use crate::egress::log_prefix::{LogPrefix, Path, RuleKind};
use crate::egress::target::TableName;
use crate::job::grant_book::{NamedAddress, Opened};
use crate::watch::packet::{Headers, Ports};
use portcullis_common::event::{Direction, NetworkEvent, PolicyReference, Verdict};
use portcullis_common::policy::{EffectivePolicy, EgressMode, Rule};
use portcullis_common::resolution::ScopeKind;
use std::sync::Arc;

fn headers(destination: &str, port: u16) -> Headers {
    Headers {
        protocol: 6,
        source: "198.51.100.9".parse().unwrap(),
        destination: destination.parse().unwrap(),
        ports: Some(Ports { source: 40_000, destination: port }),
        icmp: None,
        is_later_fragment: false,
        length: 60,
    }
}

/// A name that opened only another port.
fn named_elsewhere() -> NamedAddress {
    let mut name = named(true);
    let opened = name.opened.as_mut().unwrap();
    (opened.first_port, opened.last_port) = (8443, 8443);
    name
}

fn named(opened: bool) -> NamedAddress {
    NamedAddress {
        address: "192.0.2.7".parse().unwrap(),
        name: "ok.test".to_owned(),
        cname_chain: vec!["edge.test".to_owned()],
        opened: opened.then(|| Opened {
            protocol: "tcp".to_owned(),
            first_port: 443,
            last_port: 443,
            rule: "*.test:443".to_owned(),
        }),
    }
}

fn event(kind: RuleKind, path: Path, name: Option<NamedAddress>) -> NetworkEvent {
    let rule = |text: &str| {
        let endpoint = text.parse().unwrap();
        Arc::new(Rule { endpoint, text: text.into(), policy: "p".into() })
    };
    let policy = EffectivePolicy {
        allowed: vec![rule("10.0.0.0/8:443"), rule("192.0.2.0/24:*")],
        denied: vec![rule("192.0.2.7:443")],
        ..EffectivePolicy::built_in(EgressMode::Block)
    };
    let reference = PolicyReference {
        name: "p".to_owned(),
        version: "1".to_owned(),
        scope: ScopeKind::Cluster,
    };
    let prefix = LogPrefix { table: TableName::for_job("a1").unwrap(), kind, path };
    network_event(&headers("192.0.2.7", 443), &prefix, name, None, &policy, &reference)
}

#[test]
fn an_allowed_call_names_what_opened_it() {
    let by_name = event(RuleKind::Allowed, Path::Output, Some(named(true)));
    assert_eq!(by_name.verdict, Verdict::Allowed);
    assert_eq!(by_name.name.as_deref(), Some("ok.test"));
    assert_eq!(by_name.cname_chain, ["edge.test"]);
    assert_eq!(by_name.rule, "*.test:443");

    let by_network = event(RuleKind::Allowed, Path::Output, None);
    assert_eq!((by_network.name, by_network.rule.as_str()), (None, "192.0.2.0/24:*"));

    // Its name opened another port: the network is what allows this one.
    let by_network = event(RuleKind::Allowed, Path::Output, Some(named_elsewhere()));
    assert_eq!((by_network.name, by_network.rule.as_str()), (None, "192.0.2.0/24:*"));
}

#[test]
fn a_blocked_call_claims_no_name() {
    for name in [Some(named(true)), Some(named(false)), None] {
        let blocked = event(RuleKind::Blocked, Path::Output, name);
        assert_eq!((blocked.name, blocked.rule.as_str()), (None, NO_RULE));
    }
    let denied = event(RuleKind::Denied, Path::Output, Some(named(true)));
    assert_eq!((denied.name, denied.rule.as_str()), (None, "denied by 192.0.2.7:443"));
}

#[test]
fn audit_tells_the_name_that_was_asked_for() {
    // Also a name that is allowed on another port.
    for name in [named(false), named_elsewhere()] {
        let event = event(RuleKind::WouldBlock, Path::Forward, Some(name));
        assert_eq!(event.verdict, Verdict::WouldBlock);
        assert_eq!(event.direction, Direction::Forwarded);
        assert_eq!((event.name.as_deref(), event.rule.as_str()), (Some("ok.test"), NO_RULE));
    }
}

#[test]
fn a_call_from_outside_tells_who_called_and_where() {
    let event = event(RuleKind::Inbound, Path::Input, None);
    assert_eq!(event.direction, Direction::Inbound);
    assert_eq!(event.address.to_string(), "198.51.100.9");
    assert_eq!(event.port, Some(443));
    assert_eq!(event.rule, INBOUND_RULE);
}
