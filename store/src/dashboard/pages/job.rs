//! A job: what was in force, and what it did.

use super::home::{Chart, Series};
use super::policy::download;
use crate::dashboard::api_client::{Path, path};
use crate::dashboard::fields::Fields;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use axum::response::IntoResponse as _;
use jiff::Timestamp;
use portcullis_common::event::{
    DnsEvent, Event, EventKind, NetworkEvent, PolicyReference, PostureLevel, Process, Verdict,
};
use portcullis_common::report::{Report, endpoint};
use portcullis_common::store_api::{self, DetectionRecord, JobRecord, Role, Timeline};
use portcullis_common::text::shown;
use std::collections::BTreeSet;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/jobs/{id}", Role::Viewer, network);
    pages.get("/jobs/{id}/head", Role::Viewer, head);
    pages.get("/jobs/{id}/timeline.json", Role::Viewer, timeline);
    pages.get("/jobs/{id}/network-events.csv", Role::Viewer, csv);
    pages.get("/jobs/{id}/network-events.ndjson", Role::Viewer, lines);
    pages.get("/jobs/{id}/files", Role::Viewer, files);
    pages.get("/jobs/{id}/posture", Role::Viewer, posture);
}

/// Rows of one page.
const ROWS: &str = "100";

/// Events of one download at most, so that a page can't hold the server's memory.
const MAX_DOWNLOAD: usize = 200_000;

/// The detection of a destination that a job never called before.
const NEW_CALL: &str = "New-Outbound-Network-Call";

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

/// A call, or a name that was refused before a call could be made, as a row.
#[derive(Debug)]
struct Call {
    seq: u64,
    time: Timestamp,
    verdict: Verdict,
    endpoint: String,
    /// Where the name led to; for a name that was refused, what was asked for.
    below: Option<String>,
    container: Option<String>,
    port: Option<u16>,
    protocol: String,
    process: Option<Process>,
    policy: PolicyReference,
    rule: String,
    packets: u64,
    is_new: bool,
}

impl Call {
    fn of_network(event: &Event, network: &NetworkEvent, new: &BTreeSet<String>) -> Self {
        let endpoint = endpoint(network);
        Self {
            seq: event.seq,
            time: event.time,
            verdict: network.verdict,
            is_new: new.contains(&endpoint),
            endpoint,
            below: network.name.as_ref().map(|_| network.address.to_string()),
            container: network.container.clone(),
            port: network.port,
            protocol: network.protocol.clone(),
            process: network.process.clone(),
            policy: network.policy.clone(),
            rule: network.rule.clone(),
            packets: network.packets,
        }
    }

    fn of_query(event: &Event, query: &DnsEvent) -> Self {
        Self {
            seq: event.seq,
            time: event.time,
            verdict: query.verdict,
            is_new: false,
            endpoint: query.name.clone(),
            below: Some(asked_for(query)),
            container: query.container.clone(),
            port: None,
            protocol: "dns".to_owned(),
            process: query.process.clone(),
            policy: query.policy.clone(),
            rule: query.rule.clone(),
            packets: query.count,
        }
    }

    /// Takes in a query for the same name, by the same process, that followed: programs ask for both kinds of addresses.
    fn takes_in(&mut self, event: &Event) -> bool {
        let EventKind::Dns(query) = &event.kind else { return false };
        let is_same = self.protocol == "dns"
            && self.endpoint == query.name
            && self.verdict == query.verdict
            && self.process == query.process;
        if is_same {
            self.packets += query.count;
            self.below = Some("the name was asked for".to_owned());
        }
        is_same
    }
}

fn asked_for(query: &DnsEvent) -> String {
    format!("the name was asked for ({})", shown(&query.query_type, 20))
}

/// Whether an event is one of these pages: calls, and names that were not allowed. An allowed name is followed by its calls.
fn is_shown(event: &Event) -> bool {
    match &event.kind {
        EventKind::Network(_) => true,
        EventKind::Dns(query) => query.verdict != Verdict::Allowed,
        _ => false,
    }
}

/// Events as rows, in their order.
fn calls(events: &[Event], new: &BTreeSet<String>) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for event in events.iter().filter(|event| is_shown(event)) {
        if calls.last_mut().is_some_and(|last| last.takes_in(event)) {
            continue;
        }
        match &event.kind {
            EventKind::Network(network) => calls.push(Call::of_network(event, network, new)),
            EventKind::Dns(query) => calls.push(Call::of_query(event, query)),
            _ => {}
        }
    }
    calls
}

