//! `monitor explain`: which policy would apply, and why.

use super::status::PATIENCE;
use super::{SHOWN_BYTES, shown_lines};
use crate::config::Paths;
use anyhow::bail;
use portcullis_common::job_context::JobContext;
use portcullis_common::text;
use portcullis_common::wire::{Answer, Call, Explained};
use portcullis_monitor_client::exchange;
use std::fmt::Write;

/// What to explain: a workflow of a repository, as far as it is given.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// `octo/hello`.
    pub repository: String,
    /// `.github/workflows/ci.yml`, or a whole workflow ref.
    pub workflow: Option<String>,
}

/// The explanation as text for a person, or as JSON.
///
/// # Errors
/// When no monitor answers, or the store can't say.
pub fn explain(paths: &Paths, question: &Question, json: bool) -> anyhow::Result<String> {
    let call = Call::Explain { context: context(question) };
    match exchange(&paths.socket(), call, PATIENCE)? {
        Answer::Explained(explained) if json => Ok(serde_json::to_string(&explained)? + "\n"),
        Answer::Explained(explained) => Ok(for_a_person(&explained)),
        Answer::Refused(refusal) => {
            bail!("no policy can be given to this job:\n{}", shown_lines(&refusal.message))
        }
        _ => bail!("the monitor answered something else than was asked"),
    }
}

/// The context of a job that does not exist: what resolution looks at, and valid values for the rest.
fn context(question: &Question) -> JobContext {
    let owner = question.repository.split('/').next().unwrap_or_default().to_owned();
    let workflow = question.workflow.as_deref().unwrap_or(".github/workflows/any.yml");
    let workflow_ref = if workflow.contains('@') {
        workflow.to_owned()
    } else {
        format!("{}/{workflow}@refs/heads/main", question.repository)
    };
    JobContext {
        repository: question.repository.clone(),
        repository_owner: owner,
        workflow_ref,
        workflow: "explain".to_owned(),
        job: "explain".to_owned(),
        run_id: 1,
        run_attempt: 1,
        git_ref: "refs/heads/main".to_owned(),
        server_url: "https://github.com".to_owned(),
        runner_name: "explain".to_owned(),
        ..JobContext::default()
    }
}

fn for_a_person(explained: &Explained) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "policy {} ({}), {:?}: attached to {:?} {}\n",
        text::log_line(&explained.policy, SHOWN_BYTES),
        text::log_line(&explained.policy_version, SHOWN_BYTES),
        explained.mode,
        explained.scope,
        text::log_line(&explained.target, SHOWN_BYTES),
    );
    for considered in &explained.considered {
        let mark = if considered.chosen { "=>" } else { "  " };
        let _ = writeln!(
            out,
            "{mark} {:<12} {:<50} {:<24} {}",
            format!("{:?}", considered.scope),
            text::log_line(&considered.target, SHOWN_BYTES),
            considered
                .policy
                .as_deref()
                .map_or_else(|| "-".into(), |policy| text::log_line(policy, SHOWN_BYTES)),
            text::log_line(&considered.reason, SHOWN_BYTES),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Question, context};

    #[test]
    fn what_is_asked_is_a_context_that_the_monitor_takes() {
        for workflow in [None, Some(".github/workflows/ci.yml".to_owned())] {
            let question = Question { repository: "octo/hello".to_owned(), workflow };
            context(&question).validate().unwrap();
        }
    }
}
