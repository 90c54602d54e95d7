//! The calls of a job: as rows that follow it while it runs, over time, and to take away.

use super::home::{Chart, Series};
use super::job::{Head, Tab, read, title};
use super::policy::download;
use crate::dashboard::api_client::{Path, path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use axum::response::IntoResponse as _;
use jiff::Timestamp;
use portcullis_common::event::{
    DnsEvent, Event, EventKind, NetworkEvent, PolicyReference, Process, Verdict,
};
use portcullis_common::report::endpoint;
use portcullis_common::store_api::{self, DetectionRecord, JobRecord, Role, Timeline};
use portcullis_common::text::shown;
use std::borrow::Borrow;
use std::collections::BTreeSet;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/jobs/{id}", Role::Viewer, network);
    pages.get("/jobs/{id}/timeline.json", Role::Viewer, timeline);
    pages.get("/jobs/{id}/network-events.csv", Role::Viewer, csv);
    pages.get("/jobs/{id}/network-events.ndjson", Role::Viewer, lines);
}

/// Rows of one page.
const ROWS: &str = "100";

/// Events of one download at most, so that a page can't hold the server's memory.
const MAX_DOWNLOAD: usize = 200_000;

/// The detection of a destination that a job never called before.
const NEW_CALL: &str = "New-Outbound-Network-Call";

/// What a page of rows is about, not which rows: what is not carried from one to the next.
const OF_ONE_PAGE: [&str; 4] = ["cursor", "done", "live", "until"];

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

/// Where an event of a job can be seen: the page that begins with it, at its row.
pub(super) fn address_of(job_id: &str, seq: impl Borrow<u64>) -> String {
    let seq = *seq.borrow();
    format!("/jobs/{}?cursor={}#event-{seq}", segment(job_id), seq.saturating_sub(1))
}

/// Which rows of a job are asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// Rows alone, to be put into a page.
    is_part: bool,
    /// What came since the last time.
    is_live: bool,
    is_running: bool,
    /// Behind which event they begin.
    cursor: Option<u64>,
    /// The last event that is not among the page's live rows.
    until: Option<u64>,
}

/// What stands behind rows.
#[derive(Debug, Default, Eq, PartialEq)]
struct Follows {
    /// Where the next page begins, and where it ends at the latest.
    more: Option<(u64, Option<u64>)>,
    /// Where what comes later begins, and whether that is there already.
    live: Option<(u64, bool)>,
}

impl Asked {
    fn of(page: &Page, job: &JobRecord) -> Self {
        let query = &page.open.query;
        Self {
            is_part: page.is_part,
            is_live: page.is_part && query.is_set("live"),
            is_running: job.state == "running",
            cursor: query.number("cursor"),
            until: query.number("until").filter(|_| page.is_part),
        }
    }

    /// What stands behind rows of which `last` is the last event and `next` where there are more. `stored`: how many events of
    /// the job were there before they were read.
    fn follows(self, last: Option<u64>, next: Option<u64>, stored: u64) -> Follows {
        let behind = last.or(self.cursor).unwrap_or_default();
        if self.is_live {
            // More came than one page holds: the rest is fetched at once, also when the job has ended meanwhile.
            let live = next.map(|next| (next, true));
            return Follows {
                more: None,
                live: live.or_else(|| self.is_running.then_some((behind, false))),
            };
        }
        if self.is_part && self.cursor.is_some() {
            let is_there_more = self.until.is_none_or(|until| behind < until);
            let more = next.filter(|_| is_there_more).map(|next| (next, self.until));
            return Follows { more, live: None };
        }
        match next {
            None => Follows { more: None, live: self.is_running.then_some((behind, false)) },
            Some(next) if self.is_running => {
                // What the job does from now on shows at once; what lies between can be had page by page.
                let until = stored.max(behind);
                Follows { more: Some((next, Some(until))), live: Some((until, false)) }
            }
            Some(next) => Follows { more: Some((next, None)), live: None },
        }
    }
}

/// Where what comes later will be, while the job runs.
#[derive(Debug)]
struct Live {
    address: String,
    /// As htmx says when.
    when: &'static str,
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
    /// Where the rows before these are, on a page that begins in the middle.
    before: Option<String>,
    /// Where the next page is.
    next: Option<String>,
    live: Option<Live>,
    may_edit: bool,
    is_first: bool,
}

/// What of a page's parameters are filters of calls.
fn filtered(page: &Page, job: &JobRecord) -> Path {
    let mut asked = path(&["jobs", &job.id, "network-events"]).with("dns", "true");
    // To be new is a status for people; for the API it is another question.
    asked = match page.query("status") {
        Some("new") => asked.with("new", "true"),
        status => asked.with_some("status", status),
    };
    for name in ["endpoint", "process", "step"] {
        asked = asked.with_some(name, page.query(name));
    }
    asked
}