#[derive(Debug, Template)]
#[template(path = "job_network.html")]
struct Network {
    layout: Layout,
    head: Head,
    rows: String,
    query: Fields,
    download: String,
    is_empty: bool,
}

#[derive(Debug, Template)]
#[template(path = "job_network_rows.html")]
struct Rows {
    job: JobRecord,
    calls: Vec<Call>,
    /// Where the next page is.
    next: Option<String>,
    /// Where what comes later will be, while the job runs.
    live: Option<String>,
    may_edit: bool,
    is_first: bool,
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

/// What of a page's parameters are filters of calls.
fn filtered(page: &Page, job: &JobRecord) -> Path {
    let mut asked = path(&["jobs", &job.id, "network-events"]).with("dns", "true");
    for name in ["status", "endpoint", "process", "step"] {
        asked = asked.with_some(name, page.query(name));
    }
    asked
}

async fn network(page: Page) -> PageResult {
    let job = read(&page).await?;
    let is_running = job.state == "running";
    let cursor = page.query("cursor");
    let asked = filtered(&page, &job).with("limit", ROWS).with_some("cursor", cursor);
    let found: store_api::Page<Event> = page.api.get(&asked).await?;
    let new = new_endpoints(&page, &job).await?;
    let here = format!("/jobs/{}", crate::dashboard::api_client::segment(&job.id));
    let query = page.open.query.query_without(&["cursor", "done", "live"]);
    // Behind the last event that is there, or where the page before ended.
    let last = found.items.last().map(|event| event.seq.to_string());
    let behind = last.or_else(|| cursor.map(str::to_owned)).unwrap_or_else(|| "0".to_owned());
    let next = found.next_cursor.map(|cursor| format!("{here}?{query}&cursor={cursor}"));
    let live =
        (is_running && next.is_none()).then(|| format!("{here}?{query}&live=true&cursor={behind}"));
    let calls = calls(&found.items, &new);
    let rows = Rows {
        job: job.clone(),
        calls,
        next,
        live,
        may_edit: page.may(Role::Editor),
        is_first: cursor.is_none(),
    };
    if page.is_part {
        return render(&rows);
    }
    let is_empty =
        rows.calls.is_empty() && rows.next.is_none() && query.is_empty() && cursor.is_none();
    render(&Network {
        layout: page.layout(title(&job), Section::Runs),
        head: Head::new(job, Tab::Network),
        rows: rows.render()?,
        download: query,
        query: page.open.query.clone(),
        is_empty,
    })
}

/// Endpoints of the job that its baseline did not know.
async fn new_endpoints(page: &Page, job: &JobRecord) -> Result<BTreeSet<String>, PageError> {
    if job.detections == 0 {
        return Ok(BTreeSet::new());
    }
    let asked =
        path(&["detections"]).with("job", &job.id).with("type", NEW_CALL).with("limit", "1000");
    let found: store_api::Page<DetectionRecord> = page.api.get(&asked).await?;
    Ok(found.items.into_iter().filter_map(|detection| detection.endpoint).collect())
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

async fn timeline(page: Page) -> PageResult {
    let found: Timeline = page.api.get(&path(&["jobs", page.param("id"), "timeline"])).await?;
    let values = |of: fn(&store_api::TimelinePart) -> u64| found.parts.iter().map(of).collect();
    let chart = Chart {
        times: found.parts.iter().map(|part| part.time.as_second()).collect(),
        series: vec![
            Series { name: "Blocked", colour: "bad", values: values(|part| part.blocked) },
            Series {
                name: "Would be blocked",
                colour: "warn",
                values: values(|part| part.would_block),
            },
            Series { name: "Allowed", colour: "good", values: values(|part| part.allowed) },
        ],
    };
    Ok(axum::Json(chart).into_response())
}

/// All calls that the filters leave, page by page.
async fn all_calls(page: &Page) -> Result<(JobRecord, Vec<Event>), PageError> {
    let job = read(page).await?;
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let asked =
            filtered(page, &job).with("limit", "1000").with_some("cursor", cursor.as_deref());
        let found: store_api::Page<Event> = page.api.get(&asked).await?;
        all.extend(found.items.into_iter().filter(is_shown));
        if all.len() >= MAX_DOWNLOAD {
            return Err(crate::api::ApiError::bad_request(format!(
                "there are more than {MAX_DOWNLOAD} calls"
            ))
            .hint("filter them, or read them in pages from the API: GET /api/v1/jobs/{id}/network-events")
            .into());
        }
        match found.next_cursor {
            Some(next) => cursor = Some(next),
            None => return Ok((job, all)),
        }
    }
}

async fn lines(page: Page) -> PageResult {
    let (job, events) = all_calls(&page).await?;
    let mut text = String::new();
    for event in &events {
        text += &serde_json::to_string(event)
            .map_err(|error| PageError::internal(error.to_string()))?;
        text.push('\n');
    }
    Ok(download(&format!("{}-network.ndjson", job.id), "application/x-ndjson", text))
}

async fn csv(page: Page) -> PageResult {
    let (job, events) = all_calls(&page).await?;
    let mut text = String::from(
        "seq,time,status,endpoint,address,port,protocol,process,command,step,policy,version,rule,packets,bytes\r\n",
    );
    for event in &events {
        let (call, address, bytes) = match &event.kind {
            EventKind::Network(network) => (
                Call::of_network(event, network, &BTreeSet::new()),
                network.address.to_string(),
                network.bytes,
            ),
            EventKind::Dns(query) => (Call::of_query(event, query), String::new(), None),
            _ => continue,
        };
        let process = call.process.unwrap_or_default();
        let verdict = match call.verdict {
            Verdict::Allowed => "allowed",
            Verdict::Blocked => "blocked",
            Verdict::WouldBlock => "would-block",
        };
        let cells = [
            event.seq.to_string(),
            event.time.to_string(),
            verdict.to_owned(),
            call.endpoint,
            address,
            call.port.map(|port| port.to_string()).unwrap_or_default(),
            call.protocol,
            process.exe.unwrap_or_default(),
            process.argv.join(" "),
            process.step.unwrap_or_default(),
            call.policy.name,
            call.policy.version,
            call.rule,
            call.packets.to_string(),
            bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
        ];
        text += &cells.iter().map(|value| cell(value)).collect::<Vec<_>>().join(",");
        text += "\r\n";
    }
    Ok(download(&format!("{}-network.csv", job.id), "text/csv; charset=utf-8", text))
}

/// A cell of CSV (RFC 4180). What a spreadsheet would take for a formula gets an apostrophe: jobs choose these texts.
fn cell(value: &str) -> String {
    let value = shown(value, 4096);
    let guard = if value.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    format!("\"{guard}{}\"", value.replace('"', "\"\""))
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

#[cfg(test)]
mod tests {
    use super::{calls, cell};
    use portcullis_common::event::Event;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn names_that_were_refused_are_rows_and_asked_once() {
        let event = |seq: u64, name: &str, verdict: &str, kind: &str| -> Event {
            serde_json::from_value(json!({
                "job_id": "j", "seq": seq, "time": "2026-11-22T00:00:00Z", "type": "dns", "verdict": verdict, "name": name,
                "query_type": kind, "rule": "no endpoint allows it", "response_code": "NXDOMAIN", "count": 1,
                "process": { "pid": 7, "exe": "/usr/bin/curl" }, "policy": { "name": "p", "version": "1", "scope": "cluster" },
            }))
            .unwrap()
        };
        let events = [
            event(1, "good.test", "allowed", "A"),
            event(2, "bad.test", "blocked", "A"),
            event(3, "bad.test", "blocked", "AAAA"),
            event(4, "other.test", "blocked", "A"),
        ];
        let rows = calls(&events, &BTreeSet::new());
        let told: Vec<_> =
            rows.iter().map(|row| (row.seq, row.endpoint.as_str(), row.packets)).collect();
        assert_eq!(told, [(2, "bad.test", 2), (4, "other.test", 1)]);
        assert_eq!(rows[0].below.as_deref(), Some("the name was asked for"));
    }

    #[test]
    fn a_cell_is_no_formula_and_one_line() {
        assert_eq!(cell("=HYPERLINK(\"x\")"), "\"'=HYPERLINK(\"\"x\"\")\"");
        assert_eq!(cell("a,b\r\nc"), "\"a,b\\r\\nc\"");
        assert_eq!(cell("@SUM(1)"), "\"'@SUM(1)\"");
        assert_eq!(cell("github.com:443"), "\"github.com:443\"");
    }
}
