use super::{MAX_ROWS, ReportHeader, Summary};
use portcullis_common::event::{
    Direction, DnsEvent, EnforcementScope, EventKind, NetworkEvent, PolicyReference, Posture,
    PostureLevel, Process, Verdict,
};
use portcullis_common::policy::EgressMode;
use portcullis_common::report::Report;
use portcullis_common::resolution::{Identity, ScopeKind};
use std::net::IpAddr;

fn policy() -> PolicyReference {
    PolicyReference { name: "p".to_owned(), version: "1".to_owned(), scope: ScopeKind::Repository }
}

fn network(
    verdict: Verdict,
    address: &str,
    port: u16,
    name: Option<&str>,
    packets: u64,
) -> EventKind {
    EventKind::Network(NetworkEvent {
        verdict,
        direction: Direction::Outbound,
        protocol: "tcp".to_owned(),
        address: address.parse::<IpAddr>().unwrap(),
        port: Some(port),
        name: name.map(str::to_owned),
        cname_chain: Vec::new(),
        packets,
        bytes: None,
        process: Some(Process {
            exe: Some("/usr/bin/curl".to_owned()),
            step: Some("__run".to_owned()),
            ..Process::default()
        }),
        container: None,
        rule: "no endpoint allows it".to_owned(),
        policy: policy(),
    })
}

fn dns(query_type: &str, count: u64) -> EventKind {
    EventKind::Dns(DnsEvent {
        verdict: Verdict::Blocked,
        name: "evil.test".to_owned(),
        query_type: query_type.to_owned(),
        addresses: Vec::new(),
        cname_chain: Vec::new(),
        rule: "no endpoint allows it".to_owned(),
        response_code: "NXDOMAIN".to_owned(),
        count,
        process: None,
        container: None,
        policy: policy(),
    })
}

fn report(kinds: &[EventKind], fail_on_block: bool) -> Report {
    let mut summary = Summary::default();
    for kind in kinds {
        summary.add(kind);
    }
    let header = ReportHeader {
        job_id: "j".to_owned(),
        policy: policy(),
        target: "octo/hello".to_owned(),
        identity: Identity::Asserted,
        mode: EgressMode::Block,
        fail_on_block,
    };
    let posture = Posture {
        level: PostureLevel::Enforced,
        scope: EnforcementScope::Host,
        features: Vec::new(),
        warnings: Vec::new(),
    };
    summary.report(&header, posture)
}

#[test]
fn equal_calls_are_one_row_and_what_was_stopped_stands_first() {
    let report = report(
        &[
            network(Verdict::Allowed, "192.0.2.1", 443, Some("ok.test"), 2),
            network(Verdict::Blocked, "2001:db8::66", 80, None, 1),
            network(Verdict::Allowed, "192.0.2.2", 443, Some("ok.test"), 3),
        ],
        true,
    );
    let rows: Vec<_> = report
        .destinations
        .iter()
        .map(|row| (row.endpoint.as_str(), row.verdict, row.process.as_str(), row.count))
        .collect();
    assert_eq!(
        rows,
        [
            ("[2001:db8::66]:80", Verdict::Blocked, "curl", 1),
            ("ok.test:443", Verdict::Allowed, "curl", 5),
        ]
    );
    assert_eq!((report.allowed, report.blocked, report.would_block), (5, 1, 0));
    assert!(report.fail_job);
}

#[test]
fn asking_for_both_families_is_one_attempt() {
    let report = report(&[dns("A", 2), dns("AAAA", 2), dns("TXT", 1)], false);
    assert_eq!(report.blocked, 3);
    assert_eq!(report.destinations.len(), 1);
    assert!(!report.fail_job);
}

#[test]
fn somebody_knocking_from_outside_does_not_fail_the_job() {
    let EventKind::Network(event) = network(Verdict::Blocked, "203.0.113.66", 22, None, 9) else {
        unreachable!()
    };
    let inbound = EventKind::Network(NetworkEvent { direction: Direction::Inbound, ..event });
    let report = report(&[inbound], true);
    assert_eq!(report.blocked, 0);
    assert_eq!(report.destinations.len(), 1, "it is reported all the same");
    assert!(!report.fail_job);
}

#[test]
fn a_flood_of_destinations_is_bounded_and_still_fails_the_job() {
    let allowed = (0..=u16::try_from(MAX_ROWS).unwrap())
        .map(|port| network(Verdict::Allowed, "192.0.2.1", port, None, 1));
    let last = network(Verdict::Blocked, "192.0.2.9", 1, None, 1);
    let report = report(&allowed.chain([last]).collect::<Vec<_>>(), true);
    assert_eq!(report.destinations.len(), MAX_ROWS);
    assert_eq!(report.destinations_left_out, 2);
    assert!(report.fail_job);
}
