//! The versions of a policy: what changed, and the way back.

use super::policy::Tab;
use crate::dashboard::api_client::{path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageResult, render, see_other};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use portcullis_common::store_api::{
    self, Policy, PolicyDiff, PolicySummary, PolicyVersion, RestorePolicy, Role,
};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/policies/{name}/history", Role::Viewer, history);
    pages.get("/policies/{name}/diff", Role::Viewer, diff);
    pages.post("/policies/{name}/restore", Role::Editor, restore);
}

#[derive(Debug, Template)]
#[template(path = "policy_history.html")]
struct History {
    layout: Layout,
    policy: PolicySummary,
    tab: Tab,
    versions: Vec<PolicyVersion>,
    next: Option<String>,
}

#[derive(Debug, Template)]
#[template(path = "policy_diff.html")]
struct Changes {
    layout: Layout,
    policy: PolicySummary,
    tab: Tab,
    diff: PolicyDiff,
    lines: Vec<Line>,
    may_edit: bool,
}

/// One line of a difference.
#[derive(Debug)]
pub(super) struct Line {
    /// How it is shown: `added`, `removed`, `place`, or nothing.
    pub(super) kind: &'static str,
    /// The text.
    pub(super) text: String,
}

/// The lines of a unified difference.
pub(super) fn lines(unified: &str) -> Vec<Line> {
    unified
        .lines()
        .map(|text| {
            let kind = match text.as_bytes().first() {
                _ if text.starts_with("+++") || text.starts_with("---") => "place",
                Some(b'+') => "added",
                Some(b'-') => "removed",
                Some(b'@') => "place",
                _ => "",
            };
            Line { kind, text: text.to_owned() }
        })
        .collect()
}

async fn history(page: Page) -> PageResult {
    let policy = super::policy::read(&page).await?.summary;
    let asked = path(&["policies", &policy.name, "versions"])
        .with("limit", "50")
        .with_some("cursor", page.query("cursor"));
    let found: store_api::Page<PolicyVersion> = page.api.get(&asked).await?;
    render(&History {
        layout: page.layout(format!("History of {}", policy.name), Section::Policies),
        next: found.next_cursor.map(|cursor| format!("?cursor={}", segment(&cursor))),
        versions: found.items,
        tab: Tab::History,
        policy,
    })
}

async fn diff(page: Page) -> PageResult {
    let policy = super::policy::read(&page).await?.summary;
    let asked = path(&["policies", &policy.name, "diff"])
        .with_some("from", page.query("from"))
        .with_some("to", page.query("to"));
    let diff: PolicyDiff = page.api.get(&asked).await?;
    render(&Changes {
        layout: page.layout(format!("Changes of {}", policy.name), Section::Policies),
        lines: lines(&diff.unified),
        diff,
        tab: Tab::History,
        may_edit: page.may(Role::Editor),
        policy,
    })
}

async fn restore(page: Page, form: Fields) -> PageResult {
    let name = page.param("name");
    let body = RestorePolicy {
        version: form.number("version").unwrap_or_default(),
        comment: form.get("comment").map(str::to_owned),
    };
    let seen = form.number("newest").unwrap_or_default();
    let asked = path(&["policies", name, "restore"]);
    let _: Policy = page.api.send_json_if(&asked, seen, &body).await?;
    see_other(&format!("/policies/{}?done=restored", segment(name)))
}
