//! `portcullis policy import-endpoints`.

use super::baseline::Filter;
use super::output::{Output, Table, print, show};
use super::source::SourceOptions;
use clap::Args;
use portcullis_common::store_api::{ImportEndpoints, ImportedEndpoints, LeftOutEndpoint};
use portcullis_store_client::OperatorClient;
use std::path::PathBuf;

/// Endpoints to add, and to which policy.
#[derive(Args, Debug)]
pub(super) struct ImportOptions {
    /// The policy.
    name: String,
    /// The file: text with one endpoint a line, or YAML; `-` for text from standard input.
    #[arg(conflicts_with_all = ["organization", "repository", "cluster", "job"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    filter: Filter,
    /// Only show what would be added.
    #[arg(long)]
    dry_run: bool,
    /// Why; stands in the history.
    #[arg(long)]
    comment: Option<String>,
}

impl ImportOptions {
    pub(super) async fn run(&self, output: Output, server: &OperatorClient) -> anyhow::Result<()> {
        let (baseline, endpoints, of) = match &self.file {
            Some(file) => {
                let of = format!("endpoints of {}", file.display());
                (None, super::endpoint_file::read(file)?, Some(of))
            }
            None => (Some(self.source.needed()?), Vec::new(), None),
        };
        let request = ImportEndpoints {
            baseline,
            endpoints,
            min_runs: self.filter.min_runs,
            since: self.filter.since(),
            dry_run: self.dry_run,
            comment: self.comment.clone().or(of),
        };
        let path = format!("policies/{}/import-endpoints", self.name);
        let done: ImportedEndpoints = server.post(&path, &[], &request).await?;
        if output != Output::Table {
            return show(output, &done, |_| Table::new([""], []));
        }
        let what = match (done.dry_run, done.added.len()) {
            (_, 0) => "nothing to add".to_owned(),
            (true, count) => format!("{count} endpoints would be added"),
            (false, count) => format!("{count} endpoints added, version {}", done.version),
        };
        print(&format!("policy {}: {what}\n", done.policy))?;
        for endpoint in &done.added {
            print(&format!("+ {}\n", portcullis_common::text::log_line(endpoint, 300)))?;
        }
        show_left_out("already allowed", &done.already_allowed)?;
        show_left_out("left out", &done.left_out)
    }
}

/// Endpoints that were not taken, with the reasons.
pub(super) fn show_left_out(title: &str, list: &[LeftOutEndpoint]) -> anyhow::Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    let table = Table::new(
        ["ENDPOINT", "REASON"],
        list.iter().map(|item| [item.endpoint.clone(), item.reason.clone()]),
    );
    print(&format!("\n{title}:\n{}", table.text()))
}
