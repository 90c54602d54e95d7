//! What `pre-job` prints for each answer, as values.

use crate::Failure;
use crate::start_monitor::StartError;
use portcullis_common::event::{FeatureState, PostureLevel};
use portcullis_common::hook::{
    Annotation, HookExit, HookOutput, annotation, refused, unreachable, with_causes,
};
use portcullis_common::job_context::ContextError;
use portcullis_common::report;
use portcullis_common::text;
use portcullis_common::wire::{Answer, Refusal, RefusalKind, Started};
use portcullis_monitor_client::ClientError;
use std::fmt::Write;

/// The most bytes that one value takes in a line for a person.
const SHOWN_BYTES: usize = 512;

/// The environment is not that of a job hook.
pub(crate) fn not_a_job(error: &ContextError, json: bool) -> HookOutput {
    let refusal = Refusal {
        kind: RefusalKind::BadRequest,
        message: error.to_string(),
        hint: Some(
            "let actions/runner start this program through ACTIONS_RUNNER_HOOK_JOB_STARTED; see docs/hooks.md"
                .to_owned(),
        ),
    };
    answer(&Answer::Refused(refusal), json)
}

/// The monitor answered.
pub(crate) fn answer(answer: &Answer, json: bool) -> HookOutput {
    let output = match answer {
        Answer::Started(started) => {
            HookOutput { text: started_text(started), exit: HookExit::Done }
        }
        Answer::Refused(refusal) => refused(refusal),
        other => unreachable(
            &UnexpectedAnswer,
            &format!("hook and monitor do not fit together (got {})", kind_of(other)),
        ),
    };
    if json { as_json(answer, output.exit) } else { output }
}

/// The monitor did not answer.
pub(crate) fn no_answer(failure: &Failure, json: bool) -> HookOutput {
    let hint = match (&failure.error, &failure.start) {
        (_, Some(StartError::NotRootOnly(place))) => format!(
            "no monitor was started, because somebody other than root can change {}; make it root's own",
            place.display()
        ),
        (_, Some(StartError::Failed(executable, error))) => {
            format!("{} could not be started: {error}", executable.display())
        }
        (ClientError::NotListening { .. }, None) => {
            "start the monitor as root on this host: systemctl start portcullis-monitor.socket (or: monitor serve)"
                .to_owned()
        }
        (ClientError::TimedOut { .. }, None) => {
            "look at what the monitor does: journalctl -u portcullis-monitor.service".to_owned()
        }
        _ => "look at the monitor's log: journalctl -u portcullis-monitor.service".to_owned(),
    };
    if json {
        let refusal = Refusal {
            kind: RefusalKind::NotEnforced,
            message: with_causes(&failure.error),
            hint: Some(hint),
        };
        return as_json(&Answer::Refused(refusal), HookExit::NotEnforced);
    }
    unreachable(&failure.error, &hint)
}

#[derive(Debug)]
struct UnexpectedAnswer;

impl std::fmt::Display for UnexpectedAnswer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the monitor answered something else than was asked")
    }
}

impl std::error::Error for UnexpectedAnswer {}

fn kind_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Started(_) => "started",
        Answer::Finished { .. } => "finished",
        Answer::Status(_) => "status",
        Answer::Explained(_) => "explained",
        Answer::Refused(_) => "refused",
    }
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

/// The first line says it all; warnings are annotations; the mechanisms are folded away in a group.
fn started_text(started: &Started) -> String {
    let mut out = report::first_line(started);
    out.push('\n');
    for warning in &started.posture.warnings {
        out.push_str(&annotation(level_annotation(started.posture.level), warning));
    }
    out.push_str("::group::What is in force\n");
    let _ = writeln!(
        out,
        "job {} is bound to this runner's Worker",
        text::log_line(&started.job_id, SHOWN_BYTES)
    );
    for feature in &started.posture.features {
        let state = match feature.state {
            FeatureState::Active => "active",
            FeatureState::Degraded => "degraded",
            FeatureState::Missing => "missing",
        };
        let _ = writeln!(
            out,
            "{state:<8} {}: {}",
            text::log_line(&feature.name, SHOWN_BYTES),
            text::log_line(&feature.reason, SHOWN_BYTES)
        );
    }
    let _ = writeln!(out, "put in force in {:.1} ms", started.applied_ms);
    out.push_str("::endgroup::\n");
    out
}

/// A fallback or nothing in force is no mere warning.
fn level_annotation(level: PostureLevel) -> Annotation {
    match level {
        PostureLevel::AuditFallback | PostureLevel::Unenforced => Annotation::Error,
        PostureLevel::Enforced | PostureLevel::Degraded | PostureLevel::Audit => {
            Annotation::Warning
        }
    }
}
