//! The checked-in schemas are those of the types, and accept what the types write.

use portcullis_common::event::Event;
use portcullis_common::policy::{PolicyDocument, parse_documents};
use portcullis_common::schema;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn validator(name: &str) -> jsonschema::Validator {
    let schema =
        schema::all().into_iter().find(|schema| schema.name == name).expect("a known name").schema;
    jsonschema::draft202012::new(schema.as_value()).expect("a valid schema")
}

fn assert_valid(name: &str, value: &Value) {
    let problems: Vec<String> = validator(name).iter_errors(value).map(|e| e.to_string()).collect();
    assert!(problems.is_empty(), "{name}: {problems:?}\n{value:#}");
}

#[test]
fn checked_in_schemas_are_current() {
    for schema in schema::all() {
        let path = docs().join("schemas").join(format!("{}.json", schema.name));
        let text = serde_json::to_string_pretty(&schema.schema).unwrap() + "\n";
        if std::env::var_os("PORTCULLIS_BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let stored = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == text,
            "{} is stale; run the tests with PORTCULLIS_BLESS=1",
            path.display()
        );
    }
}

#[test]
fn example_policies_are_one_valid_store_and_match_the_schema() {
    let directory = docs().join("examples/policies");
    let store =
        portcullis_common::store_client::directory::DirectoryStore::open(&directory).unwrap();
    let set = store.current().unwrap_or_else(|errors| panic!("{errors}"));
    assert!(set.library().documents().count() >= 4);
    assert!(set.attachments().count() >= 4);
    for source in set.library().documents() {
        assert_valid("policy", &serde_json::to_value(&source.document).unwrap());
        // Every example can be put in force, or is a part that others extend.
        if source.document.egress_policy.is_some() {
            set.library().effective(&source.document.name).unwrap().unwrap();
        }
    }
}

#[test]
fn the_policy_schema_accepts_and_refuses_like_the_reader() {
    let validator = validator("policy");
    for (yaml, is_valid) in [
        ("name: a", true),
        ("name: a\negress-policy: block\nallowed-endpoints: x.test y.test", true),
        ("name: a\nallowed-endpoints: [x.test, '[2001:db8::7]:8443', icmp://192.0.2.1]", true),
        ("name: a\nlockdown-mode: {enabled: true, detections: [Reverse-Shell]}", true),
        ("name: a\nattach: [{cluster: prod}, {workflow: o/r/.github/workflows/ci.yml}]", true),
        ("egress-policy: block", false),
        ("name: Upper", false),
        ("name: a\negress-policy: deny", false),
        ("name: a\nunknown: 1", false),
        ("name: a\nallowed-endpoints: ['']", false),
        ("name: a\nallowed-endpoints: ['https://']", false),
        ("name: a\nlockdown-mode: {enable: true}", false),
        ("name: a\nattach: [{team: x}]", false),
        ("name: a\nfail-on-block: 'true'", false),
        ("name: a\nallowed-endpoints: [7]", false),
    ] {
        let value: Value = serde_saphyr::from_str(yaml).unwrap();
        assert_eq!(validator.is_valid(&value), is_valid, "schema: {yaml}");
        assert_eq!(parse_documents("x", yaml.as_bytes()).is_ok(), is_valid, "reader: {yaml}");
        assert_eq!(
            serde_json::from_value::<PolicyDocument>(value).is_ok(),
            is_valid,
            "serde: {yaml}"
        );
    }
}

#[test]
fn a_key_without_value_is_no_policy() {
    let value = json!({ "name": "a", "egress-policy": null });
    assert!(!validator("policy").is_valid(&value));
    assert!(parse_documents("x", b"name: a\negress-policy:\n").is_err());
}

#[test]
fn events_and_reports_match_their_schemas() {
    let policy = json!({ "name": "a", "version": "1f2e3d4c5b6a", "scope": "repository" });
    let process = json!({
        "pid": 7, "start_time": 1, "exe": "/usr/bin/curl", "argv": ["curl"], "uid": 1000, "cwd": "/",
        "ancestors": [{ "pid": 1, "exe": "/r/bin/Runner.Worker" }], "step": "__run"
    });
    let posture = json!({
        "level": "audit-fallback", "scope": "host", "warnings": ["w"],
        "features": [{ "name": "nftables", "state": "missing", "reason": "r" }]
    });
    let kinds = [
        json!({ "type": "network", "verdict": "would-block", "direction": "forwarded", "protocol": "tcp", "address": "2001:db8::66", "port": 443,
            "name": "evil.test", "cname_chain": ["a.test"], "packets": 1, "bytes": 60, "process": process,
            "container": "c", "rule": "no endpoint allows it", "policy": policy }),
        json!({ "type": "dns", "verdict": "blocked", "name": "evil.test", "query_type": "A", "rule": "r",
            "response_code": "NXDOMAIN", "count": 1, "policy": policy }),
        json!({ "type": "process", "process": process, "count": 1 }),
        json!({ "type": "file", "path": "/x" }),
        json!({ "type": "detection", "detection": "Reverse-Shell", "evidence": "e", "is_lockdown": true }),
        json!({ "type": "posture", "reason": "r", "posture": posture }),
        json!({ "type": "job", "stage": "ended", "reason": "r",
            "counters": [{ "rule": "r", "packets": 1, "bytes": 2, "recorded": 1 }] }),
    ];
    for kind in kinds {
        let mut value = json!({ "job_id": "j", "seq": 1, "time": "2026-08-01T10:00:00.000000Z" });
        value.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        let event: Event = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&event).unwrap(), value);
        assert_valid("event", &value);
        value["type"] = json!("unknown");
        assert!(!validator("event").is_valid(&value));
    }
    let report = json!({
        "job_id": "j", "policy": policy, "target": "octo/hello", "identity": "verified", "mode": "block",
        "posture": posture, "allowed": 1, "blocked": 1, "would_block": 0, "destinations_left_out": 0,
        "destinations": [{ "endpoint": "evil.test:443", "verdict": "blocked", "process": "-", "step": "-",
            "rule": "no endpoint allows it", "count": 1 }],
        "detections": [{ "detection": "Binding-Conflict", "evidence": "e", "is_lockdown": false }],
        "fail_job": false
    });
    let typed: portcullis_common::report::Report = serde_json::from_value(report.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), report);
    assert_valid("report", &report);
}
