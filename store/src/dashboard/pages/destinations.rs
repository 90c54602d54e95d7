//! Where jobs called, over organizations, clusters and repositories.

use super::DAYS;
use crate::dashboard::api_client::path;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageResult, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use portcullis_common::store_api::{self, DestinationSummary, Role};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/destinations", Role::Viewer, list);
}

/// Rows of one page.
const ROWS: &str = "100";

#[derive(Debug, Template)]
#[template(path = "destinations.html")]
struct Destinations {
    layout: Layout,
    rows: String,
    status: String,
    endpoint: String,
    scope: String,
    target: String,
    days: String,
    is_empty: bool,
    is_filtered: bool,
}

#[derive(Debug, Template)]
#[template(path = "destinations_rows.html")]
struct Rows {
    destinations: Vec<DestinationSummary>,
    /// What the runs of a destination are filtered by beside it, as the rest of an address.
    within: String,
    next: Option<String>,
}

async fn list(page: Page) -> PageResult {
    let scopes = ["repository", "cluster", "workflow"];
    let scope =
        page.query("scope").filter(|scope| scopes.contains(scope)).unwrap_or("organization");
    let since = super::since(&page.open.query);
    let asked = path(&["destinations"])
        .with("limit", ROWS)
        .with_some("status", page.query("status"))
        .with_some("endpoint", page.query("endpoint"))
        .with_some(scope, page.query("target"))
        .with_some("since", since.as_deref())
        .with_some("cursor", page.query("cursor"));
    let found: store_api::Page<DestinationSummary> = page.api.get(&asked).await?;
    let query = page.open.query.query_without(&["cursor", "done"]);
    let next = found.next_cursor.map(|cursor| {
        let cursor: String = url::form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
        format!("/destinations?{query}&cursor={cursor}")
    });
    // The runs with a call there, of the same target.
    let within = page.query("target").map(|target| {
        let target: String = url::form_urlencoded::byte_serialize(target.as_bytes()).collect();
        format!("&{scope}={target}")
    });
    let rows = Rows { destinations: found.items, within: within.unwrap_or_default(), next };
    if page.is_part {
        return render(&rows);
    }
    let text = |name| page.query(name).unwrap_or_default().to_owned();
    render(&Destinations {
        layout: page.layout("Destinations", Section::Destinations),
        is_empty: rows.destinations.is_empty(),
        rows: rows.render()?,
        status: text("status"),
        endpoint: text("endpoint"),
        scope: scope.to_owned(),
        target: text("target"),
        days: text("days"),
        is_filtered: !query.is_empty(),
    })
}
