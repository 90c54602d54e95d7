//! What a context must be like, wherever it comes from.

use super::JobContext;
use crate::diagnostic::Diagnostic;
use crate::policy::{is_owner, is_repository, normalised_workflow};
use crate::text::log_line;
use std::fmt;

/// The longest value in bytes; GitHub's own are far shorter.
pub const MAX_VALUE_BYTES: usize = 1024;

/// What is wrong with one variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContextProblem {
    /// The variable: `GITHUB_RUN_ID`.
    pub variable: &'static str,
    /// What is wrong, safe to print.
    pub message: String,
}

impl fmt::Display for ContextProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` {}", self.variable, self.message)
    }
}

/// A context is no job's; everything that is wrong with it, never empty.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is not the environment of a GitHub Actions job hook: {}", list(.problems))]
pub struct ContextError {
    /// What is wrong.
    pub problems: Vec<ContextProblem>,
}

impl ContextError {
    /// The error for a person.
    pub fn diagnostic(&self) -> Diagnostic {
        let hint = "hooks are started by the runner: name the hook script in ACTIONS_RUNNER_HOOK_JOB_STARTED and \
                    ACTIONS_RUNNER_HOOK_JOB_COMPLETED, in the file .env of the runner's directory";
        Diagnostic::new(self.to_string(), hint)
    }
}

fn list(problems: &[ContextProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl JobContext {
    /// Checks the form of every field: what the environment of a hook must be, and what a context that arrives over the
    /// socket must be.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn validate(&self) -> Result<(), ContextError> {
        let mut problems = Vec::new();
        let mut check =
            |variable, value: &str, is_required: bool, is_valid: fn(&str) -> bool, form: &str| {
                if let Some(message) = problem(value, is_required, is_valid, form) {
                    problems.push(ContextProblem { variable, message });
                }
            };
        check("GITHUB_REPOSITORY", &self.repository, true, is_repository, "`owner/name`");
        check("GITHUB_REPOSITORY_OWNER", &self.repository_owner, true, is_owner, "an owner");
        check(
            "GITHUB_WORKFLOW_REF",
            &self.workflow_ref,
            true,
            |value| value.contains('@'),
            "`owner/name/path@ref`",
        );
        check("GITHUB_WORKFLOW", &self.workflow, false, |_| true, "a name");
        check("GITHUB_JOB", &self.job, true, is_job_key, "a job's key");
        check("GITHUB_REF", &self.git_ref, false, |value| !value.contains(' '), "a git reference");
        check(
            "GITHUB_SHA",
            &self.sha,
            false,
            is_object_id,
            "a commit's 40 or 64 hexadecimal digits",
        );
        check("GITHUB_EVENT_NAME", &self.event_name, false, is_event_name, "an event's name");
        check("GITHUB_ACTOR", &self.actor, false, |_| true, "a user");
        check(
            "GITHUB_SERVER_URL",
            &self.server_url,
            true,
            is_server_url,
            "a URL such as `https://github.com`",
        );
        check("RUNNER_NAME", &self.runner_name, true, |_| true, "a name");
        if let Some(workspace) = &self.workspace {
            check(
                "GITHUB_WORKSPACE",
                workspace,
                true,
                |value| value.starts_with('/'),
                "an absolute path",
            );
        }
        let mut add = |variable, message: &str| {
            problems.push(ContextProblem { variable, message: message.to_owned() });
        };
        if self.workflow_ref.contains('@') && normalised_workflow(self.workflow_path()).is_none() {
            add("GITHUB_WORKFLOW_REF", "is not of the form `owner/name/path@ref`");
        }
        let owner = self.repository.split('/').next().unwrap_or_default();
        if !self.repository_owner.is_empty()
            && !self.repository.is_empty()
            && !owner.eq_ignore_ascii_case(&self.repository_owner)
        {
            add("GITHUB_REPOSITORY_OWNER", "is not the owner that `GITHUB_REPOSITORY` names");
        }
        if self.run_id == 0 {
            add("GITHUB_RUN_ID", "is not a number from 1");
        }
        if self.run_attempt == 0 {
            add("GITHUB_RUN_ATTEMPT", "is not a number from 1");
        }
        if problems.is_empty() { Ok(()) } else { Err(ContextError { problems }) }
    }
}

/// What is wrong with one value, if anything is.
fn problem(
    value: &str,
    is_required: bool,
    is_valid: fn(&str) -> bool,
    form: &str,
) -> Option<String> {
    if value.is_empty() {
        return is_required.then(|| "is missing".to_owned());
    }
    if value.len() > MAX_VALUE_BYTES {
        return Some(format!("has {} bytes, more than {MAX_VALUE_BYTES}", value.len()));
    }
    if value.chars().any(char::is_control) {
        return Some(format!("has a line break or control character: `{}`", log_line(value, 100)));
    }
    (!is_valid(value)).then(|| format!("is not {form}: `{}`", log_line(value, 100)))
}

/// A job's key as workflows may name it: letters, digits, `-` and `_`.
fn is_job_key(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn is_object_id(value: &str) -> bool {
    matches!(value.len(), 40 | 64) && value.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_event_name(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn is_server_url(value: &str) -> bool {
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && rest.bytes().all(|b| {
                b.is_ascii_alphanumeric()
                    || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'/' | b'_')
            })
    })
}
