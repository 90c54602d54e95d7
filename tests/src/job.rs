//! Jobs for the runner stand-in, and what became of them.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A job, as a test writes it in YAML.
///
/// `${{ secrets.NAME }}`, `${{ env.NAME }}`, `${{ github.NAME }}` and `${{ steps.ID.outputs.NAME }}` are replaced in
/// `run`, `env` and action scripts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Job {
    /// The display name.
    pub name: String,
    /// What the job says of itself.
    pub context: JobDescription,
    /// The job's `env:`; steps see it, hooks do not.
    pub env: BTreeMap<String, String>,
    /// Secrets: masked in logs, given to nobody unless a step names them.
    pub secrets: BTreeMap<String, String>,
    /// `container:`: where steps run, when not on the host.
    pub container: Option<JobContainer>,
    /// `services:` by name; steps in a container reach them by it.
    pub services: BTreeMap<String, JobContainer>,
    /// The steps in order.
    pub steps: Vec<Step>,
}

/// A container that the runner makes for a job.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct JobContainer {
    /// The image.
    pub image: String,
    /// Variables of its environment.
    pub env: BTreeMap<String, String>,
    /// What is mounted, `SOURCE:TARGET[:ro]`.
    pub volumes: Vec<String>,
    /// Further words of `docker create`.
    pub options: String,
    /// The command; a job container of the runner has none of its own.
    pub command: Vec<String>,
}

/// The `github` context of a job. Values that a test leaves out are those of `octo/hello`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct JobDescription {
    /// `GITHUB_REPOSITORY`.
    pub repository: String,
    /// `GITHUB_WORKFLOW`.
    pub workflow: String,
    /// `GITHUB_WORKFLOW_REF`; empty: `<repository>/.github/workflows/ci.yml@<ref>`.
    pub workflow_ref: String,
    /// `GITHUB_JOB`.
    pub job: String,
    /// `GITHUB_RUN_ID`.
    pub run_id: u64,
    /// `GITHUB_RUN_ATTEMPT`.
    pub run_attempt: u32,
    /// `GITHUB_REF`.
    #[serde(rename = "ref")]
    pub git_ref: String,
    /// `GITHUB_SHA`.
    pub sha: String,
    /// `GITHUB_EVENT_NAME`.
    pub event_name: String,
    /// `GITHUB_ACTOR`.
    pub actor: String,
    /// `GITHUB_SERVER_URL`.
    pub server_url: String,
    /// `ACTIONS_ID_TOKEN_REQUEST_URL`, given when the job has `id-token: write`.
    pub id_token_request_url: Option<String>,
    /// `ACTIONS_ID_TOKEN_REQUEST_TOKEN`, given with the URL.
    pub id_token_request_token: Option<String>,
    /// Further variables of the `github` context (`GITHUB_…`), or other values for those above: hostile bytes, for
    /// example. An empty value is given as it is.
    pub variables: BTreeMap<String, String>,
    /// Variables of the `github` and `runner` contexts that are left out.
    pub without: Vec<String>,
}

impl Default for JobDescription {
    fn default() -> Self {
        Self {
            repository: "octo/hello".to_owned(),
            workflow: "CI".to_owned(),
            workflow_ref: String::new(),
            job: "build".to_owned(),
            run_id: 1_658_821_493,
            run_attempt: 1,
            git_ref: "refs/heads/main".to_owned(),
            sha: "ffac537e6cbbf934b08745a378932722df287a53".to_owned(),
            event_name: "push".to_owned(),
            actor: "octocat".to_owned(),
            server_url: "https://github.com".to_owned(),
            id_token_request_url: None,
            id_token_request_token: None,
            variables: BTreeMap::new(),
            without: Vec::new(),
        }
    }
}

/// One step: a script, or an action with `pre` and `post` scripts around it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// The display name.
    pub name: String,
    /// The step's id; `GITHUB_ACTION` is the id, or `__run`, `__run_2`, … and `__owner_name` for an action.
    pub id: Option<String>,
    /// Makes the step an action of this name (`octo/setup@v1`), whose scripts are `pre`, `run` and `post`.
    pub uses: Option<String>,
    /// The script.
    pub run: String,
    /// None: `bash -e {0}`; `bash`: `bash --noprofile --norc -e -o pipefail {0}`; `sh`, `python`, or a format with `{0}`.
    pub shell: Option<String>,
    /// Where it runs, below the workspace.
    pub working_directory: Option<String>,
    /// The step's `env:`.
    pub env: BTreeMap<String, String>,
    /// `success()` when absent.
    #[serde(rename = "if")]
    pub condition: Option<Condition>,
    /// A failure of the step does not fail the job.
    pub continue_on_error: bool,
    /// Minutes until the step is cancelled and failed; none: no limit.
    pub timeout_minutes: Option<f64>,
    /// The script runs as root, through the world's `sudo`, with the step's whole environment.
    pub root: bool,
    /// A script that runs before the first step of the job.
    pub pre: Option<String>,
    /// `always()` when absent, as for every action.
    pub pre_if: Option<Condition>,
    /// A script that runs after the last step of the job, last in first out, when the step itself ran.
    pub post: Option<String>,
    /// `always()` when absent, as for every action.
    pub post_if: Option<Condition>,
}

/// The conditions that the stand-in knows.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Condition {
    /// Nothing has failed and the job is not cancelled.
    #[serde(rename = "success()")]
    Success,
    /// Something has failed.
    #[serde(rename = "failure()")]
    Failure,
    /// In any case, also when the job is cancelled.
    #[serde(rename = "always()")]
    Always,
    /// The job is cancelled.
    #[serde(rename = "cancelled()")]
    Cancelled,
    /// The job is not cancelled.
    #[serde(rename = "!cancelled()")]
    NotCancelled,
}

