//! `portcullis runs` and `events`.

use super::connect::StoreOptions;
use super::output::{Table, show, word};
use super::progress::Progress;
use clap::Args;
use portcullis_common::event::{Event, EventKind};
use portcullis_common::report::endpoint;
use portcullis_common::store_api::{MAX_PAGE, Page, ProcessTree, Run, RunJobs};
use portcullis_store_client::OperatorClient;

#[derive(Args, Debug)]
pub(super) struct Runs {
    #[command(flatten)]
    store: StoreOptions,
    /// One run: `RUN_ID` or `RUN_ID-ATTEMPT`.
    id: Option<String>,
    /// Only of this repository.
    #[arg(long)]
    repository: Option<String>,
    /// Only of this organization.
    #[arg(long)]
    organization: Option<String>,
    /// Only with a job in this cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Only of this workflow: `octo/hello/.github/workflows/ci.yml`.
    #[arg(long)]
    workflow: Option<String>,
    /// Only with a job under this policy.
    #[arg(long)]
    policy: Option<String>,
    /// Only with calls that were stopped, or would have been.
    #[arg(long)]
    blocked: bool,
    /// Only with detections.
    #[arg(long)]
    detections: bool,
    /// Only with a call to this endpoint, whatever became of it: `github.com:443`.
    #[arg(long)]
    endpoint: Option<String>,
    /// Only with a job that began in the last so many days.
    #[arg(long)]
    days: Option<u32>,
    /// How many.
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

/// Query parameters of the options that are given.
pub(super) fn given(options: &[(&'static str, &Option<String>)]) -> Vec<(&'static str, String)> {
    options
        .iter()
        .filter_map(|(key, value)| value.as_ref().map(|value| (*key, value.clone())))
        .collect()
}

/// The newest so many items of a list, over as many pages as they need.
pub(super) async fn newest<T: serde::de::DeserializeOwned>(
    server: &OperatorClient,
    path: &'static str,
    mut query: Vec<(&'static str, String)>,
    wanted: u32,
) -> anyhow::Result<Vec<T>> {
    let given = query.len();
    let mut progress = Progress::new(path, Some(wanted.into()));
    let mut items: Vec<T> = Vec::new();
    loop {
        let left = wanted.saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX));
        if left == 0 {
            break;
        }
        query.push(("limit", left.min(MAX_PAGE).to_string()));
        let page: Page<T> = server.get(path, &query).await?;
        items.extend(page.items);
        progress.set(u64::try_from(items.len()).unwrap_or(u64::MAX));
        let Some(cursor) = page.next_cursor else { break };
        query.truncate(given);
        query.push(("cursor", cursor));
    }
    progress.finish();
    Ok(items)
}

impl Runs {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        if let Some(id) = &self.id {
            let run: RunJobs = server.get(&format!("runs/{id}"), &[]).await?;
            return show(self.store.output, &run, |run| {
                Table::new(
                    [
                        "JOB",
                        "NAME",
                        "STATE",
                        "POLICY",
                        "IDENTITY",
                        "JOB WORKFLOW",
                        "POSTURE",
                        "ALLOWED",
                        "BLOCKED",
                        "WOULD BLOCK",
                        "DETECTIONS",
                    ],
                    run.job_records.iter().map(|job| {
                        [
                            job.id.clone(),
                            job.context.job.clone(),
                            job.state.clone(),
                            format!("{} version {}", job.policy.name, job.policy.version),
                            word(&job.identity),
                            job.job_workflow_ref.clone().unwrap_or_else(|| "-".to_owned()),
                            job.posture.map_or_else(
                                || "-".to_owned(),
                                |posture| format!("{posture:?}").to_lowercase(),
                            ),
                            job.allowed.to_string(),
                            job.blocked.to_string(),
                            job.would_block.to_string(),
                            job.detections.to_string(),
                        ]
                    }),
                )
            });
        }
        let mut query = given(&[
            ("repository", &self.repository),
            ("organization", &self.organization),
            ("cluster", &self.cluster),
            ("workflow", &self.workflow),
            ("policy", &self.policy),
            ("endpoint", &self.endpoint),
            ("since", &self.days.map(|days| super::baseline::since(days).to_string())),
        ]);
        query.extend([
            ("blocked", self.blocked.to_string()),
            ("detections", self.detections.to_string()),
        ]);
        let runs: Vec<Run> = newest(&server, "runs", query, self.limit).await?;
        show(self.store.output, &runs, |runs| {
            Table::new(
                [
                    "RUN",
                    "REPOSITORY",
                    "WORKFLOW",
                    "STATE",
                    "STARTED",
                    "JOBS",
                    "BLOCKED",
                    "WOULD BLOCK",
                    "DETECTIONS",
                ],
                runs.iter().map(|run| {
                    [
                        run.id.clone(),
                        run.repository.clone(),
                        run.workflow.clone(),
                        run.state.clone(),
                        format!("{:.0}", run.started_at),
                        run.jobs.to_string(),
                        run.blocked.to_string(),
                        run.would_block.to_string(),
                        run.detections.to_string(),
                    ]
                }),
            )
        })
    }
}

#[derive(Args, Debug)]
pub(super) struct Events {
    #[command(flatten)]
    store: StoreOptions,
    /// The job.
    job: String,
    /// All kinds of events, not only calls.
    #[arg(long)]
    all: bool,
    /// Only events of this kind: network, dns, process, file, detection, posture, job.
    #[arg(long = "type", value_name = "KIND", conflicts_with = "all")]
    kind: Option<String>,
    /// Show the job's processes as a tree, with what they executed and where they called.
    #[arg(long, conflicts_with_all = ["all", "kind", "status", "endpoint", "process", "step", "policy", "new"])]
    tree: bool,
    /// Only with this verdict: `allowed`, `blocked`, `would-block`.
    #[arg(long)]
    status: Option<String>,
    /// Only to an endpoint that has this text in it.
    #[arg(long)]
    endpoint: Option<String>,
    /// Only of an executable that has this text in its path.
    #[arg(long)]
    process: Option<String>,
    /// Only of this step.
    #[arg(long)]
    step: Option<String>,
    /// Only judged by the policy with this name.
    #[arg(long)]
    policy: Option<String>,
    /// Only calls to endpoints that the job had never called before.
    #[arg(long)]
    new: bool,
}

impl Events {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        if self.tree {
            let path = format!("jobs/{}/process-tree", self.job);
            let tree: ProcessTree = server.get(&path, &[]).await?;
            return super::process_tree::show(self.store.output, &tree);
        }
        let kind = if self.all || self.kind.is_some() { "events" } else { "network-events" };
        let path = format!("jobs/{}/{kind}", self.job);
        let mut query = given(&[
            ("type", &self.kind),
            ("status", &self.status),
            ("endpoint", &self.endpoint),
            ("process", &self.process),
            ("step", &self.step),
            ("policy", &self.policy),
        ]);
        if self.new {
            query.push(("new", "true".to_owned()));
        }
        let events: Vec<Event> = super::baseline::pages(&server, &path, query, "events").await?;
        show(self.store.output, &events, |events| {
            Table::new(
                ["SEQ", "TIME", "TYPE", "VERDICT", "WHAT", "PROCESS", "STEP", "RULE"],
                events.iter().map(row),
            )
        })
    }
}

