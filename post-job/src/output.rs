//! What `post-job` prints for each answer, as values.

use crate::summary::SummaryError;
use portcullis_common::event::{PostureLevel, Verdict};
use portcullis_common::hook::{
    Annotation, HookExit, HookOutput, annotation, refused, unreachable, with_causes,
};
use portcullis_common::report::Report;
use portcullis_common::text;
use portcullis_common::wire::{Answer, Refusal, RefusalKind};
use portcullis_monitor_client::ClientError;
use std::fmt::Write;

/// The most bytes that one value takes in a line for a person.
const SHOWN_BYTES: usize = 512;

/// How many destinations the log names; the summary has them all.
const LISTED_DESTINATIONS: usize = 50;

/// The markdown that goes into the job's summary, when the answer has one.
pub(crate) fn markdown(answer: &Answer) -> Option<&str> {
    match answer {
        Answer::Finished { markdown, .. } => Some(markdown),
        _ => None,
    }
}

/// The monitor answered; `summary` is what kept the report from the job's summary, if anything did.
pub(crate) fn answer(answer: &Answer, summary: Option<&SummaryError>, json: bool) -> HookOutput {
    let output = match answer {
        Answer::Finished { report, .. } => finished(report, summary),
        Answer::Refused(refusal) => refused(refusal),
        Answer::Started(_) | Answer::Status(_) | Answer::Explained(_) => {
            let refusal = Refusal {
                kind: RefusalKind::NotEnforced,
                message: "the monitor answered something else than was asked".to_owned(),
                hint: Some("install hook and monitor of the same version".to_owned()),
            };
            refused(&refusal)
        }
    };
    if json { as_json(answer, output.exit) } else { output }
}

/// The monitor did not answer.
pub(crate) fn no_answer(error: &ClientError, json: bool) -> HookOutput {
    let hint = match error {
        ClientError::NotListening { .. } => {
            "the monitor is gone; the rules that it made stay in force. Look at journalctl -u portcullis-monitor.service"
        }
        _ => "look at the monitor's log: journalctl -u portcullis-monitor.service",
    };
    if json {
        let refusal = Refusal {
            kind: RefusalKind::NotEnforced,
            message: with_causes(error),
            hint: Some(hint.to_owned()),
        };
        return as_json(&Answer::Refused(refusal), HookExit::NotEnforced);
    }
    unreachable(error, hint)
}

fn as_json(answer: &Answer, exit: HookExit) -> HookOutput {
    match serde_json::to_string(answer) {
        Ok(mut text) => {
            text.push('\n');
            HookOutput { text, exit }
        }
        Err(error) => unreachable(&error, "the monitor's answer can't be printed as JSON"),
    }
}

fn finished(report: &Report, summary: Option<&SummaryError>) -> HookOutput {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "Portcullis: {} allowed, {} blocked, {} would be blocked; {} detections; posture {}",
        report.allowed,
        report.blocked,
        report.would_block,
        report.detections.len(),
        level(report.posture.level),
    );
    for warning in &report.posture.warnings {
        out.push_str(&annotation(Annotation::Warning, warning));
    }
    for detection in &report.detections {
        out.push_str(&annotation(Annotation::Error, &detection.evidence));
    }
    let stopped = report.destinations.iter().filter(|row| row.verdict != Verdict::Allowed);
    for row in stopped.take(LISTED_DESTINATIONS) {
        let what = match row.verdict {
            Verdict::Blocked => "blocked",
            _ => "would be blocked",
        };
        let message = format!(
            "{what}: {} ({} times) by {} in step {}: {}, policy {}",
            row.endpoint, row.count, row.process, row.step, row.rule, report.policy.name
        );
        out.push_str(&annotation(Annotation::Warning, &message));
    }
    out.push_str("::group::Destinations\n");
    for row in report.destinations.iter().take(LISTED_DESTINATIONS) {
        let _ = writeln!(
            out,
            "{:<16} {:>6} × {}  {}  {}",
            status(row.verdict),
            row.count,
            text::log_line(&row.endpoint, SHOWN_BYTES),
            text::log_line(&row.process, SHOWN_BYTES),
            text::log_line(&row.rule, SHOWN_BYTES),
        );
    }
    let listed = report.destinations.len().min(LISTED_DESTINATIONS);
    let more =
        report.destinations.len().saturating_sub(listed) as u64 + report.destinations_left_out;
    if more > 0 {
        let _ = writeln!(out, "… and {more} more");
    }
    out.push_str("::endgroup::\n");
    if let Some(error) = summary {
        out.push_str(&annotation(Annotation::Warning, &error.to_string()));
    }
    if report.fail_job {
        let message = format!("the policy {} says that this job fails", report.policy.name);
        out.push_str(&annotation(Annotation::Error, &message));
        return HookOutput { text: out, exit: HookExit::JobFails };
    }
    HookOutput { text: out, exit: HookExit::Done }
}

fn status(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "Allowed",
        Verdict::Blocked => "Blocked",
        Verdict::WouldBlock => "Would be blocked",
    }
}

fn level(level: PostureLevel) -> &'static str {
    match level {
        PostureLevel::Enforced => "enforced",
        PostureLevel::Degraded => "degraded",
        PostureLevel::Audit => "audit",
        PostureLevel::AuditFallback => "AUDIT FALLBACK",
        PostureLevel::Unenforced => "UNENFORCED",
    }
}
