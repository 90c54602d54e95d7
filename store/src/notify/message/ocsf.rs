//! A Detection Finding of the Open Cybersecurity Schema Framework 1.3.0 (class 2004).

use super::{call_lines, title};
use portcullis_common::event::Process;
use portcullis_common::store_api::{Notification, NotificationKind};
use serde_json::{Map, Value, json};

pub(in crate::notify) fn ocsf(notification: &Notification) -> Value {
    // OCSF `severity_id`: 1 informational, 3 medium, 4 high, 5 critical.
    let severity = match notification.kind {
        NotificationKind::Test => 1,
        NotificationKind::Calls => 3,
        NotificationKind::Detection if notification.is_lockdown => 5,
        NotificationKind::Detection => 4,
    };
    let kind = notification.detection.as_deref().unwrap_or(match notification.kind {
        NotificationKind::Calls => "Blocked-Calls",
        _ => "Test",
    });
    let time = notification.time.as_millisecond();
    let told = notification.evidence.clone().unwrap_or_else(|| call_lines(notification).join("; "));
    let mut evidences = Vec::new();
    if notification.process.is_some() || notification.endpoint.is_some() {
        let mut evidence = Map::new();
        evidence
            .extend(notification.process.as_ref().map(|it| ("process".to_owned(), process(it))));
        evidence.extend(
            notification.endpoint.as_ref().map(|it| ("dst_endpoint".to_owned(), endpoint(it))),
        );
        evidences.push(Value::Object(evidence));
    }
    for call in &notification.calls {
        let mut evidence = json!({ "dst_endpoint": endpoint(&call.endpoint) });
        if let Some(exe) = &call.process {
            let known = Process { exe: Some(exe.clone()), ..Process::default() };
            evidence["process"] = process(&known);
        }
        evidences.push(evidence);
    }
    let mut finding = json!({
        "activity_id": 1,
        "activity_name": "Create",
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": 2004,
        "class_name": "Detection Finding",
        "type_uid": 200_401,
        "severity_id": severity,
        "status_id": 1,
        "time": time,
        "message": title(notification),
        "metadata": {
            "version": "1.3.0",
            "uid": notification.id,
            "product": {
                "name": "Portcullis",
                "vendor_name": "Portcullis",
                "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "finding_info": {
            "uid": notification.id,
            "title": title(notification),
            "desc": told,
            "types": [kind],
            "created_time": time,
            "src_url": notification.link,
        },
        "resources": [{
            "type": "CI job",
            "uid": notification.job_id,
            "name": format!("{} {}", notification.repository, notification.job),
        }],
        "unmapped": notification,
    });
    if !evidences.is_empty() {
        finding["evidences"] = Value::Array(evidences);
    }
    finding
}

fn process(process: &Process) -> Value {
    let mut value = Map::new();
    if let Some(pid) = process.pid {
        value.insert("pid".to_owned(), json!(pid));
    }
    if let Some(exe) = &process.exe {
        let name = exe.rsplit('/').next().unwrap_or(exe);
        value.insert("name".to_owned(), json!(name));
        // `type_id` 1: a regular file.
        value.insert("file".to_owned(), json!({ "name": name, "path": exe, "type_id": 1 }));
    }
    if !process.argv.is_empty() {
        value.insert("cmd_line".to_owned(), json!(process.argv.join(" ")));
    }
    if let Some(uid) = process.uid {
        value.insert("user".to_owned(), json!({ "uid": uid.to_string() }));
    }
    Value::Object(value)
}

/// `tcp://name:443`, as host and port.
fn endpoint(text: &str) -> Value {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok()),
        None => (rest, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let key = if host.parse::<std::net::IpAddr>().is_ok() { "ip" } else { "hostname" };
    let mut value = json!({ key: host });
    if let Some(port) = port {
        value["port"] = json!(port);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::{endpoint, ocsf};
    use crate::notify::sample;
    use portcullis_common::store_api::NotificationKind;
    use serde_json::json;

    #[test]
    fn a_finding_has_what_the_class_requires() {
        for kind in [NotificationKind::Detection, NotificationKind::Calls, NotificationKind::Test] {
            let finding = ocsf(&sample(kind));
            assert_eq!(
                finding["type_uid"].as_u64().unwrap(),
                finding["class_uid"].as_u64().unwrap() * 100
                    + finding["activity_id"].as_u64().unwrap()
            );
            for pointer in [
                "/severity_id",
                "/time",
                "/category_uid",
                "/metadata/version",
                "/metadata/product/vendor_name",
                "/finding_info/uid",
                "/finding_info/title",
            ] {
                assert!(finding.pointer(pointer).is_some(), "{pointer}");
            }
        }
        let finding = ocsf(&sample(NotificationKind::Detection));
        assert_eq!(finding["severity_id"], 5);
        assert_eq!(finding["evidences"][0]["process"]["file"]["path"], "/usr/bin/bash");
    }

    #[test]
    fn endpoints_are_taken_apart() {
        assert_eq!(endpoint("a.test:443"), json!({ "hostname": "a.test", "port": 443 }));
        assert_eq!(endpoint("udp://[2001:db8::7]:53"), json!({ "ip": "2001:db8::7", "port": 53 }));
        assert_eq!(endpoint("icmp://192.0.2.1"), json!({ "ip": "192.0.2.1" }));
    }
}
