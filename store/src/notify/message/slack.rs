//! A message for an incoming webhook of Slack, as blocks.
//!
//! What a job can influence stands in `plain_text` objects, in which nothing is a link, a mention or markup; only the link to
//! the store, which is ours, is `mrkdwn`.

use super::{call_lines, process, title};
use portcullis_common::store_api::Notification;
use portcullis_common::text::log_line;
use serde_json::{Value, json};

/// The longest text of a header (Slack's "Header block": 150 characters).
const MAX_HEADER_BYTES: usize = 150;

/// The longest field of a section (Slack's "Section block": 2000 characters).
const MAX_FIELD_BYTES: usize = 1000;

/// The longest text of a section (3000 characters).
const MAX_SECTION_BYTES: usize = 2500;

pub(in crate::notify) fn slack(notification: &Notification) -> Value {
    let title = log_line(&title(notification), MAX_HEADER_BYTES);
    let policy = &notification.policy;
    let mut blocks = vec![
        json!({ "type": "header", "text": plain(&title, MAX_HEADER_BYTES) }),
        json!({ "type": "section", "fields": [
            field("Repository", &notification.repository),
            field("Workflow", &notification.workflow),
            field("Run", &format!("{} attempt {}", notification.run_id, notification.run_attempt)),
            field("Job", &notification.job),
            field("Job id", &notification.job_id),
            field("Policy", &format!("{} version {}", policy.name, policy.version)),
            field("Cluster", &notification.cluster),
        ] }),
    ];
    let mut told = Vec::new();
    told.extend(notification.evidence.as_deref().map(|text| log_line(text, 1500)));
    told.extend(process(notification).map(|text| format!("Process: {}", log_line(&text, 500))));
    told.extend(
        notification.endpoint.as_deref().map(|text| format!("Endpoint: {}", log_line(text, 300))),
    );
    told.extend(call_lines(notification).iter().map(|line| log_line(line, 300)));
    if !told.is_empty() {
        let text = bounded(&told.join("\n"), MAX_SECTION_BYTES);
        blocks.push(json!({
            "type": "section",
            "text": { "type": "plain_text", "emoji": false, "text": text },
        }));
    }
    if !notification.link.is_empty() {
        let link = escaped(&notification.link);
        blocks.push(json!({
            "type": "context",
            "elements": [{ "type": "mrkdwn", "verbatim": true, "text": format!("<{link}|Open the run>") }],
        }));
    }
    // What notifications and screen readers get instead of the blocks.
    json!({ "text": escaped(&title), "blocks": blocks })
}

fn plain(text: &str, max_bytes: usize) -> Value {
    json!({ "type": "plain_text", "emoji": false, "text": log_line(text, max_bytes) })
}

fn field(name: &str, value: &str) -> Value {
    plain(&format!("{name}: {value}"), MAX_FIELD_BYTES)
}

/// The three characters that Slack gives a meaning to, everywhere.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Several lines, cut where they are too long.
fn bounded(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let mut end = max_bytes;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::slack;
    use crate::notify::sample;
    use portcullis_common::store_api::NotificationKind;

    #[test]
    fn hostile_text_stays_text() {
        let mut notification = sample(NotificationKind::Detection);
        notification.evidence =
            Some("<!channel> <https://evil.test|click> *b* \u{202e}\n::error::x".to_owned());
        notification.job = "<!here>".to_owned();
        notification.link = "https://store.test/runs/1-1".to_owned();
        let message = slack(&notification);
        assert!(message["text"].as_str().unwrap().contains("&lt;!here&gt;"), "{message}");
        let blocks = message["blocks"].as_array().unwrap();
        for block in blocks {
            let texts = [&block["text"]]
                .into_iter()
                .chain(block["fields"].as_array().into_iter().flatten());
            for text in texts.filter(|text| !text.is_null()) {
                assert_eq!(text["type"], "plain_text", "{text}");
                assert!(!text["text"].as_str().unwrap().contains('\u{202e}'), "{text}");
            }
        }
        assert_eq!(
            blocks.last().unwrap()["elements"][0]["text"],
            "<https://store.test/runs/1-1|Open the run>"
        );
    }

    #[test]
    fn everything_fits_into_slacks_limits() {
        let mut notification = sample(NotificationKind::Calls);
        let call = notification.calls[0].clone();
        notification.calls = (0..50).map(|_| call.clone()).collect();
        notification.evidence = Some("ä".repeat(10_000));
        notification.workflow = "x".repeat(5000);
        let message = slack(&notification);
        let blocks = message["blocks"].as_array().unwrap();
        assert!(blocks.len() <= 50);
        for block in blocks {
            let fields = block["fields"].as_array().map_or(0, Vec::len);
            assert!(fields <= 10);
            for field in block["fields"].as_array().into_iter().flatten() {
                assert!(field["text"].as_str().unwrap().chars().count() <= 2000);
            }
            if let Some(text) = block["text"]["text"].as_str() {
                let limit = if block["type"] == "header" { 150 } else { 3000 };
                assert!(text.chars().count() <= limit, "{}", text.len());
            }
        }
    }
}
