//! An OpenTelemetry log record: the JSON form of OTLP's `ExportLogsServiceRequest` (OTLP 1.x, `/v1/logs`).

use super::{call_lines, title};
use portcullis_common::store_api::{Notification, NotificationKind};
use serde_json::{Value, json};

pub(in crate::notify) fn open_telemetry(notification: &Notification) -> Value {
    // `SeverityNumber` of the data model: 9 INFO, 13 WARN, 17 ERROR, 21 FATAL.
    let (severity, word) = match notification.kind {
        NotificationKind::Test => (9, "INFO"),
        NotificationKind::Calls => (13, "WARN"),
        NotificationKind::Detection if notification.is_lockdown => (21, "FATAL"),
        NotificationKind::Detection => (17, "ERROR"),
    };
    let text = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    // 64-bit numbers are strings in the JSON form of protocol buffers.
    let number =
        |key: &str, value: u64| json!({ "key": key, "value": { "intValue": value.to_string() } });
    let mut attributes = vec![
        text("portcullis.id", &notification.id),
        text("portcullis.policy.name", &notification.policy.name),
        text("portcullis.policy.version", &notification.policy.version),
        text("portcullis.cluster", &notification.cluster),
        text("portcullis.job.id", &notification.job_id),
        text("portcullis.link", &notification.link),
        json!({ "key": "portcullis.lockdown", "value": { "boolValue": notification.is_lockdown } }),
        text("vcs.repository.name", &notification.repository),
        text("cicd.pipeline.name", &notification.workflow),
        text("cicd.pipeline.run.id", &notification.run_id.to_string()),
        number("portcullis.run.attempt", notification.run_attempt.into()),
        text("cicd.pipeline.task.name", &notification.job),
    ];
    let optional = [
        ("portcullis.detection", notification.detection.as_deref()),
        ("portcullis.evidence", notification.evidence.as_deref()),
        ("portcullis.endpoint", notification.endpoint.as_deref()),
    ];
    attributes.extend(optional.into_iter().filter_map(|(key, value)| Some(text(key, value?))));
    if let Some(process) = &notification.process {
        attributes.extend(process.exe.as_deref().map(|exe| text("process.executable.path", exe)));
        attributes.extend(process.pid.map(|pid| number("process.pid", pid.into())));
        if !process.argv.is_empty() {
            attributes.push(text("process.command_line", &process.argv.join(" ")));
        }
    }
    let calls = call_lines(notification);
    if !calls.is_empty() {
        let values: Vec<Value> = calls.iter().map(|line| json!({ "stringValue": line })).collect();
        attributes.push(
            json!({ "key": "portcullis.calls", "value": { "arrayValue": { "values": values } } }),
        );
    }
    let time = notification.time.as_nanosecond().to_string();
    json!({ "resourceLogs": [{
        "resource": { "attributes": [
            text("service.name", "portcullis"),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ] },
        "scopeLogs": [{
            "scope": { "name": "portcullis.notifications" },
            "logRecords": [{
                "timeUnixNano": time,
                "observedTimeUnixNano": time,
                "severityNumber": severity,
                "severityText": word,
                "eventName": notification.kind.name(),
                "body": { "stringValue": title(notification) },
                "attributes": attributes,
            }],
        }],
    }] })
}

#[cfg(test)]
mod tests {
    use super::open_telemetry;
    use crate::notify::sample;
    use portcullis_common::store_api::NotificationKind;

    #[test]
    fn a_record_has_its_attributes() {
        let request = open_telemetry(&sample(NotificationKind::Detection));
        let record = &request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0];
        assert_eq!(record["severityNumber"], 21);
        assert!(record["timeUnixNano"].as_str().unwrap().parse::<u64>().is_ok());
        let attributes = record["attributes"].as_array().unwrap();
        let value = |key: &str| {
            attributes.iter().find(|attribute| attribute["key"] == key).map(|it| &it["value"])
        };
        assert_eq!(value("portcullis.detection").unwrap()["stringValue"], "Reverse-Shell");
        assert_eq!(value("process.pid").unwrap()["intValue"], "4711");
        assert_eq!(value("cicd.pipeline.run.id").unwrap()["stringValue"], "1");
    }
}