async fn network(page: Page) -> PageResult {
    let job = read(&page).await?;
    let asked = Asked::of(&page, &job);
    let api = filtered(&page, &job).with("limit", ROWS).with_some("cursor", page.query("cursor"));
    let mut found: store_api::Page<Event> = page.api.get(&api).await?;
    if let Some(until) = asked.until {
        found.items.retain(|event| event.seq <= until);
    }
    let new = new_endpoints(&page, &job).await?;
    let last = found.items.last().map(|event| event.seq);
    let next = found.next_cursor.as_deref().and_then(|cursor| cursor.parse().ok());
    let follows = asked.follows(last, next, job.events);
    let here = format!("/jobs/{}", segment(&job.id));
    let query = page.open.query.query_without(&OF_ONE_PAGE);
    let rows = Rows {
        calls: calls(&found.items, &new),
        before: (!page.is_part && asked.cursor.is_some()).then(|| format!("{here}?{query}")),
        next: follows.more.map(|(cursor, until)| {
            let until = until.map(|until| format!("&until={until}")).unwrap_or_default();
            format!("{here}?{query}&cursor={cursor}{until}")
        }),
        live: follows.live.map(|(cursor, at_once)| Live {
            address: format!("{here}?{query}&live=true&cursor={cursor}"),
            when: if at_once { "load" } else { "every 2s" },
        }),
        may_edit: page.may(Role::Editor),
        is_first: asked.cursor.is_none(),
        job: job.clone(),
    };
    if page.is_part {
        return render(&rows);
    }
    let is_empty =
        rows.calls.is_empty() && rows.next.is_none() && query.is_empty() && asked.cursor.is_none();
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

async fn timeline(page: Page) -> PageResult {
    // Read before the calls: when it says that the job has ended, they are all there.
    let job = read(&page).await?;
    let found: Timeline = page.api.get(&path(&["jobs", &job.id, "timeline"])).await?;
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
        grows: job.state == "running",
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
    let new = new_endpoints(&page, &job).await?;
    let mut text = String::from(
        "seq,time,status,endpoint,address,port,protocol,process,command,step,policy,version,rule,packets,bytes,new\r\n",
    );
    for event in &events {
        let (call, address, bytes) = match &event.kind {
            EventKind::Network(network) => {
                (Call::of_network(event, network, &new), network.address.to_string(), network.bytes)
            }
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
            if call.is_new { "new" } else { "" }.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::{Asked, Follows, address_of, calls, cell};
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
    fn live_rows_begin_where_the_job_is_and_pages_end_there() {
        let first = Asked { is_running: true, ..Asked::default() };
        let live = |cursor, at_once| Follows { more: None, live: Some((cursor, at_once)) };
        assert_eq!(first.follows(None, None, 0), live(0, false));
        assert_eq!(first.follows(Some(7), None, 9), live(7, false));
        let middle = Follows { more: Some((100, Some(150))), live: Some((150, false)) };
        assert_eq!(first.follows(Some(100), Some(100), 150), middle);
        // The pages between end where the live rows began, also when filters left nothing of the last ones.
        let more = Asked { is_part: true, cursor: Some(100), until: Some(150), ..first };
        let next = |more| Follows { more, live: None };
        assert_eq!(more.follows(Some(140), Some(140), 999), next(Some((140, Some(150)))));
        assert_eq!(more.follows(Some(150), Some(200), 999), next(None));
        assert_eq!(more.follows(None, None, 999), next(None));
        // More than a page came at once, and the job may have ended meanwhile.
        let later = Asked { is_part: true, is_live: true, cursor: Some(150), ..first };
        assert_eq!(later.follows(Some(250), Some(250), 999), live(250, true));
        assert_eq!(later.follows(None, None, 999), live(150, false));
        let ended = Asked { is_running: false, ..later };
        assert_eq!(ended.follows(Some(250), Some(250), 999), live(250, true));
        assert_eq!(ended.follows(Some(260), None, 999), Follows::default());
        // A job that is over has pages alone.
        let over = Asked::default();
        assert_eq!(over.follows(Some(100), Some(100), 150), next(Some((100, None))));
        assert_eq!(over.follows(Some(50), None, 50), Follows::default());
    }

    #[test]
    fn a_call_has_an_address_of_its_own() {
        assert_eq!(address_of("a/b", 150), "/jobs/a%2Fb?cursor=149#event-150");
        assert_eq!(address_of("a", 0), "/jobs/a?cursor=0#event-0");
    }

    #[test]
    fn a_cell_is_no_formula_and_one_line() {
        assert_eq!(cell("=HYPERLINK(\"x\")"), "\"'=HYPERLINK(\"\"x\"\")\"");
        assert_eq!(cell("a,b\r\nc"), "\"a,b\\r\\nc\"");
        assert_eq!(cell("@SUM(1)"), "\"'@SUM(1)\"");
        assert_eq!(cell("github.com:443"), "\"github.com:443\"");
    }
}
