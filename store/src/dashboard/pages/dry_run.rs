//! What a policy would have done to runs that were recorded.

use super::policy::Tab;
use crate::dashboard::api_client::path;
use crate::dashboard::fields::Fields;
use crate::dashboard::html::{self, Html};
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render};
use crate::dashboard::{Pages, filters};
use crate::service::now;
use askama::Template;
use axum::http::Method;
use portcullis_common::store_api::{DryRun, DryRunRequest, PolicySummary, Role};
use std::time::Duration;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/policies/{name}/dry-run", Role::Viewer, dry_run);
}

#[derive(Debug, Template)]
#[template(path = "dry_run.html")]
struct Trial {
    layout: Layout,
    policy: PolicySummary,
    tab: Tab,
    fields: Fields,
    outcome: Option<Result<DryRun, Html>>,
}

fn request(name: &str, query: &Fields) -> Result<DryRunRequest, PageError> {
    let days: Option<u64> = query.number("days");
    let runs_of = match query.get("source") {
        None | Some("attached") => None,
        Some(_) => Some(super::baselines::source(query)?),
    };
    Ok(DryRunRequest {
        policy: Some(name.to_owned()),
        runs_of,
        since: days.map(|days| now() - Duration::from_hours(24 * days.clamp(1, 3650))),
        ..DryRunRequest::default()
    })
}

async fn dry_run(page: Page) -> PageResult {
    let policy = super::policy::read(&page).await?.summary;
    let query = page.open.query.clone();
    let outcome = if query.get("source").is_some() {
        let asked = path(&["policies:dry-run"]);
        let result = match request(&policy.name, &query) {
            Ok(request) => page.api.send_json(Method::POST, &asked, &request).await,
            Err(error) => Err(error),
        };
        Some(match result {
            Ok(found) => Ok(found),
            Err(error) => Err(alert(error.problem())?),
        })
    } else {
        None
    };
    let layout = page.layout(format!("Dry run of {}", policy.name), Section::Policies);
    render(&Trial { layout, policy, tab: Tab::DryRun, fields: query, outcome })
}
