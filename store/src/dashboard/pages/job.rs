//! A job: what was in force, and what it did.

use crate::dashboard::api_client::path;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use portcullis_common::event::{Event, EventKind, PostureLevel, Verdict};
use portcullis_common::report::Report;
use portcullis_common::store_api::{self, JobRecord, Role};
use portcullis_common::text::shown;
use std::collections::BTreeSet;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/jobs/{id}/head", Role::Viewer, head);
    pages.get("/jobs/{id}/files", Role::Viewer, files);
    pages.get("/jobs/{id}/posture", Role::Viewer, posture);
}

/// Rows of one page.
const ROWS: &str = "100";

/// The tabs of a job's pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tab {
    Network,
    Processes,
    Files,
    Detections,
    Posture,
}

/// The head of a job's pages; asked for anew while the job runs.
#[derive(Debug, Template)]
#[template(path = "job_head.html")]
pub(super) struct Head {
    pub(super) job: JobRecord,
    pub(super) tab: Tab,
    github: Option<super::runs::GitHubRun>,
}

impl Head {
    pub(super) fn new(job: JobRecord, tab: Tab) -> Self {
        let context = &job.context;
        let github = super::runs::github(&context.server_url, &context.repository, context.run_id);
        Self { job, tab, github }
    }

    /// The workflow that holds the job, when it is another one than the run's.
    fn reusable_workflow(&self) -> Option<&str> {
        let own = &self.job.context.workflow_ref;
        let of_job = self.job.job_workflow_ref.as_deref()?;
        // Owners and repositories are written in any case.
        (!of_job.eq_ignore_ascii_case(own)).then_some(of_job)
    }

    /// Whether the job has ended, its policy was in force, and nothing was stopped.
    fn is_clean(&self) -> bool {
        self.job.report.as_ref().is_some_and(|report| {
            report.blocked == 0 && report.posture.level == PostureLevel::Enforced
        })
    }

    /// Whether Lockdown Mode killed the job, by its report.
    fn is_killed(&self) -> bool {
        let report = self.job.report.as_ref();
        report.is_some_and(|report| report.detections.iter().any(|found| found.is_lockdown))
    }
}

/// How many endpoints a job called or tried to, in words: `7, 2 of them blocked`.
fn destinations(report: &Report) -> String {
    let endpoints = |verdict: Option<Verdict>| {
        let chosen = report
            .destinations
            .iter()
            .filter(|one| verdict.is_none_or(|verdict| one.verdict == verdict));
        chosen.map(|one| one.endpoint.as_str()).collect::<BTreeSet<_>>().len()
    };
    // A report leaves some out when there are too many; how many different endpoints those were is not known.
    let at_least = if report.destinations_left_out > 0 { "more than " } else { "" };
    let mut told = vec![format!("{at_least}{}", endpoints(None))];
    for (verdict, what) in
        [(Verdict::Blocked, "blocked"), (Verdict::WouldBlock, "would be blocked")]
    {
        match endpoints(Some(verdict)) {
            0 => {}
            count => told.push(format!("{count} of them {what}")),
        }
    }
    told.join(", ")
}

#[derive(Debug, Template)]
#[template(path = "job_files.html")]
struct Files {
    layout: Layout,
    head: Head,
    events: Vec<Event>,
    next: Option<String>,
}

#[derive(Debug, Template)]
#[template(path = "job_posture.html")]
struct Posture {
    layout: Layout,
    head: Head,
    events: Vec<Event>,
}

/// The job of a page.
pub(super) async fn read(page: &Page) -> Result<JobRecord, PageError> {
    page.api.get(&path(&["jobs", page.param("id")])).await
}

/// The title of a job's pages.
pub(super) fn title(job: &JobRecord) -> String {
    format!("{} #{}", shown(&job.context.job, 80), job.context.run_id)
}

async fn head(page: Page) -> PageResult {
    let job = read(&page).await?;
    let tab = match page.query("tab") {
        Some("processes") => Tab::Processes,
        Some("files") => Tab::Files,
        Some("detections") => Tab::Detections,
        Some("posture") => Tab::Posture,
        _ => Tab::Network,
    };
    render(&Head::new(job, tab))
}

async fn files(page: Page) -> PageResult {
    let job = read(&page).await?;
    let asked = path(&["jobs", &job.id, "events"])
        .with("type", "file")
        .with("limit", ROWS)
        .with_some("cursor", page.query("cursor"));
    let found: store_api::Page<Event> = page.api.get(&asked).await?;
    render(&Files {
        layout: page.layout(format!("Files of {}", title(&job)), Section::Runs),
        head: Head::new(job, Tab::Files),
        events: found.items,
        next: found.next_cursor.map(|cursor| format!("?cursor={cursor}")),
    })
}

async fn posture(page: Page) -> PageResult {
    let job = read(&page).await?;
    let asked = path(&["jobs", &job.id, "events"]).with("type", "posture").with("limit", "1000");
    let found: store_api::Page<Event> = page.api.get(&asked).await?;
    render(&Posture {
        layout: page.layout(format!("Posture of {}", title(&job)), Section::Runs),
        head: Head::new(job, Tab::Posture),
        events: found.items,
    })
}
