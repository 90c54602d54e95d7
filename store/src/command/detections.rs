//! `portcullis detections`.

use super::attach::attachment;
use super::connect::StoreOptions;
use super::output::{Output, Table, done, print, show};
use super::runs::{given, newest};
use clap::{Args, Subcommand};
use portcullis_common::store_api::{
    DetectionRecord, Page, Suppression, SuppressionPreview, WriteDetectionState, WriteSuppression,
};
use serde_json::json;

#[derive(Args, Debug)]
pub(super) struct Detections {
    #[command(flatten)]
    store: StoreOptions,
    #[command(subcommand)]
    command: Option<DetectionCommand>,
    #[command(flatten)]
    list: List,
}

/// Which detections are listed.
#[derive(Args, Debug)]
struct List {
    /// Only of this type: `Reverse-Shell`.
    #[arg(long = "type")]
    kind: Option<String>,
    /// Only in this state: `new`, `suppressed`, `resolved`.
    #[arg(long)]
    state: Option<String>,
    /// Only of this repository.
    #[arg(long)]
    repository: Option<String>,
    /// Only of this organization.
    #[arg(long)]
    organization: Option<String>,
    /// Only of this cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Only of the last so many days.
    #[arg(long)]
    days: Option<u32>,
    /// How many.
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

#[derive(Debug, Subcommand)]
enum DetectionCommand {
    /// List detections, the newest first; the same as without a subcommand.
    List(List),
    /// Say that a detection is done with.
    Resolve {
        /// The detection's id.
        id: String,
        /// What was done about it.
        #[arg(long)]
        comment: Option<String>,
    },
    /// Open a detection again that was resolved.
    Reopen {
        /// The detection's id.
        id: String,
    },
    /// Make a rule for detections that are known and accepted: they are recorded, and nobody is told.
    Suppress(Suppress),
    /// List the rules, the newest first.
    Rules,
    /// Remove a rule; what it suppressed is new again.
    Unsuppress {
        /// The rule's id.
        rule: String,
    },
}

/// A rule. What is not said is anything.
#[derive(Args, Debug)]
struct Suppress {
    /// The type of detection: `Reverse-Shell`.
    #[arg(long = "type")]
    kind: String,
    #[command(flatten)]
    scope: Scope,
    /// Only about this endpoint; `*` stands for any characters.
    #[arg(long)]
    endpoint: Option<String>,
    /// Only by this executable; `*` stands for any characters.
    #[arg(long)]
    process: Option<String>,
    /// After how many days it suppresses nothing more; without this, never.
    #[arg(long)]
    days: Option<u32>,
    /// Why.
    #[arg(long, required_unless_present = "preview")]
    reason: Option<String>,
    /// Show what it would suppress of what is there, and make no rule.
    #[arg(long)]
    preview: bool,
}

/// Where a rule counts.
#[derive(Args, Debug)]
#[group(multiple = false)]
struct Scope {
    /// Only in this cluster.
    #[arg(long = "in-cluster")]
    cluster: Option<String>,
    /// Only in this organization.
    #[arg(long = "in-organization")]
    organization: Option<String>,
    /// Only in this repository.
    #[arg(long = "in-repository")]
    repository: Option<String>,
    /// Only in this workflow.
    #[arg(long = "in-workflow")]
    workflow: Option<String>,
}

impl Suppress {
    fn written(&self) -> anyhow::Result<WriteSuppression> {
        let scope = &self.scope;
        Ok(WriteSuppression {
            kind: self.kind.clone(),
            scope: attachment([
                &scope.cluster,
                &scope.organization,
                &scope.repository,
                &scope.workflow,
            ])?,
            endpoint: self.endpoint.clone(),
            process: self.process.clone(),
            expires_in_seconds: self.days.map(|days| days.saturating_mul(24 * 3600)),
            reason: self.reason.clone().unwrap_or_default(),
        })
    }
}

impl Detections {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        let output = self.store.output;
        match &self.command {
            None => self.list.run(&self.store).await,
            Some(DetectionCommand::List(list)) => list.run(&self.store).await,
            Some(DetectionCommand::Resolve { id, comment }) => {
                let body =
                    WriteDetectionState { state: "resolved".to_owned(), comment: comment.clone() };
                let record: DetectionRecord =
                    server.put(&format!("detections/{id}/state"), &body).await?;
                done(output, &record, &format!("detection {id} is resolved"))
            }
            Some(DetectionCommand::Reopen { id }) => {
                let body = WriteDetectionState { state: "new".to_owned(), comment: None };
                let record: DetectionRecord =
                    server.put(&format!("detections/{id}/state"), &body).await?;
                done(output, &record, &format!("detection {id} is {}", record.state))
            }
            Some(DetectionCommand::Suppress(rule)) if rule.preview => {
                let found: SuppressionPreview =
                    server.post("suppressions:preview", &[], &rule.written()?).await?;
                if output == Output::Table {
                    print(&format!("the rule would suppress {} detections\n", found.count))?;
                    if found.count == 0 {
                        return Ok(());
                    }
                    return show(output, &found.examples, |items| table(items));
                }
                show(output, &found, |_| Table::new([""], []))
            }
            Some(DetectionCommand::Suppress(rule)) => {
                let made: Suppression = server.post("suppressions", &[], &rule.written()?).await?;
                let sentence =
                    format!("rule {} suppresses {} detections", made.id, made.suppressed);
                done(output, &made, &sentence)
            }
            Some(DetectionCommand::Rules) => {
                let page: Page<Suppression> = server.get("suppressions", &[]).await?;
                show(output, &page.items, |items| rules(items))
            }
            Some(DetectionCommand::Unsuppress { rule }) => {
                server.delete(&format!("suppressions/{rule}"), &[]).await?;
                let answer = json!({ "rule": rule, "action": "removed" });
                done(output, &answer, &format!("rule {rule} is removed"))
            }
        }
    }
}

