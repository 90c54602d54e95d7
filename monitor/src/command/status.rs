//! `monitor status`: the jobs of this host.

use super::SHOWN_BYTES;
use crate::config::Paths;
use anyhow::bail;
use portcullis_common::text;
use portcullis_common::wire::{Answer, Call, JobStatus, Status};
use portcullis_monitor_client::{Patience, exchange};
use std::fmt::Write;
use std::time::Duration;

/// How long the command waits.
pub(super) const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(1), total: Duration::from_secs(20) };

/// The jobs as text for a person, or as JSON.
///
/// # Errors
/// When no monitor answers.
pub fn status(paths: &Paths, json: bool) -> anyhow::Result<String> {
    match exchange(&paths.socket(), Call::Status {}, PATIENCE)? {
        Answer::Status(status) if json => Ok(serde_json::to_string(&status)? + "\n"),
        Answer::Status(status) => Ok(for_a_person(&status)),
        Answer::Refused(refusal) => {
            bail!("the monitor refused: {}", text::log_line(&refusal.message, SHOWN_BYTES))
        }
        _ => bail!("the monitor answered something else than was asked"),
    }
}

fn for_a_person(status: &Status) -> String {
    let mut out = String::new();
    if status.jobs.is_empty() {
        out.push_str("no jobs\n");
    }
    for job in &status.jobs {
        write_job(&mut out, job);
    }
    let found: Vec<_> = status.infrastructure.iter().filter(|unit| unit.found).collect();
    let _ = writeln!(
        out,
        "\ninfrastructure that is exempt on this host ({} of {} units found):",
        found.len(),
        status.infrastructure.len()
    );
    for unit in found {
        let _ = writeln!(out, "  {}", text::log_line(&unit.unit, SHOWN_BYTES));
    }
    out
}

fn write_job(out: &mut String, job: &JobStatus) {
    let _ = writeln!(
        out,
        "{}  Worker {}  policy {} ({})  {:?} {:?}  posture {:?}\n    {} addresses open, {} events, {} blocked, {} detections",
        job.id,
        job.worker_pid,
        text::log_line(&job.policy, SHOWN_BYTES),
        text::log_line(&job.version, SHOWN_BYTES),
        job.mode,
        job.scope,
        job.posture.level,
        job.grants,
        job.events,
        job.blocked,
        job.detections,
    );
    for warning in &job.posture.warnings {
        let _ = writeln!(out, "    warning: {}", text::log_line(warning, SHOWN_BYTES));
    }
}
