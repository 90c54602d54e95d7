//! Whose runs a command is about.

use anyhow::bail;
use clap::Args;
use portcullis_common::store_api::BaselineSource;

/// An organization, a repository, a cluster, or one job of a workflow.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct SourceOptions {
    /// All runs of an organization or user: `octo`.
    #[arg(long, conflicts_with_all = ["repository", "cluster", "job"])]
    organization: Option<String>,
    /// All runs of a repository: `octo/hello`; with --workflow and --job, those of one job.
    #[arg(long)]
    repository: Option<String>,
    /// All runs on the hosts of a cluster.
    #[arg(long, conflicts_with_all = ["repository", "job"])]
    cluster: Option<String>,
    /// The workflow's file: `ci.yml`, or `owner/name/path` of a workflow of another repository.
    #[arg(long, requires = "job")]
    workflow: Option<String>,
    /// The key of the job in its workflow.
    #[arg(long, requires = "repository", requires = "workflow")]
    job: Option<String>,
}

impl SourceOptions {
    /// What is asked for; `None` when nothing is said.
    pub(super) fn source(&self) -> Option<BaselineSource> {
        match (&self.organization, &self.repository, &self.cluster) {
            (Some(organization), _, _) => {
                Some(BaselineSource::Organization { organization: organization.clone() })
            }
            (None, Some(repository), _) => Some(match (&self.workflow, &self.job) {
                (Some(workflow), Some(job)) => BaselineSource::Job {
                    repository: repository.clone(),
                    workflow: workflow_path(repository, workflow),
                    job: job.clone(),
                },
                _ => BaselineSource::Repository { repository: repository.clone() },
            }),
            (None, None, Some(cluster)) => {
                Some(BaselineSource::Cluster { cluster: cluster.clone() })
            }
            (None, None, None) => None,
        }
    }

    /// What is asked for, which must be said.
    pub(super) fn needed(&self) -> anyhow::Result<BaselineSource> {
        let Some(source) = self.source() else {
            bail!(
                "whose runs?\n\nhint: say --organization, --repository, --cluster, or --repository with --workflow and --job"
            )
        };
        Ok(source)
    }
}

/// The path of a workflow that may be named by its file.
pub(super) fn workflow_path(repository: &str, workflow: &str) -> String {
    if workflow.contains('/') {
        workflow.to_owned()
    } else {
        format!("{repository}/.github/workflows/{workflow}")
    }
}

/// Query parameters that name a baseline.
pub(super) fn source_query(source: &BaselineSource) -> Vec<(&'static str, String)> {
    match source.clone() {
        BaselineSource::Job { repository, workflow, job } => vec![
            ("source", "job".to_owned()),
            ("repository", repository),
            ("workflow", workflow),
            ("job", job),
        ],
        BaselineSource::Repository { repository } => {
            vec![("source", "repository".to_owned()), ("repository", repository)]
        }
        BaselineSource::Organization { organization } => {
            vec![("source", "organization".to_owned()), ("organization", organization)]
        }
        BaselineSource::Cluster { cluster } => {
            vec![("source", "cluster".to_owned()), ("cluster", cluster)]
        }
    }
}
