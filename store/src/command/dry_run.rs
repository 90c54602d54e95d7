//! `portcullis policy dry-run`.

use super::connect::StoreOptions;
use super::output::{Found, Output, Table, print, show, word};
use super::progress::waiting;
use super::source::SourceOptions;
use anyhow::bail;
use clap::Args;
use portcullis_common::store_api::{DryRun, DryRunCall, DryRunRequest};
use portcullis_store_client::OperatorClient;
use std::path::PathBuf;

/// Which policy on which runs.
#[derive(Args, Debug)]
pub(super) struct DryRunOptions {
    /// A policy of the store.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    name: Option<String>,
    /// A file with a policy that need not be stored; `-` for standard input.
    #[arg(long)]
    file: Option<PathBuf>,
    #[command(flatten)]
    runs_of: SourceOptions,
    /// Only this run of GitHub.
    #[arg(long, value_name = "RUN_ID")]
    run: Option<u64>,
    /// Only the job of this id.
    #[arg(long, value_name = "JOB_ID")]
    job_id: Option<String>,
    /// Only jobs of so many days.
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
    /// The newest so many jobs; 1000 when nothing is said.
    #[arg(long)]
    jobs: Option<u32>,
    /// End with status 3 when something would have been stopped.
    #[arg(long)]
    check: bool,
}

impl DryRunOptions {
    pub(super) async fn run(
        &self,
        store: &StoreOptions,
        server: &OperatorClient,
    ) -> anyhow::Result<()> {
        let document = match &self.file {
            None => None,
            Some(path) => {
                let (bytes, source) = super::policy::read(path)?;
                // Read here as well, so that mistakes name the file.
                portcullis_common::policy::parse_documents(&source, &bytes).map_err(|errors| {
                    anyhow::anyhow!("{}", errors.to_string().trim_start_matches("error: "))
                })?;
                match String::from_utf8(bytes) {
                    Ok(text) => Some(text),
                    Err(_) => bail!("{source} is not UTF-8"),
                }
            }
        };
        let request = DryRunRequest {
            policy: self.name.clone(),
            document,
            runs_of: self.runs_of.source(),
            run_id: self.run,
            job_id: self.job_id.clone(),
            since: self.days.map(super::baseline::since),
            jobs: self.jobs,
        };
        let asked = server.post("policies:dry-run", &[], &request);
        let tried: DryRun = waiting("judging recorded runs", asked).await?;
        match store.output {
            Output::Table => tell(&tried)?,
            output => show(output, &tried, |_| Table::new([""], []))?,
        }
        if self.check && tried.blocked + tried.would_block > 0 {
            let calls = tried.blocked + tried.would_block;
            return Err(
                Found(format!("policy {} does not allow {calls} calls", tried.policy)).into()
            );
        }
        Ok(())
    }
}

fn tell(tried: &DryRun) -> anyhow::Result<()> {
    print(&format!(
        "policy {} on {}: {} jobs in {} runs; {} calls allowed, {} stopped, {} recorded only\n",
        tried.policy,
        tried.runs_of,
        tried.jobs,
        tried.runs,
        tried.allowed,
        tried.blocked,
        tried.would_block
    ))?;
    for (title, calls) in [
        ("not allowed", &tried.not_allowed),
        ("was stopped, and would be allowed", &tried.newly_allowed),
    ] {
        if calls.is_empty() {
            continue;
        }
        let table = Table::new(
            ["ENDPOINT", "ADDRESS", "WAS", "WOULD BE", "RULE", "CALLS", "JOBS", "LAST CALL"],
            calls.iter().map(row),
        );
        print(&format!("\n{title}:\n{}", table.text()))?;
    }
    if !tried.unused.is_empty() {
        let table = Table::new(
            ["ENDPOINT", "POLICY"],
            tried.unused.iter().map(|item| [item.endpoint.clone(), item.policy.clone()]),
        );
        print(&format!("\nnot used:\n{}", table.text()))?;
    }
    if tried.left_out > 0 {
        print(&format!("\n{} entries more are left out\n", tried.left_out))?;
    }
    Ok(())
}

fn row(call: &DryRunCall) -> [String; 8] {
    [
        call.endpoint.clone(),
        call.address.clone().unwrap_or_else(|| "-".to_owned()),
        word(&call.recorded),
        word(&call.verdict),
        call.rule.clone(),
        call.calls.to_string(),
        call.jobs.to_string(),
        format!("{:.0}", call.last_seen),
    ]
}
