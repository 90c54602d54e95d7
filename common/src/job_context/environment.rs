//! From a hook's environment to a context.

use super::{ContextError, ContextProblem, JobContext};
use crate::text::log_line;
use std::ffi::OsString;
use std::str::FromStr;

impl JobContext {
    /// Reads the context from a hook's environment; `variable` looks one up.
    ///
    /// Required: `GITHUB_REPOSITORY`, `GITHUB_REPOSITORY_OWNER`, `GITHUB_WORKFLOW_REF`, `GITHUB_JOB`, `GITHUB_RUN_ID`,
    /// `GITHUB_RUN_ATTEMPT`, `GITHUB_SERVER_URL` and `RUNNER_NAME`. The others describe the job and decide nothing; they are empty
    /// when absent.
    ///
    /// # Errors
    /// Everything that is missing or malformed.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ContextError> {
        let mut reader = Reader { variable, problems: Vec::new() };
        let context = Self {
            repository: reader.text("GITHUB_REPOSITORY"),
            repository_owner: reader.text("GITHUB_REPOSITORY_OWNER"),
            workflow_ref: reader.text("GITHUB_WORKFLOW_REF"),
            workflow: reader.text("GITHUB_WORKFLOW"),
            job: reader.text("GITHUB_JOB"),
            run_id: reader.number("GITHUB_RUN_ID"),
            run_attempt: reader.number("GITHUB_RUN_ATTEMPT"),
            git_ref: reader.text("GITHUB_REF"),
            sha: reader.text("GITHUB_SHA"),
            event_name: reader.text("GITHUB_EVENT_NAME"),
            actor: reader.text("GITHUB_ACTOR"),
            server_url: reader.text("GITHUB_SERVER_URL"),
            runner_name: reader.text("RUNNER_NAME"),
            workspace: Some(reader.text("GITHUB_WORKSPACE")).filter(|path| !path.is_empty()),
        };
        let mut problems = reader.problems;
        if let Err(error) = context.validate() {
            // A variable that could not be read has been reported; its empty stand-in is not reported again.
            for problem in error.problems {
                if problems.iter().all(|known| known.variable != problem.variable) {
                    problems.push(problem);
                }
            }
        }
        if problems.is_empty() { Ok(context) } else { Err(ContextError { problems }) }
    }
}

struct Reader<F> {
    variable: F,
    problems: Vec<ContextProblem>,
}

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    /// The variable's text; empty when it is absent or no text, which the latter reports.
    fn text(&mut self, variable: &'static str) -> String {
        match (self.variable)(variable).map(OsString::into_string) {
            None => String::new(),
            Some(Ok(text)) => text,
            Some(Err(_)) => {
                self.problem(variable, "is not UTF-8".to_owned());
                String::new()
            }
        }
    }

    /// The variable's number, decimal digits only; 0 when it is none, which is reported.
    fn number<T: FromStr + Default>(&mut self, variable: &'static str) -> T {
        let text = self.text(variable);
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(number) = text.parse().ok().filter(|_| digits) {
            return number;
        }
        if text.is_empty() {
            self.problem(variable, "is missing".to_owned());
        } else {
            self.problem(variable, format!("is not a number: `{}`", log_line(&text, 100)));
        }
        T::default()
    }

    fn problem(&mut self, variable: &'static str, message: String) {
        if self.problems.iter().all(|known| known.variable != variable) {
            self.problems.push(ContextProblem { variable, message });
        }
    }
}
