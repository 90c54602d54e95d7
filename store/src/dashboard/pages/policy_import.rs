//! Endpoints of a baseline or a list, into a policy: looked at first, then added.

use super::policy::Tab;
use crate::dashboard::api_client::{path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::html::{self, Html};
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render, render_with, see_other};
use crate::dashboard::{Pages, filters};
use askama::Template;
use axum::http::Method;
use portcullis_common::store_api::{ImportEndpoints, ImportedEndpoints, PolicySummary, Role};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/policies/{name}/import", Role::Editor, form);
    pages.post("/policies/{name}/import", Role::Editor, import);
}

#[derive(Debug, Template)]
#[template(path = "policy_import.html")]
struct Import {
    layout: Layout,
    policy: PolicySummary,
    tab: Tab,
    fields: Fields,
    preview: Option<ImportedEndpoints>,
    alert: Option<Html>,
}

async fn shown(
    page: &Page,
    fields: Fields,
    preview: Option<ImportedEndpoints>,
    alert: Option<Html>,
) -> Result<Import, PageError> {
    let policy = super::policy::read(page).await?.summary;
    let layout = page.layout(format!("Import into {}", policy.name), Section::Policies);
    Ok(Import { layout, policy, tab: Tab::Import, fields, preview, alert })
}

async fn form(page: Page) -> PageResult {
    let fields = page.open.query.clone();
    render(&shown(&page, fields, None, None).await?)
}

fn request(form: &Fields, dry_run: bool) -> Result<ImportEndpoints, PageError> {
    let mut request = ImportEndpoints {
        dry_run,
        comment: form.get("comment").map(str::to_owned),
        ..ImportEndpoints::default()
    };
    if form.text("source") == "list" {
        // One a line; what stands behind a `#` is a comment.
        let lines = form.raw("endpoints").unwrap_or_default().lines();
        let texts = lines.filter_map(|line| line.split('#').next());
        request.endpoints = texts.flat_map(str::split_whitespace).map(str::to_owned).collect();
    } else {
        request.baseline = Some(super::baselines::source(form)?);
        request.min_runs = form.number("min_runs");
    }
    Ok(request)
}

async fn import(page: Page, form: Fields) -> PageResult {
    let name = page.param("name").to_owned();
    let is_preview = form.text("step") != "apply";
    let asked = path(&["policies", &name, "import-endpoints"]);
    let result: Result<ImportedEndpoints, PageError> = match request(&form, is_preview) {
        Err(error) => Err(error),
        Ok(request) if is_preview => page.api.send_json(Method::POST, &asked, &request).await,
        Ok(request) => {
            let version = form.number("version").unwrap_or_default();
            page.api.send_json_if(&asked, version, &request).await
        }
    };
    match result {
        Ok(preview) if is_preview => render(&shown(&page, form, Some(preview), None).await?),
        Ok(_) => see_other(&format!("/policies/{}?done=imported", segment(&name))),
        Err(error) => {
            let told = alert(error.problem())?;
            render_with(error.problem().status, &shown(&page, form, None, Some(told)).await?)
        }
    }
}