impl Job {
    /// Reads a job from YAML.
    ///
    /// # Errors
    /// With line and column when it is no such document.
    pub fn from_yaml(text: &str) -> Result<Self> {
        serde_saphyr::from_str(text).context("the job is not valid")
    }

    /// Reads a job from a YAML file.
    ///
    /// # Errors
    /// When the file can't be read or is no such document.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the job {}", path.display()))?;
        Self::from_yaml(&text).with_context(|| format!("in {}", path.display()))
    }

    /// A job of one script.
    pub fn script(run: &str) -> Self {
        Self::default().step(run)
    }

    /// Adds a step with this script.
    #[must_use]
    pub fn step(mut self, run: &str) -> Self {
        self.steps.push(Step { run: run.to_owned(), ..Step::default() });
        self
    }

    /// Adds a step with this script that runs as root.
    #[must_use]
    pub fn root_step(mut self, run: &str) -> Self {
        self.steps.push(Step { run: run.to_owned(), root: true, ..Step::default() });
        self
    }

    /// Adds a variable to the job's `env:`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a secret and a variable of the same name that holds it, which is how a leaked secret reaches a dependency.
    #[must_use]
    pub fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.insert(name.to_owned(), value.to_owned());
        self.env.insert(name.to_owned(), format!("${{{{ secrets.{name} }}}}"));
        self
    }

    /// Sets the repository that the job belongs to.
    #[must_use]
    pub fn repository(mut self, repository: &str) -> Self {
        repository.clone_into(&mut self.context.repository);
        self
    }

    /// Sets the workflow file, a path below the repository.
    #[must_use]
    pub fn workflow_file(mut self, path: &str) -> Self {
        self.context.workflow_ref =
            format!("{}/{path}@{}", self.context.repository, self.context.git_ref);
        self
    }
}

/// How a job ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobOutcome {
    /// Nothing failed.
    Success,
    /// Something failed, or the Worker died.
    Failure,
    /// It was cancelled.
    Cancelled,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepOutcome {
    /// Exit status 0.
    Success,
    /// Another exit status, or it could not be run.
    Failure,
    /// It was stopped because the job was cancelled or the runner shut down.
    Cancelled,
    /// Its condition was false.
    Skipped,
    /// It had not ended when the Worker died.
    Unfinished,
}

/// Where a step comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// `ACTIONS_RUNNER_HOOK_JOB_STARTED`, shown by the runner as "Set up runner".
    StartedHook,
    /// The `pre` script of an action.
    Pre,
    /// The step itself.
    Main,
    /// The `post` script of an action.
    Post,
    /// `ACTIONS_RUNNER_HOOK_JOB_COMPLETED`, shown by the runner as "Complete runner".
    CompletedHook,
}

/// What became of a step.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StepResult {
    /// The display name.
    pub name: String,
    /// `GITHUB_ACTION`; empty for a hook.
    pub id: String,
    /// Where it comes from.
    pub kind: StepKind,
    /// How it ended.
    pub outcome: StepOutcome,
    /// The exit status, when there was one.
    pub exit_code: Option<i32>,
    /// What it wrote, standard output and standard error in order of arrival, secrets masked.
    pub log: String,
    /// The content of its `$GITHUB_STEP_SUMMARY`.
    pub summary: String,
    /// From its start to its end, with everything that the runner does for it.
    pub duration_ms: f64,
    /// From the start of its process to the end of the process and its output; 0 when none was started.
    pub process_ms: f64,
}

/// A line on the page of a run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Annotation {
    /// `error`, `warning` or `notice`.
    pub level: String,
    /// The text, with the `%0A` and the like of the workflow command undone.
    pub message: String,
}

/// What became of a job.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobResult {
    /// How it ended.
    pub outcome: JobOutcome,
    /// Its steps in the order in which they ran or were skipped.
    pub steps: Vec<StepResult>,
    /// Errors, warnings and notices; a Worker that died by a signal leaves what it wrote as an error.
    pub annotations: Vec<Annotation>,
    /// The exit code of the Worker as the Listener sees it: 100-105 for a job's result, 128 + signal when it was killed.
    pub worker_exit_code: i32,
    /// What the orphan clean-up killed: `pid (name)`.
    pub orphans: Vec<String>,
    /// How many of the Worker's uploads to GitHub did not get through.
    pub failed_uploads: u32,
}

impl JobResult {
    /// Kinds, names and outcomes of the steps, in their order.
    pub fn course(&self) -> Vec<(StepKind, &str, StepOutcome)> {
        self.steps.iter().map(|step| (step.kind, step.name.as_str(), step.outcome)).collect()
    }

    /// The first step of a kind.
    pub fn step_of_kind(&self, kind: StepKind) -> Option<&StepResult> {
        self.steps.iter().find(|step| step.kind == kind)
    }

    /// The main step with this name or id.
    pub fn step(&self, name: &str) -> Option<&StepResult> {
        self.steps
            .iter()
            .find(|step| step.kind == StepKind::Main && (step.name == name || step.id == name))
    }

    /// How long a hook's process ran, its shell included, in milliseconds.
    pub fn hook_ms(&self, kind: StepKind) -> Option<f64> {
        self.step_of_kind(kind).map(|step| step.process_ms)
    }

    /// The step summaries of all steps, one after the other: what GitHub shows below a run.
    pub fn summary(&self) -> String {
        self.steps.iter().map(|step| step.summary.as_str()).collect()
    }

    /// All logs, each below its step's name, for the message of a failed assertion.
    pub fn log(&self) -> String {
        let parts = self.steps.iter().map(|step| {
            let heading = format!("== {} ({:?}: {:?})\n", step.name, step.kind, step.outcome);
            [heading.as_str(), step.log.as_str()].concat()
        });
        parts.collect()
    }
}