impl List {
    async fn run(&self, store: &StoreOptions) -> anyhow::Result<()> {
        let query = given(&[
            ("type", &self.kind),
            ("state", &self.state),
            ("repository", &self.repository),
            ("organization", &self.organization),
            ("cluster", &self.cluster),
            ("since", &self.days.map(|days| super::baseline::since(days).to_string())),
        ]);
        let found: Vec<DetectionRecord> =
            newest(&store.server()?, "detections", query, self.limit).await?;
        show(store.output, &found, |items| table(items))
    }
}

fn table(items: &[DetectionRecord]) -> Table {
    Table::new(
        ["TIME", "TYPE", "STATE", "REPOSITORY", "RUN", "LOCKDOWN", "EVIDENCE", "ID"],
        items.iter().map(|detection| {
            [
                format!("{:.0}", detection.time),
                detection.kind.clone(),
                detection.state.clone(),
                detection.repository.clone(),
                detection.run_id.to_string(),
                if detection.is_lockdown { "yes" } else { "no" }.to_owned(),
                detection.evidence.clone(),
                detection.id.clone(),
            ]
        }),
    )
}

fn rules(items: &[Suppression]) -> Table {
    let any = || "any".to_owned();
    Table::new(
        ["ID", "TYPE", "WHERE", "ENDPOINT", "PROCESS", "ENDS", "SUPPRESSES", "BY", "REASON"],
        items.iter().map(|rule| {
            [
                rule.id.clone(),
                rule.kind.clone(),
                rule.scope.as_ref().map_or_else(any, ToString::to_string),
                rule.endpoint.clone().unwrap_or_else(any),
                rule.process.clone().unwrap_or_else(any),
                match (rule.expires_at, rule.state.as_str()) {
                    (None, _) => "never".to_owned(),
                    (Some(_), "expired") => "expired".to_owned(),
                    (Some(time), _) => format!("{time:.0}"),
                },
                rule.suppressed.to_string(),
                rule.created_by.clone(),
                rule.reason.clone(),
            ]
        }),
    )
}
