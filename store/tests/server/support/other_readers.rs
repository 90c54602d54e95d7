//! Notifications, read by libraries of others.

use super::object_store::python_program;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// What libraries of others understand of an OTLP request and an OCSF finding.
fn read_by_others(otlp: &Value, ocsf: &Value) -> Value {
    let mut reader = Command::new(python_program("python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server/support/read_notifications.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let given = json!({ "otlp": otlp, "ocsf": ocsf }).to_string();
    reader.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = reader.wait_with_output().unwrap();
    assert!(output.status.success(), "{given}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The notification of `notifications::everybody_who_asks_is_told`, about sudo, says to others what it is meant to say.
pub fn assert_understood(otlp: &Value, ocsf: &Value) {
    let understood = read_by_others(otlp, ocsf);
    let (record, finding) = (&understood["otlp"], &understood["ocsf"]);
    for (key, value) in [
        ("service", json!("portcullis")),
        ("severity", json!(17)),
        ("event", json!("detection.created")),
        ("body", json!("Sudo-Use in job build of octo/hello")),
    ] {
        assert_eq!(record[key], value, "{record}");
    }
    for (key, value) in [
        ("vcs.repository.name", json!("octo/hello")),
        ("cicd.pipeline.run.id", json!("7")),
        ("portcullis.job.id", json!(crate::notifications::JOB)),
        ("portcullis.lockdown", json!(false)),
        ("portcullis.evidence", json!("/usr/bin/sudo did it")),
        ("process.executable.path", json!("/usr/bin/sudo")),
        ("process.command_line", json!("/usr/bin/sudo -i")),
    ] {
        assert_eq!(record["attributes"][key], value, "{record}");
    }
    for (pointer, value) in [
        ("/class_uid", json!(2004)),
        ("/type_uid", json!(200_401)),
        ("/severity_id", json!(4)),
        ("/metadata/product/name", json!("Portcullis")),
        ("/finding_info/desc", json!("/usr/bin/sudo did it")),
        ("/finding_info/types/0", json!("Sudo-Use")),
        ("/resources/0/uid", json!(crate::notifications::JOB)),
    ] {
        assert_eq!(finding.pointer(pointer), Some(&value), "{pointer}: {finding}");
    }
    // The library knows nothing of the processes of evidence.
    assert_eq!(ocsf.pointer("/evidences/0/process/file/path").unwrap(), "/usr/bin/sudo");
    assert_eq!(ocsf.pointer("/evidences/0/process/cmd_line").unwrap(), "/usr/bin/sudo -i");
}