fn row(event: &Event) -> [String; 8] {
    let none = || "-".to_owned();
    let (kind, verdict, what, process, rule) = match &event.kind {
        EventKind::Network(call) => (
            "network",
            Some(call.verdict),
            endpoint(call),
            call.process.as_ref(),
            call.rule.clone(),
        ),
        EventKind::Dns(query) => (
            "dns",
            Some(query.verdict),
            format!("{} {}", query.query_type, query.name),
            query.process.as_ref(),
            query.rule.clone(),
        ),
        EventKind::Process(exec) => {
            ("process", None, exec.process.argv.join(" "), Some(&exec.process), none())
        }
        EventKind::File(file) => ("file", None, file.path.clone(), file.process.as_ref(), none()),
        EventKind::Detection(detection) => {
            ("detection", None, detection.evidence.clone(), detection.process.as_ref(), none())
        }
        EventKind::Posture(posture) => ("posture", None, posture.reason.clone(), None, none()),
        EventKind::Job(job) => ("job", None, job.reason.clone(), None, none()),
    };
    let word = |verdict| {
        serde_json::to_value(verdict).ok().and_then(|value| value.as_str().map(str::to_owned))
    };
    [
        event.seq.to_string(),
        format!("{:.3}", event.time),
        kind.to_owned(),
        verdict.and_then(word).unwrap_or_else(none),
        what,
        process.and_then(|process| process.exe.clone()).unwrap_or_else(none),
        process.and_then(|process| process.step.clone()).unwrap_or_else(none),
        rule,
    ]
}
