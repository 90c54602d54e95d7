//! The last day in one view.

use crate::dashboard::api_client::path;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use portcullis_common::event::{PostureLevel, Verdict};
use portcullis_common::store_api::{
    self, DetectionRecord, Host, HostState, PolicyCounts, Role, Run, Summary,
};
use serde::Serialize;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/", Role::Viewer, home);
}

/// A time series as the page's script draws it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Chart {
    /// Seconds since 1970.
    pub(super) times: Vec<i64>,
    /// What is stacked, from below.
    pub(super) series: Vec<Series>,
    /// Whether more is to come, so that it is asked for again.
    pub(super) grows: bool,
}

/// One series.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    /// What it is called.
    pub(super) name: &'static str,
    /// The colour's name.
    pub(super) colour: &'static str,
    /// Its values.
    pub(super) values: Vec<u64>,
}

impl Chart {
    /// As the figure's attribute has it.
    pub(super) fn json(&self) -> Result<String, PageError> {
        serde_json::to_string(self).map_err(|error| PageError::internal(error.to_string()))
    }
}

#[derive(Debug, Template)]
#[template(path = "home.html")]
struct Home {
    layout: Layout,
    summary: Summary,
    chart: String,
    runs: Vec<Run>,
    detections: Vec<DetectionRecord>,
    /// Hosts that are not fully enforced.
    weak_hosts: Vec<(String, HostState)>,
    hosts: usize,
    policies: u64,
}

async fn home(page: Page) -> PageResult {
    let summary: Summary = page.api.get(&path(&["summary"])).await?;
    let runs: store_api::Page<Run> = page.api.get(&path(&["runs"]).with("limit", "8")).await?;
    let detections: store_api::Page<DetectionRecord> =
        page.api.get(&path(&["detections"]).with("limit", "6")).await?;
    let counts: PolicyCounts = page.api.get(&path(&["policies:count"])).await?;
    let hosts: store_api::Page<Host> = page.api.get(&path(&["hosts"])).await?;
    let states: store_api::Page<HostState> = page.api.get(&path(&["hosts:state"])).await?;
    let active: Vec<Host> =
        hosts.items.into_iter().filter(|host| host.revoked_at.is_none()).collect();
    let weak_hosts = states
        .items
        .into_iter()
        .filter(|state| !matches!(state.level, PostureLevel::Enforced | PostureLevel::Audit))
        .filter_map(|state| {
            let host = active.iter().find(|host| host.id == state.host_id)?;
            Some((host.name.clone(), state))
        })
        .collect();
    let values = |of: fn(&store_api::SummaryHour) -> u64| summary.hours.iter().map(of).collect();
    let chart = Chart {
        times: summary.hours.iter().map(|hour| hour.time.as_second()).collect(),
        series: vec![
            Series { name: "Blocked", colour: "bad", values: values(|hour| hour.blocked) },
            Series {
                name: "Would be blocked",
                colour: "warn",
                values: values(|hour| hour.would_block),
            },
        ],
        grows: false,
    };
    render(&Home {
        layout: page.layout("Home", Section::Home),
        chart: chart.json()?,
        summary,
        runs: runs.items,
        detections: detections.items,
        weak_hosts,
        hosts: active.len(),
        policies: counts.total,
    })
}
