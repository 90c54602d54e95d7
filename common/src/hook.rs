//! What both hooks print and how they exit: workflow commands of actions/runner and the exit status of `docs/hooks.md`.

use crate::text;
use crate::wire::{Refusal, RefusalKind};
use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;

/// The longest message of one annotation. GitHub shows 4 KiB at most (actions/runner, IssueExtensions.cs).
const MAX_MESSAGE_BYTES: usize = 4096;

/// How a hook ends; the number is its exit status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum HookExit {
    /// All is well.
    Done = 0,
    /// The policy says that this job fails: a blocked call with `fail-on-block`, a lockdown, a run denied.
    JobFails = 1,
    /// Enforcement could not be put in force, or nobody can say what is, and the failure mode is `closed`.
    NotEnforced = 2,
    /// Called wrongly, or by something that is no runner (`EX_USAGE` of sysexits.h).
    Usage = 64,
}

impl From<HookExit> for ExitCode {
    fn from(exit: HookExit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a hook prints, and how it ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HookOutput {
    /// Whole lines.
    pub text: String,
    /// The exit status.
    pub exit: HookExit,
}

/// The kinds of annotation that the runner makes of a line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Annotation {
    /// Blue.
    Notice,
    /// Yellow.
    Warning,
    /// Red.
    Error,
}

/// One workflow command, newline included: `::warning title=Portcullis::message`.
pub fn annotation(kind: Annotation, message: &str) -> String {
    let command = match kind {
        Annotation::Notice => "notice",
        Annotation::Warning => "warning",
        Annotation::Error => "error",
    };
    format!(
        "::{command} title=Portcullis::{}\n",
        text::workflow_command_data(message, MAX_MESSAGE_BYTES)
    )
}

/// The monitor refused: its reason as an annotation, its hint below, and the exit status that follows.
pub fn refused(refusal: &Refusal) -> HookOutput {
    let mut message = refusal.message.clone();
    if let Some(hint) = &refusal.hint {
        // Writing to a String can't fail.
        let _ = write!(message, "\nhint: {hint}");
    }
    let exit = match refusal.kind {
        RefusalKind::Denied | RefusalKind::AlreadyBound => HookExit::JobFails,
        RefusalKind::BadRequest => HookExit::Usage,
        RefusalKind::UnsupportedVersion
        | RefusalKind::NotARunnerJob
        | RefusalKind::NotEnforced
        | RefusalKind::Busy => HookExit::NotEnforced,
    };
    HookOutput { text: annotation(Annotation::Error, &message), exit }
}

/// No answer was had: the error with its causes, and what to do.
pub fn unreachable(error: &dyn Error, hint: &str) -> HookOutput {
    let message = format!("{}\nhint: {hint}", with_causes(error));
    HookOutput { text: annotation(Annotation::Error, &message), exit: HookExit::NotEnforced }
}

/// An error and what caused it, on one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(message, ": {error}");
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::{Annotation, HookExit, annotation, refused, unreachable};
    use crate::wire::{Refusal, RefusalKind};
    use std::io;

    #[test]
    fn a_refusal_is_one_line_whatever_it_says() {
        let refusal = Refusal {
            kind: RefusalKind::NotEnforced,
            message: "no\nrules\r::set-output::x".to_owned(),
            hint: Some("100 %".to_owned()),
        };
        let output = refused(&refusal);
        assert_eq!(output.exit, HookExit::NotEnforced);
        assert_eq!(
            output.text,
            "::error title=Portcullis::no%0Arules%0D::set-output::x%0Ahint: 100 %25\n"
        );
    }

    #[test]
    fn the_exit_status_follows_the_kind() {
        let exit = |kind| refused(&Refusal { kind, message: String::new(), hint: None }).exit as u8;
        assert_eq!(exit(RefusalKind::Denied), 1);
        assert_eq!(exit(RefusalKind::AlreadyBound), 1);
        assert_eq!(exit(RefusalKind::NotEnforced), 2);
        assert_eq!(exit(RefusalKind::NotARunnerJob), 2);
        assert_eq!(exit(RefusalKind::Busy), 2);
        assert_eq!(exit(RefusalKind::BadRequest), 64);
    }

    #[test]
    fn causes_are_told() {
        let error = io::Error::other("outer");
        let output = unreachable(&error, "start it");
        assert_eq!(output.text, "::error title=Portcullis::outer%0Ahint: start it\n");
        assert_eq!(output.exit, HookExit::NotEnforced);
        assert_eq!(annotation(Annotation::Notice, "a"), "::notice title=Portcullis::a\n");
    }
}
