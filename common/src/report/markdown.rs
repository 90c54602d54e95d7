//! The report as GitHub-flavoured Markdown, for the job's summary.

use super::started::{level_name, mode_name};
use super::{Destination, Report};
use crate::endpoint::Endpoint;
use crate::event::{
    DetectionEvent, DetectionType, EnforcementScope, FeatureState, PostureLevel, Verdict,
};
use crate::resolution::Identity;
use crate::text::{markdown_code, markdown_text};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The longest Markdown in bytes. The runner takes 1 MiB (1 048 576 bytes) for a step's summary, and refuses all of a longer one.
pub const MAX_MARKDOWN_BYTES: usize = 1_000_000;

/// How much of that each part may take; what is over is counted, not shown. Posture and headings come on top.
const DESTINATIONS_BYTES: usize = 600_000;
const DETECTIONS_BYTES: usize = 150_000;
const SNIPPET_BYTES: usize = 150_000;
const WARNINGS_BYTES: usize = 60_000;

/// The longest content of one cell in bytes.
const CELL_BYTES: usize = 400;

/// The report as GitHub-flavoured Markdown, at most [`MAX_MARKDOWN_BYTES`] long. Whatever a job put into names and command
/// lines stays text.
pub fn markdown(report: &Report) -> String {
    let mut out = String::from("## Portcullis: what this job reached\n\n");
    write_posture(&mut out, report);
    write_destinations(&mut out, report);
    write_detections(&mut out, &report.detections);
    write_snippet(&mut out, report);
    debug_assert!(out.len() <= MAX_MARKDOWN_BYTES);
    out
}

fn write_posture(out: &mut String, report: &Report) {
    let red = match report.posture.level {
        PostureLevel::AuditFallback => Some(
            "**The policy was not enforced.** Enforcement failed, and the failure mode let the job run; its calls were only recorded.",
        ),
        PostureLevel::Unenforced => {
            Some("**The policy was not enforced.** Nothing was in force while this job ran.")
        }
        PostureLevel::Enforced | PostureLevel::Degraded | PostureLevel::Audit => None,
    };
    if let Some(red) = red {
        let _ = writeln!(out, "> [!CAUTION]\n> {red}\n");
    }
    if let Some(killed) = report.detections.iter().find(|detection| detection.is_lockdown) {
        let _ = writeln!(
            out,
            "> [!CAUTION]\n> **This job was killed by Lockdown Mode: {}.** {}\n",
            markdown_code(&detection_name(killed.detection), CELL_BYTES),
            markdown_text(&killed.evidence, 2000)
        );
    } else if report.fail_job {
        out.push_str("> [!CAUTION]\n> **The policy says that this job fails.**\n\n");
    }
    let inactive = report.posture.features.iter().filter(|feature| feature.is_weakness());
    let warnings: Vec<String> = report
        .posture
        .warnings
        .iter()
        .map(|warning| markdown_text(warning, 1000))
        .chain(inactive.map(|feature| {
            let state = if feature.state == FeatureState::Missing { "missing" } else { "degraded" };
            format!(
                "{} is {state}: {}",
                markdown_code(&feature.name, 100),
                markdown_text(&feature.reason, 1000)
            )
        }))
        .collect();
    if !warnings.is_empty() {
        out.push_str("> [!WARNING]\n");
        let lines = warnings.iter().map(|warning| format!("> * {warning}\n"));
        let left_out = write_bounded(out, lines, WARNINGS_BYTES);
        if left_out > 0 {
            let _ = writeln!(out, "> * {left_out} more warnings are not shown");
        }
        out.push('\n');
    }
    let scope = match report.posture.scope {
        EnforcementScope::Host => "host",
        EnforcementScope::Job => "job",
    };
    let identity = match report.identity {
        Identity::Asserted => "asserted by the runner",
        Identity::Verified => "verified by GitHub's OIDC token",
    };
    let _ = writeln!(
        out,
        "| | |\n|---|---|\n| Policy | {} version {} |\n| Attached to | {} {} |\n| Mode | {} |\n| Posture | **{}**, scope {scope} |\n| Identity | {identity} |\n| Calls | {} allowed, {} blocked, {} would be blocked |\n",
        markdown_code(&report.policy.name, CELL_BYTES),
        markdown_code(&report.policy.version, CELL_BYTES),
        report.policy.scope,
        markdown_code(&report.target, CELL_BYTES),
        mode_name(report.mode),
        level_name(report.posture.level),
        report.allowed,
        report.blocked,
        report.would_block,
    );
}

