//! All policies.

use crate::dashboard::Pages;
use crate::dashboard::api_client::path;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageResult, render};
use crate::dashboard::{filters, html};
use askama::Template;
use portcullis_common::store_api::{self, PolicyCounts, PolicySummary, Role};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/policies", Role::Viewer, list);
}

/// Rows of one page.
const ROWS: &str = "100";

#[derive(Debug, Template)]
#[template(path = "policies.html")]
struct Policies {
    layout: Layout,
    counts: PolicyCounts,
    rows: String,
    search: String,
    show: String,
    may_edit: bool,
}

#[derive(Debug, Template)]
#[template(path = "policies_rows.html")]
struct Rows {
    policies: Vec<PolicySummary>,
    /// Where the next page is.
    next: Option<String>,
    may_edit: bool,
}

async fn list(page: Page) -> PageResult {
    let (search, show) = (page.query("search"), page.query("show"));
    let (mode, attached) = match show {
        Some(mode @ ("block" | "audit")) => (Some(mode), None),
        Some("unattached") => (None, Some("false")),
        _ => (None, None),
    };
    let asked = path(&["policies"])
        .with("limit", ROWS)
        .with_some("search", search)
        .with_some("mode", mode)
        .with_some("attached", attached)
        .with_some("cursor", page.query("cursor"));
    let found: store_api::Page<PolicySummary> = page.api.get(&asked).await?;
    let may_edit = page.may(Role::Editor);
    let query = page.open.query.query_without(&["cursor", "done"]);
    let next = found.next_cursor.map(|cursor| format!("/policies?{query}&cursor={cursor}"));
    let rows = Rows { policies: found.items, next, may_edit };
    if page.is_part {
        return render(&rows);
    }
    let counts = page.api.get(&path(&["policies:count"])).await?;
    render(&Policies {
        layout: page.layout("Policies", Section::Policies),
        counts,
        rows: rows.render()?,
        search: search.unwrap_or_default().to_owned(),
        show: show.unwrap_or_default().to_owned(),
        may_edit,
    })
}
