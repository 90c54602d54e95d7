//! What is told, as each kind of target reads it. Pure: a notification in, a document out.

mod ocsf;
mod open_telemetry;
mod slack;

pub(super) use ocsf::ocsf;
pub(super) use open_telemetry::open_telemetry;
pub(super) use slack::slack;

use jiff::Timestamp;
use portcullis_common::event::Verdict;
use portcullis_common::store_api::{Notification, NotificationKind};
use serde_json::{Value, json};

/// What is told, with everything that is needed to tell it.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// Something that people should know.
    Notification(Box<Notification>),
    /// A batch of raw events.
    Events { job_id: String, first_seq: u64, last_seq: u64, time: Timestamp, lines: Vec<String> },
}

/// The body of a webhook: what kind of thing happened, when, and all of it.
pub(super) fn webhook(notification: &Notification) -> Value {
    json!({
        "type": notification.kind.name(),
        "timestamp": notification.time,
        "data": notification,
    })
}

/// What happened, in one line.
fn title(notification: &Notification) -> String {
    let place = format!("job {} of {}", notification.job, notification.repository);
    match notification.kind {
        NotificationKind::Test => "Portcullis: this is a test".to_owned(),
        NotificationKind::Calls => {
            let is_blocked = notification.calls.iter().any(|call| call.verdict == Verdict::Blocked);
            let what = if is_blocked { "Blocked calls" } else { "Calls that would be blocked" };
            format!("{what} in {place}")
        }
        NotificationKind::Detection => {
            let kind = notification.detection.as_deref().unwrap_or("Detection");
            let end = if notification.is_lockdown { "; the job was killed" } else { "" };
            format!("{kind} in {place}{end}")
        }
    }
}

/// Calls as lines for a person.
fn call_lines(notification: &Notification) -> Vec<String> {
    let mut lines: Vec<String> = notification
        .calls
        .iter()
        .map(|call| {
            let word = match call.verdict {
                Verdict::Blocked => "blocked",
                Verdict::WouldBlock => "would be blocked",
                Verdict::Allowed => "allowed",
            };
            match &call.process {
                Some(process) => format!("{} by {process} ({word})", call.endpoint),
                None => format!("{} ({word})", call.endpoint),
            }
        })
        .collect();
    if notification.more_calls > 0 {
        lines.push(format!("and {} more", notification.more_calls));
    }
    lines
}

/// The program that did it, with its arguments.
fn process(notification: &Notification) -> Option<String> {
    let process = notification.process.as_ref()?;
    if process.argv.is_empty() {
        return process.exe.clone();
    }
    Some(format!("{}: {}", process.exe.as_deref().unwrap_or("unknown"), process.argv.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::{call_lines, title, webhook};
    use crate::notify::sample;
    use portcullis_common::store_api::NotificationKind;

    #[test]
    fn a_webhook_says_everything() {
        let mut notification = sample(NotificationKind::Detection);
        notification.link = "https://store.test/runs/1-1".to_owned();
        let body = webhook(&notification);
        assert_eq!(body["type"], "detection.created");
        assert_eq!(body["data"]["detection"], "Reverse-Shell");
        for pointer in [
            "/timestamp",
            "/data/policy/name",
            "/data/policy/version",
            "/data/repository",
            "/data/workflow",
            "/data/run_id",
            "/data/job_id",
            "/data/job",
            "/data/process/exe",
            "/data/evidence",
            "/data/link",
        ] {
            assert!(body.pointer(pointer).is_some_and(|value| !value.is_null()), "{pointer}");
        }
    }

    #[test]
    fn titles_tell_what_happened() {
        let mut calls = sample(NotificationKind::Calls);
        assert_eq!(title(&calls), "Blocked calls in job build of octo/hello");
        calls.more_calls = 3;
        assert_eq!(
            call_lines(&calls),
            ["collector.example.com:443 by /usr/bin/curl (blocked)", "and 3 more"]
        );
        assert_eq!(
            title(&sample(NotificationKind::Detection)),
            "Reverse-Shell in job build of octo/hello; the job was killed"
        );
    }
}
