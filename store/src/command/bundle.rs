//! `portcullis export` and `import`.

use super::connect::{Place, StoreOptions};
use super::output::{Table, print, show, text_only};
use super::progress::waiting;
use clap::Args;
use portcullis_common::store_api::ImportOutcome;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct Export {
    #[command(flatten)]
    store: StoreOptions,
}

impl Export {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        text_only(self.store.output)?;
        match self.store.place()? {
            Place::Server(server) => {
                let asked = server.get_text("policies:export", "application/yaml", &[]);
                print(&waiting("exporting", asked).await?)
            }
            Place::Directory(policies) => {
                let documents: Vec<String> = policies
                    .library()
                    .documents()
                    .map(|source| source.document.to_yaml())
                    .collect::<Result<_, _>>()?;
                print(&documents.join("---\n"))
            }
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct Import {
    #[command(flatten)]
    store: StoreOptions,
    /// The file; `-` for standard input.
    file: PathBuf,
    /// Tell what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Also delete the policies that are not in the file.
    #[arg(long)]
    prune: bool,
    /// Why; stands in the history.
    #[arg(long)]
    comment: Option<String>,
}

impl Import {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        let (bytes, source) = super::policy::read(&self.file)?;
        let mut query = vec![
            ("source", source),
            ("dry_run", self.dry_run.to_string()),
            ("prune", self.prune.to_string()),
        ];
        query.extend(self.comment.as_ref().map(|comment| ("comment", comment.clone())));
        let asked = server.post_text("policies:import", &query, bytes);
        let outcome: ImportOutcome = waiting("importing", asked).await?;
        show(self.store.output, &outcome, |outcome| {
            Table::new(
                ["NAME", "ACTION", "VERSION", "ATTACHED", "DETACHED"],
                outcome.policies.iter().map(|policy| {
                    let list = |targets: &[portcullis_common::policy::Attachment]| {
                        targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                    };
                    [
                        policy.name.clone(),
                        policy.action.clone(),
                        policy.version.to_string(),
                        list(&policy.attached),
                        list(&policy.detached),
                    ]
                }),
            )
        })
    }
}
