//! What hooks and steps find in their environment (Runner.Worker/GitHubContext.cs, RunnerContext.cs).

use crate::job::JobDescription;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the parts of a job lie.
#[derive(Clone, Debug)]
pub(super) struct Directories {
    pub(super) temp: PathBuf,
    pub(super) tools: PathBuf,
    /// `_work/<repository>`.
    pub(super) pipeline: PathBuf,
    /// `_work/<repository>/<repository>`.
    pub(super) workspace: PathBuf,
}

impl Directories {
    /// Makes them for a job; what the last job left in the temporary directory goes.
    pub(super) fn prepare(root: &Path, repository: &str) -> Result<Self> {
        let work = root.join("_work");
        let name = repository.rsplit('/').next().unwrap_or(repository);
        // A hostile name must not lead out of `_work`.
        let name: String =
            name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
        let name = if name.trim_matches('.').is_empty() { "repository".to_owned() } else { name };
        let pipeline = work.join(&name);
        let directories = Self {
            temp: work.join("_temp"),
            tools: work.join("_tool"),
            workspace: pipeline.join(&name),
            pipeline,
        };
        if directories.temp.exists() {
            // What root left behind stays, as with the real runner.
            let _ = fs::remove_dir_all(&directories.temp);
        }
        for path in [&directories.temp, &directories.tools, &directories.workspace] {
            fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))?;
        }
        Ok(directories)
    }

    fn event_file(&self) -> PathBuf {
        self.temp.join("_github_workflow").join("event.json")
    }

    /// Writes the event, anew before each hook.
    pub(super) fn write_event(&self, description: &JobDescription) -> Result<()> {
        let path = self.event_file();
        fs::create_dir_all(path.parent().unwrap_or(&self.temp))?;
        let event = serde_json::json!({
            "ref": description.git_ref,
            "after": description.sha,
            "repository": { "full_name": description.repository },
            "sender": { "login": description.actor },
        });
        fs::write(&path, event.to_string())
            .with_context(|| format!("can't write {}", path.display()))
    }
}

/// The `GITHUB_…` variables that hooks and steps have in common; those of the step and of its files come on top.
pub(super) fn github(
    description: &JobDescription,
    directories: &Directories,
) -> BTreeMap<String, String> {
    let owner = description.repository.split('/').next().unwrap_or_default();
    let workflow_ref = if description.workflow_ref.is_empty() {
        format!("{}/.github/workflows/ci.yml@{}", description.repository, description.git_ref)
    } else {
        description.workflow_ref.clone()
    };
    let server = &description.server_url;
    let ref_name = description.git_ref.splitn(3, '/').nth(2).unwrap_or(&description.git_ref);
    let ref_type = if description.git_ref.starts_with("refs/tags/") { "tag" } else { "branch" };
    let mut variables = named(&[
        ("GITHUB_ACTOR", &description.actor),
        ("GITHUB_ACTOR_ID", "583231"),
        ("GITHUB_API_URL", &server.replacen("://", "://api.", 1)),
        ("GITHUB_BASE_REF", ""),
        ("GITHUB_EVENT_NAME", &description.event_name),
        ("GITHUB_EVENT_PATH", &directories.event_file().display().to_string()),
        ("GITHUB_GRAPHQL_URL", &format!("{}/graphql", server.replacen("://", "://api.", 1))),
        ("GITHUB_HEAD_REF", ""),
        ("GITHUB_JOB", &description.job),
        ("GITHUB_REF", &description.git_ref),
        ("GITHUB_REF_NAME", ref_name),
        ("GITHUB_REF_PROTECTED", "false"),
        ("GITHUB_REF_TYPE", ref_type),
        ("GITHUB_REPOSITORY", &description.repository),
        ("GITHUB_REPOSITORY_ID", "1296269"),
        ("GITHUB_REPOSITORY_OWNER", owner),
        ("GITHUB_REPOSITORY_OWNER_ID", "583231"),
        ("GITHUB_RETENTION_DAYS", "90"),
        ("GITHUB_RUN_ATTEMPT", &description.run_attempt.to_string()),
        ("GITHUB_RUN_ID", &description.run_id.to_string()),
        ("GITHUB_RUN_NUMBER", "1"),
        ("GITHUB_SERVER_URL", server),
        ("GITHUB_SHA", &description.sha),
        ("GITHUB_TRIGGERING_ACTOR", &description.actor),
        ("GITHUB_WORKFLOW", &description.workflow),
        ("GITHUB_WORKFLOW_REF", &workflow_ref),
        ("GITHUB_WORKFLOW_SHA", &description.sha),
        ("GITHUB_WORKSPACE", &directories.workspace.display().to_string()),
    ]);
    variables.extend(description.variables.clone());
    variables.retain(|name, _| !description.without.contains(name));
    variables
}

/// The `RUNNER_…` variables.
pub(super) fn runner(
    name: &str,
    description: &JobDescription,
    directories: &Directories,
) -> BTreeMap<String, String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "X64",
        "aarch64" => "ARM64",
        other => other,
    };
    let mut variables = named(&[
        ("RUNNER_ARCH", architecture),
        ("RUNNER_ENVIRONMENT", "self-hosted"),
        ("RUNNER_NAME", name),
        ("RUNNER_OS", "Linux"),
        ("RUNNER_TEMP", &directories.temp.display().to_string()),
        ("RUNNER_TOOL_CACHE", &directories.tools.display().to_string()),
        ("RUNNER_WORKSPACE", &directories.pipeline.display().to_string()),
    ]);
    variables.retain(|name, _| !description.without.contains(name));
    variables
}

/// The variables of `id-token: write`, in hooks and in steps (ScriptHandler.cs).
pub(super) fn id_token(description: &JobDescription) -> BTreeMap<String, String> {
    let pairs = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", &description.id_token_request_url),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", &description.id_token_request_token),
    ];
    pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect()
}

fn named(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
