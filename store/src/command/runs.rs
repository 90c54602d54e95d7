//! `portcullis runs` and `events`.

use super::connect::StoreOptions;
use super::output::{Table, show};
use clap::Args;
use portcullis_common::event::{Event, EventKind};
use portcullis_common::report::endpoint;
use portcullis_common::store_api::{Page, Run, RunJobs};

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
    /// Only with calls that were stopped, or would have been.
    #[arg(long)]
    blocked: bool,
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
        ]);
        query.extend([("limit", self.limit.to_string()), ("blocked", self.blocked.to_string())]);
        let page: Page<Run> = server.get("runs", &query).await?;
        show(self.store.output, &page.items, |runs| {
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
}

impl Events {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = self.store.server()?;
        let kind = if self.all { "events" } else { "network-events" };
        let path = format!("jobs/{}/{kind}", self.job);
        let mut events: Vec<Event> = Vec::new();
        let mut cursor = None;
        loop {
            let mut query = given(&[
                ("status", &self.status),
                ("endpoint", &self.endpoint),
                ("process", &self.process),
                ("step", &self.step),
                ("cursor", &cursor),
            ]);
            query.push(("limit", "1000".to_owned()));
            let page: Page<Event> = server.get(&path, &query).await?;
            events.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
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
