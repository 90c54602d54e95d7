//! Detections: all of them, those of one job, and one with its evidence.

use super::DAYS;
use super::job::{Head, Tab};
use crate::dashboard::api_client::{path, segment};
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use portcullis_common::event::{Event, EventKind, Process};
use portcullis_common::store_api::{self, DetectionRecord, JobRecord, Role};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/detections", Role::Viewer, list);
    pages.get("/detections/{id}", Role::Viewer, show);
    pages.get("/jobs/{id}/detections", Role::Viewer, of_job);
}

/// Rows of one page.
const ROWS: &str = "50";

/// Parameters that are the API's as well.
const FILTERS: [&str; 5] = ["type", "repository", "organization", "cluster", "cursor"];

/// Types of detection, to choose from.
const TYPES: [&str; 14] = [
    "Reverse-Shell",
    "Runner-Worker-Memory-Read",
    "Privileged-Container",
    "New-Outbound-Network-Call",
    "Dns-Exfiltration",
    "Raw-Frames",
    "Fileless-Execution",
    "Sudo-Use",
    "Cgroup-Escape",
    "Source-File-Overwritten",
    "Left-Over-Process",
    "Firewall-Tampering",
    "Monitor-Tampering",
    "Binding-Conflict",
];

#[derive(Debug, Template)]
#[template(path = "detections.html")]
struct Detections {
    layout: Layout,
    rows: String,
    kind: String,
    repository: String,
    state: String,
    days: String,
    is_empty: bool,
    is_filtered: bool,
}

#[derive(Debug, Template)]
#[template(path = "detections_rows.html")]
struct Rows {
    detections: Vec<DetectionRecord>,
    next: Option<String>,
}

#[derive(Debug, Template)]
#[template(path = "detection.html")]
struct Show {
    layout: Layout,
    detection: DetectionRecord,
    job: Option<JobRecord>,
    process: Option<Process>,
    /// Where the process is among the others.
    in_tree: Option<String>,
    /// Where the call is among the others, when it is about one.
    call: Option<String>,
}

#[derive(Debug, Template)]
#[template(path = "job_detections.html")]
struct OfJob {
    layout: Layout,
    head: Head,
    detections: Vec<DetectionRecord>,
}

async fn list(page: Page) -> PageResult {
    let mut asked = path(&["detections"]).with("limit", ROWS);
    for name in FILTERS {
        asked = asked.with_some(name, page.query(name));
    }
    asked = asked.with_some("state", page.query("state"));
    asked = asked.with_some("since", super::since(&page.open.query).as_deref());
    let found: store_api::Page<DetectionRecord> = page.api.get(&asked).await?;
    let query = page.open.query.query_without(&["cursor", "done"]);
    let next = found.next_cursor.map(|cursor| format!("/detections?{query}&cursor={cursor}"));
    let rows = Rows { detections: found.items, next };
    if page.is_part {
        return render(&rows);
    }
    let text = |name| page.query(name).unwrap_or_default().to_owned();
    render(&Detections {
        layout: page.layout("Detections", Section::Detections),
        is_empty: rows.detections.is_empty(),
        rows: rows.render()?,
        kind: text("type"),
        repository: text("repository"),
        state: text("state"),
        days: text("days"),
        is_filtered: !query.is_empty(),
    })
}

/// The detection of a page.
pub(super) async fn read(page: &Page) -> Result<DetectionRecord, PageError> {
    page.api.get(&path(&["detections", page.param("id")])).await
}

/// The job's event that a detection is about, or is.
async fn event(page: &Page, detection: &DetectionRecord) -> Result<Option<Event>, PageError> {
    let Some(seq) = detection.seq else { return Ok(None) };
    let asked = path(&["jobs", &detection.job_id, "events"])
        .with("limit", "1")
        .with("cursor", &seq.saturating_sub(1).to_string());
    let events: Option<store_api::Page<Event>> = page.api.find(&asked).await?;
    Ok(events.and_then(|events| events.items.into_iter().find(|event| event.seq == seq)))
}

async fn show(page: Page) -> PageResult {
    let detection = read(&page).await?;
    let found = event(&page, &detection).await?;
    let (process, call) = match found.map(|event| (event.seq, event.kind)) {
        Some((_, EventKind::Detection(detection))) => (detection.process, None),
        Some((seq, EventKind::Network(call))) => {
            (call.process, Some(super::calls::address_of(&detection.job_id, seq)))
        }
        _ => (None, None),
    };
    let job = page.api.find(&path(&["jobs", &detection.job_id])).await?;
    let title = portcullis_common::text::shown(&detection.kind, 100);
    let layout = page.layout(title, Section::Detections);
    let in_tree = process.as_ref().and_then(|process| {
        let place = super::processes::anchor(process.pid?, process.start_time);
        Some(format!("/jobs/{}/processes#{place}", segment(&detection.job_id)))
    });
    render(&Show { layout, detection, job, process, in_tree, call })
}

async fn of_job(page: Page) -> PageResult {
    let job = super::job::read(&page).await?;
    let asked = path(&["detections"]).with("job", &job.id).with("limit", "1000");
    let found: store_api::Page<DetectionRecord> = page.api.get(&asked).await?;
    render(&OfJob {
        layout: page.layout(format!("Detections of {}", super::job::title(&job)), Section::Runs),
        head: Head::new(job, Tab::Detections),
        detections: found.items,
    })
}
