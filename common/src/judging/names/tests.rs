use super::*;
use crate::endpoint::{DnsName, Endpoint};
use proptest::prelude::*;

fn rule(host: &str, first: u16, last: u16) -> Arc<Rule> {
    let name = |text: &str| DnsName::new(text).unwrap();
    let parsed = match (host.strip_prefix("*."), host.parse(), host.parse()) {
        (_, Ok(address), _) => Host::Address(address),
        (_, _, Ok(network)) => Host::Network(network),
        (Some(base), ..) => Host::Wildcard(name(base)),
        (None, ..) => Host::Name(name(host)),
    };
    let ports = PortRange::new(first, last).unwrap();
    Arc::new(Rule {
        endpoint: Endpoint { protocol: Protocol::Tcp, host: parsed, ports },
        text: format!("{host}:{first}-{last}").into(),
        policy: "p".into(),
    })
}

fn https(hosts: &[&str]) -> Vec<Arc<Rule>> {
    hosts.iter().map(|host| rule(host, 443, 443)).collect()
}

/// `name` under `allowed` and `denied`, in words: `denied by X`, `open X,Y below Z`, `not listed`.
fn check(allowed: &[Arc<Rule>], denied: &[Arc<Rule>], name: &str, expected: &str) {
    let verdict = match NamePolicy::compile(allowed, denied).judge(name) {
        NameVerdict::Denied(rule) => format!("denied by {rule}"),
        NameVerdict::NotListed => "not listed".to_owned(),
        NameVerdict::Allowed { openings, wildcard } => {
            let ports: Vec<String> = openings
                .iter()
                .map(|opening| format!("{}-{}", opening.ports.first(), opening.ports.last()))
                .collect();
            let below = wildcard.map(|base| format!(" below {base}")).unwrap_or_default();
            format!("open {}{below}", ports.join(","))
        }
    };
    assert_eq!(verdict, expected, "{name}");
}

#[test]
fn labels_are_matched_whole() {
    let allowed = https(&["github.com", "*.npmjs.org"]);
    check(&allowed, &[], "github.com", "open 443-443");
    for name in ["xgithub.com", "github.com.evil.test", "api.github.com", "com", "", "npmjs.org"] {
        check(&allowed, &[], name, "not listed");
    }
    check(&allowed, &[], "registry.npmjs.org", "open 443-443 below npmjs.org");
    check(&allowed, &[], "a.b.npmjs.org", "open 443-443 below npmjs.org");
    check(&allowed, &[], "evilnpmjs.org", "not listed");
}

#[test]
fn the_nearest_wildcard_counts_and_an_exact_rule_frees_from_it() {
    let mut allowed = https(&["*.example.com", "*.cdn.example.com", "one.cdn.example.com"]);
    allowed.push(rule("one.cdn.example.com", 80, 80));
    check(&allowed, &[], "two.cdn.example.com", "open 443-443,443-443 below cdn.example.com");
    check(&allowed, &[], "one.cdn.example.com", "open 443-443,80-80,443-443,443-443");
}

#[test]
fn denied_wins_and_takes_only_its_ports() {
    let allowed = vec![rule("*.example.com", 1, 65535), rule("one.example.com", 443, 443)];
    let all = [rule("bad.example.com", 1, 65535)];
    check(&allowed, &all, "bad.example.com", "denied by bad.example.com:1-65535");
    check(&allowed, &all, "good.example.com", "open 1-65535 below example.com");
    let ssh = [rule("*.example.com", 22, 22)];
    check(&allowed, &ssh, "one.example.com", "open 443-443,1-21,23-65535");
    check(&[], &ssh, "one.example.com", "denied by *.example.com:22-22");
}

#[test]
fn addresses_of_the_policy() {
    let policy = NamePolicy::compile(
        &https(&["10.0.0.0/8", "fd00::7"]),
        &[rule("203.0.113.0/24", 443, 443), rule("203.0.113.9", 1, 65535)],
    );
    let named = |text: &str| policy.names_address(text.parse().unwrap());
    assert!(named("10.9.8.7") && named("fd00::7") && !named("11.0.0.1") && !named("fd00::8"));
    let opening = Opening {
        protocol: Protocol::Tcp,
        ports: PortRange::new(80, 443).unwrap(),
        rule: rule("x", 80, 443),
    };
    let at = |text: &str| policy.openings_at(&opening, text.parse().unwrap());
    assert_eq!(at("203.0.113.1"), [PortRange::new(80, 442).unwrap()]);
    assert_eq!(at("203.0.113.9"), []);
    assert_eq!(at("203.0.114.1"), [PortRange::new(80, 443).unwrap()]);
}

#[test]
fn a_hundred_thousand_names_are_judged_by_their_labels() {
    let hosts: Vec<String> =
        (0..100_000).map(|number| format!("host{number}.example.com")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let policy = NamePolicy::compile(&https(&hosts), &[]);
    assert!(matches!(policy.judge("host99999.example.com"), NameVerdict::Allowed { .. }));
    assert_eq!(policy.judge("host100000.example.com"), NameVerdict::NotListed);
}

proptest! {
    /// The index agrees with looking at every rule.
    #[test]
    fn the_index_is_a_scan(
        hosts in prop::collection::vec("(\\*\\.)?[ab](\\.[ab]){0,3}", 0..12),
        name in "[ab](\\.[ab]){0,4}",
    ) {
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let policy = NamePolicy::compile(&https(&hosts), &[]);
        let matches = |host: &&&str| match host.strip_prefix("*.") {
            None => **host == name,
            Some(base) => name.strip_suffix(base).is_some_and(|rest| rest.ends_with('.')),
        };
        let expected = hosts.iter().filter(matches).count();
        match policy.judge(&name) {
            NameVerdict::Allowed { openings, wildcard } => {
                prop_assert_eq!(openings.len(), expected);
                let exact = hosts.contains(&name.as_str());
                prop_assert_eq!(wildcard.is_none(), exact);
            }
            verdict => {
                prop_assert_eq!(expected, 0);
                prop_assert_eq!(verdict, NameVerdict::NotListed);
            }
        }
    }

    /// What remains and what is taken make up the whole, port by port.
    #[test]
    fn ports_are_subtracted(first in 1u16..60, length in 0u16..20, taken in prop::collection::vec((1u16..80, 0u16..10), 0..4)) {
        let allowed = rule("x", first, first + length);
        let denied: Vec<Arc<Rule>> =
            taken.iter().map(|(start, length)| rule("x", *start, start + length)).collect();
        let open: Vec<PortRange> = match NamePolicy::compile(&[allowed], &denied).judge("x") {
            NameVerdict::Allowed { openings, .. } => {
                openings.into_iter().map(|opening| opening.ports).collect()
            }
            _ => Vec::new(),
        };
        for port in 1..100 {
            let expected = (first..=first + length).contains(&port)
                && !denied.iter().any(|rule| rule.endpoint.ports.contains(port));
            prop_assert_eq!(open.iter().any(|ports| ports.contains(port)), expected, "{}", port);
        }
    }
}
