//! `portcullis baseline`.

use super::connect::StoreOptions;
use super::import_endpoints::show_left_out;
use super::output::{Output, Table, print, show, text_only};
use super::progress::Progress;
use super::source::{SourceOptions, source_query};
use clap::{Args, Subcommand};
use portcullis_common::policy::EgressMode;
use portcullis_common::store_api::{
    BaselineSource, BaselineState, BaselineSummary, DestinationSummary, Page, PolicyFromBaseline,
    PolicyOfBaseline,
};
use portcullis_store_client::OperatorClient;

/// Where jobs have been calling, and policies made of that.
#[derive(Args, Debug)]
pub(super) struct Baseline {
    #[command(flatten)]
    store: StoreOptions,
    #[command(subcommand)]
    command: BaselineCommand,
}

#[derive(Debug, Subcommand)]
enum BaselineCommand {
    /// List baselines with how much they have learned.
    List {
        /// Only of this kind.
        #[arg(long, value_enum, default_value_t = Kind::Job)]
        source: Kind,
        /// Only of this organization.
        #[arg(long)]
        organization: Option<String>,
        /// Only of this repository.
        #[arg(long)]
        repository: Option<String>,
        /// Only those that have learned so much.
        #[arg(long, value_enum)]
        state: Option<State>,
    },
    /// Show where the runs called.
    Show {
        #[command(flatten)]
        source: SourceOptions,
        #[command(flatten)]
        filter: Filter,
    },
    /// Print the endpoints, one a line, as `policy import-endpoints` and policies take them.
    Export {
        #[command(flatten)]
        source: SourceOptions,
        #[command(flatten)]
        filter: Filter,
    },
    /// Make a policy that allows what was reached.
    CreatePolicy {
        /// The name of the new policy.
        name: String,
        #[command(flatten)]
        source: SourceOptions,
        #[command(flatten)]
        filter: Filter,
        /// What happens to calls that it does not allow.
        #[arg(long, value_enum, default_value_t = Mode::Audit)]
        mode: Mode,
        /// Only show what would be made.
        #[arg(long)]
        dry_run: bool,
        /// Why; stands in the history.
        #[arg(long)]
        comment: Option<String>,
    },
}

/// Which endpoints.
#[derive(Args, Clone, Debug)]
pub(super) struct Filter {
    /// Only endpoints that were called in so many runs at least.
    #[arg(long, value_name = "RUNS")]
    pub(super) min_runs: Option<u32>,
    /// Only endpoints that were called in so many days.
    #[arg(long, value_name = "DAYS")]
    pub(super) days: Option<u32>,
}

impl Filter {
    /// The time that the days begin at.
    pub(super) fn since(&self) -> Option<jiff::Timestamp> {
        self.days.map(since)
    }
}