fn write_destinations(out: &mut String, report: &Report) {
    out.push_str("### Destinations\n\n");
    if report.destinations.is_empty() && report.destinations_left_out == 0 {
        out.push_str("This job called nobody.\n\n");
        return;
    }
    out.push_str("| Endpoint | Process | Step | Status | Rule | Policy | Count |\n|---|---|---|---|---|---|---:|\n");
    let policy = markdown_code(&report.policy.name, CELL_BYTES);
    let rows = report.destinations.iter().map(|row| {
        format!(
            "| {} | {} | {} | {} | {} | {policy} | {} |\n",
            markdown_code(&row.endpoint, CELL_BYTES),
            markdown_code(&row.process, CELL_BYTES),
            markdown_code(&row.step, CELL_BYTES),
            status(row.verdict),
            markdown_code(&row.rule, CELL_BYTES),
            row.count
        )
    });
    let left_out =
        write_bounded(out, rows, DESTINATIONS_BYTES).saturating_add(report.destinations_left_out);
    if left_out > 0 {
        let _ = write!(out, "\n{left_out} more destinations are not shown.\n");
    }
    out.push('\n');
}

const fn status(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "Allowed",
        Verdict::Blocked => "Blocked",
        Verdict::WouldBlock => "Would be blocked",
    }
}

fn write_detections(out: &mut String, detections: &[DetectionEvent]) {
    if detections.is_empty() {
        return;
    }
    out.push_str(
        "### Detections\n\n| Detection | Evidence | Process | Job killed |\n|---|---|---|---|\n",
    );
    let rows = detections.iter().map(|detection| {
        let exe =
            detection.process.as_ref().and_then(|process| process.exe.as_deref()).unwrap_or("-");
        format!(
            "| {} | {} | {} | {} |\n",
            markdown_code(&detection_name(detection.detection), CELL_BYTES),
            markdown_code(&detection.evidence, 4 * CELL_BYTES),
            markdown_code(exe, CELL_BYTES),
            if detection.is_lockdown { "**yes**" } else { "no" }
        )
    });
    let left_out = write_bounded(out, rows, DETECTIONS_BYTES);
    if left_out > 0 {
        let _ = write!(out, "\n{left_out} more detections are not shown.\n");
    }
    out.push('\n');
}

/// The detection's name as policies write it.
fn detection_name(detection: DetectionType) -> String {
    match serde_json::to_value(detection) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{detection:?}"),
    }
}

/// What was blocked as entries of a policy. Only what the grammar accepts can be pasted, so only that is written.
fn write_snippet(out: &mut String, report: &Report) {
    let stopped = |row: &&Destination| row.verdict != Verdict::Allowed;
    let rows: Vec<&Destination> = report.destinations.iter().filter(stopped).collect();
    let endpoints: BTreeSet<String> = rows
        .iter()
        .filter_map(|row| row.endpoint.parse::<Endpoint>().ok())
        .map(|endpoint| endpoint.to_string())
        .collect();
    if endpoints.is_empty() {
        return;
    }
    out.push_str("### To allow what was stopped\n\nAdd what this job should reach to its policy, and nothing else:\n\n```yaml\nallowed-endpoints:\n");
    // Quotes keep `*` and `[` from being YAML; no endpoint contains a quote or a backslash.
    let lines = endpoints.iter().map(|endpoint| format!("  - \"{endpoint}\"\n"));
    let left_out = write_bounded(out, lines, SNIPPET_BYTES);
    if left_out > 0 {
        let _ = writeln!(out, "  # {left_out} more endpoints are not shown");
    }
    out.push_str("```\n\n");
}

/// Writes lines as long as they fit into `limit` bytes; returns how many did not.
fn write_bounded(out: &mut String, lines: impl Iterator<Item = String>, limit: usize) -> u64 {
    let end = out.len() + limit;
    let mut left_out = 0;
    for line in lines {
        if left_out == 0 && out.len() + line.len() <= end {
            out.push_str(&line);
        } else {
            left_out += 1;
        }
    }
    left_out
}
