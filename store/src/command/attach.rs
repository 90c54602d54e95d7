//! `portcullis attach` and `detach`.

use super::connect::StoreOptions;
use super::output::done;
use anyhow::Context as _;
use clap::Args;
use portcullis_common::policy::{Attachment, scope_name};
use portcullis_common::resolution::ScopeKind;
use portcullis_common::store_api::Page;
use serde_json::json;

/// One target.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Target {
    /// A cluster: `prod-linux`.
    #[arg(long)]
    cluster: Option<String>,
    /// An organization or user: `octo`.
    #[arg(long)]
    organization: Option<String>,
    /// A repository: `octo/hello`.
    #[arg(long)]
    repository: Option<String>,
    /// A workflow: `octo/hello/.github/workflows/ci.yml`.
    #[arg(long)]
    workflow: Option<String>,
}

impl Target {
    fn attachment(&self) -> anyhow::Result<Attachment> {
        let given = [&self.cluster, &self.organization, &self.repository, &self.workflow];
        attachment(given)?.context("a target is needed")
    }
}

/// The first target that is given, of a cluster, an organization, a repository and a workflow.
pub(super) fn attachment(given: [&Option<String>; 4]) -> anyhow::Result<Option<Attachment>> {
    let kinds =
        [ScopeKind::Cluster, ScopeKind::Organization, ScopeKind::Repository, ScopeKind::Workflow];
    kinds
        .into_iter()
        .zip(given)
        .find_map(|(scope, target)| target.as_ref().map(|target| (scope, target)))
        .map(|(scope, target)| {
            Attachment::new(scope, target)
                .map_err(|error| anyhow::anyhow!("{error}\n\nhint: {}", error.hint))
        })
        .transpose()
}

#[derive(Args, Debug)]
pub(super) struct Attach {
    #[command(flatten)]
    store: StoreOptions,
    /// The policy.
    policy: String,
    #[command(flatten)]
    target: Target,
    /// Detach the policy that the target has.
    #[arg(long)]
    replace: bool,
}

impl Attach {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        let target = self.target.attachment()?;
        let path = format!("policies/{}/attachments", self.policy);
        let query = [("replace", self.replace.to_string())];
        let attached: Page<Attachment> = server.post(&path, &query, &target).await?;
        let sentence = format!("policy {} applies to the {target}", self.policy);
        done(self.store.output, &attached.items, &sentence)
    }
}

#[derive(Args, Debug)]
pub(super) struct Detach {
    #[command(flatten)]
    store: StoreOptions,
    /// The policy.
    policy: String,
    #[command(flatten)]
    target: Target,
}

impl Detach {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        let target = self.target.attachment()?;
        let path = format!("policies/{}/attachments", self.policy);
        server.delete(&path, &[(scope_name(target.scope()), target.target().to_owned())]).await?;
        let answer = json!({ "policy": self.policy, "action": "detached", "target": target });
        let sentence = format!("policy {} no longer applies to the {target}", self.policy);
        done(self.store.output, &answer, &sentence)
    }
}
