//! `portcullis explain`.

use super::connect::{Place, StoreOptions};
use super::output::{Table, show};
use super::source::workflow_path;
use clap::Args;
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::resolution::{DefaultPolicy, HostDefaults, Resolution};
use portcullis_common::store_api::{ResolveRequest, Resolved};

#[derive(Args, Debug)]
pub(super) struct Explain {
    #[command(flatten)]
    store: StoreOptions,
    /// The repository of the job: `octo/hello`.
    #[arg(long)]
    repository: String,
    /// The workflow's file: `ci.yml`, or `owner/name/path` of a workflow of another repository.
    #[arg(long)]
    workflow: String,
    /// The cluster of the host.
    #[arg(long)]
    cluster: Option<String>,
    /// What the host gives to jobs that nothing is attached to: `audit`, `block` or a policy's name.
    #[arg(long, default_value = "audit")]
    default_policy: DefaultPolicy,
}

impl Explain {
    fn context(&self) -> JobContext {
        let path = workflow_path(&self.repository, &self.workflow);
        JobContext {
            repository: self.repository.clone(),
            repository_owner: self.repository.split('/').next().unwrap_or_default().to_owned(),
            workflow_ref: format!("{path}@refs/heads/main"),
            job: "explain".to_owned(),
            run_id: 1,
            run_attempt: 1,
            server_url: "https://github.com".to_owned(),
            runner_name: "explain".to_owned(),
            ..JobContext::default()
        }
    }

    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let context = self.context();
        let resolution: Resolution = match self.store.place()? {
            Place::Directory(policies) => {
                context.validate()?;
                let host = HostDefaults {
                    cluster: self.cluster.clone(),
                    default_policy: self.default_policy.clone(),
                };
                policies
                    .resolve(&context, &host)
                    .map_err(|error| anyhow::anyhow!("{}", with_causes(&error)))?
            }
            Place::Server(server) => {
                let request = ResolveRequest {
                    context,
                    id_token: None,
                    cluster: self.cluster.clone(),
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