/// So many days ago.
pub(super) fn since(days: u32) -> jiff::Timestamp {
    let time = std::time::Duration::from_hours(24).saturating_mul(days.min(36_500));
    // To the second, so that a command can be repeated by hand.
    jiff::Timestamp::from_second((crate::service::now() - time).as_second())
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Kind {
    /// One job of a workflow.
    Job,
    /// All jobs of a repository.
    Repository,
    /// All jobs of an organization or user.
    Organization,
    /// All jobs on the hosts of a cluster.
    Cluster,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum State {
    /// Too few runs.
    Creating,
    /// The last runs called hardly anything new.
    Stable,
    /// They kept calling something new.
    Unstable,
}

/// What happens to calls that a policy does not allow.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Mode {
    /// They are recorded.
    Audit,
    /// They are stopped.
    Block,
}

impl Baseline {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        let output = self.store.output;
        match &self.command {
            BaselineCommand::List { source, organization, repository, state } => {
                let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
                let mut query = vec![("source", word(source))];
                query.extend(organization.clone().map(|name| ("organization", name)));
                query.extend(repository.clone().map(|name| ("repository", name)));
                query.extend(state.map(|state| ("state", word(&state))));
                let all: Vec<BaselineSummary> =
                    pages(&server, "baselines/states", query, "baselines").await?;
                show(output, &all, |all| {
                    Table::new(
                        [
                            "SOURCE",
                            "STATE",
                            "RUNS",
                            "CHANGED",
                            "ENDPOINTS",
                            "FIRST CALL",
                            "LAST CALL",
                        ],
                        all.iter().map(row),
                    )
                })
            }
            BaselineCommand::Show { source, filter } => {
                let query = endpoint_query(&source.needed()?, filter);
                let all: Vec<DestinationSummary> =
                    pages(&server, "baselines", query, "endpoints").await?;
                show(output, &all, |all| {
                    Table::new(
                        ["ENDPOINT", "VERDICT", "CALLS", "RUNS", "FIRST CALL", "LAST CALL"],
                        all.iter().map(|item| {
                            [
                                item.endpoint.clone(),
                                super::output::word(&item.verdict),
                                item.calls.to_string(),
                                item.runs.to_string(),
                                format!("{:.0}", item.first_seen),
                                format!("{:.0}", item.last_seen),
                            ]
                        }),
                    )
                })
            }
            BaselineCommand::Export { source, filter } => {
                text_only(output)?;
                let query = endpoint_query(&source.needed()?, filter);
                print(&server.get_text("baselines", "text/plain", &query).await?)
            }
            BaselineCommand::CreatePolicy { name, source, filter, mode, dry_run, comment } => {
                let request = PolicyFromBaseline {
                    name: name.clone(),
                    baseline: source.needed()?,
                    egress_policy: match mode {
                        Mode::Audit => EgressMode::Audit,
                        Mode::Block => EgressMode::Block,
                    },
                    description: None,
                    min_runs: filter.min_runs,
                    since: filter.since(),
                    dry_run: *dry_run,
                    comment: comment.clone(),
                };
                let made: PolicyOfBaseline =
                    server.post("policies:from-baseline", &[], &request).await?;
                if output != Output::Table {
                    return show(output, &made, |_| Table::new([""], []));
                }
                match made.version {
                    Some(version) => print(&format!("policy {name} created, version {version}\n"))?,
                    None => print(&made.document.0.to_yaml()?)?,
                }
                show_left_out("left out", &made.left_out)
            }
        }
    }
}

fn row(item: &BaselineSummary) -> [String; 7] {
    let source = match &item.source {
        BaselineSource::Job { workflow, job, .. } => format!("{workflow} {job}"),
        BaselineSource::Repository { repository: name }
        | BaselineSource::Organization { organization: name }
        | BaselineSource::Cluster { cluster: name } => name.clone(),
    };
    let time = |time: Option<jiff::Timestamp>| {
        time.map_or_else(|| "-".to_owned(), |time| format!("{time:.0}"))
    };
    let state = match item.state {
        BaselineState::Creating => "creating",
        BaselineState::Stable => "stable",
        BaselineState::Unstable => "unstable",
    };
    [
        source,
        state.to_owned(),
        item.runs.to_string(),
        item.changed_runs.to_string(),
        item.endpoints.to_string(),
        time(item.first_seen),
        time(item.last_seen),
    ]
}

fn endpoint_query(source: &BaselineSource, filter: &Filter) -> Vec<(&'static str, String)> {
    let mut query = source_query(source);
    query.extend(filter.min_runs.map(|runs| ("min_runs", runs.to_string())));
    query.extend(filter.since().map(|time| ("since", time.to_string())));
    query
}

/// Every page of a list.
pub(super) async fn pages<T: serde::de::DeserializeOwned>(
    server: &OperatorClient,
    path: &str,
    mut query: Vec<(&'static str, String)>,
    what: &'static str,
) -> anyhow::Result<Vec<T>> {
    query.push(("limit", "1000".to_owned()));
    let given = query.len();
    let mut progress = Progress::new(what, None);
    let mut all: Vec<T> = Vec::new();
    loop {
        let page: Page<T> = server.get(path, &query).await?;
        all.extend(page.items);
        progress.set(u64::try_from(all.len()).unwrap_or(u64::MAX));
        let Some(cursor) = page.next_cursor else { break };
        query.truncate(given);
        query.push(("cursor", cursor));
    }
    progress.finish();
    Ok(all)
}
