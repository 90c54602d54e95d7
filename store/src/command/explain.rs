//! `portcullis explain`.

use super::connect::{Place, StoreOptions};
use super::output::{Table, show};
use super::source::workflow_path;
use anyhow::{Context as _, bail};
use clap::Args;
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::resolution::{DefaultPolicy, HostDefaults, Resolution};
use portcullis_common::store_api::{JobRecord, ResolveRequest, Resolved};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct Explain {
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    about: About,
    /// The workflow's file: `ci.yml`, or `owner/name/path` of a workflow of another repository.
    #[arg(long, requires = "repository")]
    workflow: Option<String>,
    /// The cluster of the host; without this, that of the job's host.
    #[arg(long)]
    cluster: Option<String>,
    /// What the host gives to jobs that nothing is attached to: `audit`, `block` or a policy's name.
    #[arg(long, default_value = "audit")]
    default_policy: DefaultPolicy,
}

/// Which job it is about.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct About {
    /// Any job of a repository: `octo/hello`.
    #[arg(long, requires = "workflow")]
    repository: Option<String>,
    /// A job that the server has, by its id: what would apply to it now.
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// A file with a job's context, JSON or YAML, as `portcullis runs ID --output json` has it; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    context: Option<PathBuf>,
}

impl Explain {
    /// A job of a repository and a workflow, nothing of which matters but these.
    fn hypothetical(&self, repository: &str) -> JobContext {
        let path = workflow_path(repository, self.workflow.as_deref().unwrap_or_default());
        JobContext {
            repository: repository.to_owned(),
            repository_owner: repository.split('/').next().unwrap_or_default().to_owned(),
            workflow_ref: format!("{path}@refs/heads/main"),
            job: "explain".to_owned(),
            run_id: 1,
            run_attempt: 1,
            server_url: "https://github.com".to_owned(),
            runner_name: "explain".to_owned(),
            ..JobContext::default()
        }
    }

    /// The job, with the cluster of its host when that is known.
    async fn job(&self, place: &Place) -> anyhow::Result<(JobContext, Option<String>)> {
        let About { repository, job, context } = &self.about;
        match (repository, job, context, place) {
            (Some(repository), ..) => Ok((self.hypothetical(repository), None)),
            (None, Some(id), _, Place::Server(server)) => {
                let record: JobRecord = server.get(&format!("jobs/{id}"), &[]).await?;
                Ok((record.context, Some(record.cluster)))
            }
            (None, Some(_), _, Place::Directory(_)) => {
                bail!(
                    "a directory of files has no jobs\n\nhint: say --context FILE, or ask a server"
                )
            }
            (None, None, Some(file), _) => {
                let (bytes, source) = super::policy::read(file)?;
                let text =
                    String::from_utf8(bytes).with_context(|| format!("{source} is not UTF-8"))?;
                let context = serde_saphyr::from_str(&text)
                    .with_context(|| format!("{source} is no context of a job"))?;
                Ok((context, None))
            }
            (None, None, None, _) => bail!("which job? say --repository, --job or --context"),
        }
    }

    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let place = self.store.place()?;
        let (context, own_cluster) = self.job(&place).await?;
        let cluster = self.cluster.clone().or(own_cluster);
        let resolution: Resolution = match place {
            Place::Directory(policies) => {
                context.validate()?;
                let host = HostDefaults { cluster, default_policy: self.default_policy.clone() };
                policies
                    .resolve(&context, &host)
                    .map_err(|error| anyhow::anyhow!("{}", with_causes(&error)))?
            }
            Place::Server(server) => {
                let request = ResolveRequest {
                    context,
                    id_token: None,
                    cluster,
                    default_policy: self.default_policy.clone(),
                    nonce: None,
                };
                server.post::<Resolved>("resolve", &[], &request).await?.resolution
            }
        };
        show(self.store.output, &resolution, |resolution| {
            Table::new(
                ["", "SCOPE", "TARGET", "POLICY", "REASON"],
                resolution.considered.iter().map(|considered| {
                    [
                        if considered.chosen { "→" } else { "" }.to_owned(),
                        considered.scope.to_string(),
                        considered.target.clone(),
                        match (&considered.policy, considered.chosen) {
                            (Some(policy), true) => {
                                format!("{policy} version {}", resolution.policy.version)
                            }
                            (Some(policy), false) => policy.clone(),
                            (None, _) => "-".to_owned(),
                        },
                        considered.reason.clone(),
                    ]
                }),
            )
        })
    }
}
