//! What a job hook knows of its job: the `GITHUB_*` and `RUNNER_*` variables of its environment.
//!
//! `GITHUB_WORKFLOW_REF` is the *caller's* workflow when a reusable workflow runs, and lives in another repository than
//! `GITHUB_REPOSITORY` when an organization requires a workflow (`octo/required/.github/workflows/scan.yml@refs/heads/main`);
//! GitHub's own jobs have paths such as `dynamic/github-code-scanning/codeql`. So its repository is not compared with
//! `GITHUB_REPOSITORY`, and its path need not lie below `.github/workflows`. What is checked is its form.

mod environment;
mod validate;

#[cfg(test)]
mod tests;

pub use validate::{ContextError, ContextProblem, MAX_VALUE_BYTES};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The job as its hook's environment describes it. Every field is a claim of the runner user, not a fact.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JobContext {
    /// `GITHUB_REPOSITORY`: `octo/hello`.
    pub repository: String,
    /// `GITHUB_REPOSITORY_OWNER`: `octo`.
    pub repository_owner: String,
    /// `GITHUB_WORKFLOW_REF`: `octo/hello/.github/workflows/ci.yml@refs/heads/main`.
    pub workflow_ref: String,
    /// `GITHUB_WORKFLOW`: the workflow's display name.
    pub workflow: String,
    /// `GITHUB_JOB`: the job's key in the workflow, the same for every leg of a matrix.
    pub job: String,
    /// `GITHUB_RUN_ID`.
    pub run_id: u64,
    /// `GITHUB_RUN_ATTEMPT`, from 1.
    pub run_attempt: u32,
    /// `GITHUB_REF`: `refs/heads/main`.
    pub git_ref: String,
    /// `GITHUB_SHA`.
    pub sha: String,
    /// `GITHUB_EVENT_NAME`: `push`.
    pub event_name: String,
    /// `GITHUB_ACTOR`.
    pub actor: String,
    /// `GITHUB_SERVER_URL`: `https://github.com` or the GHES server.
    pub server_url: String,
    /// `RUNNER_NAME`.
    pub runner_name: String,
    /// `GITHUB_WORKSPACE`, absent when the runner gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
}

impl JobContext {
    /// `owner/repo/path` of the workflow without `@ref`, as it is written: `octo/hello/.github/workflows/ci.yml`.
    ///
    /// The path ends at the first `@refs/` (no file of a workflow can have that in its name, a branch can), or, for a
    /// reference that is a commit, at the last `@`.
    pub fn workflow_path(&self) -> &str {
        match self.workflow_ref.find("@refs/") {
            Some(at) => &self.workflow_ref[..at],
            None => {
                self.workflow_ref.rsplit_once('@').map_or(&*self.workflow_ref, |(path, _)| path)
            }
        }
    }
}
