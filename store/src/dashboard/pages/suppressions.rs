//! Which detections are known and accepted; and what became of one.

use crate::api::ApiError;
use crate::dashboard::api_client::{path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::html::Html;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render, render_with, see_other};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use axum::http::Method;
use portcullis_common::policy::Attachment;
use portcullis_common::resolution::ScopeKind;
use portcullis_common::store_api::{
    self, DetectionRecord, Role, Suppression, SuppressionPreview, WriteDetectionState,
    WriteSuppression,
};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/suppressions", Role::Viewer, list);
    pages.post("/suppressions/{id}/delete", Role::Editor, delete);
    pages.get("/detections/{id}/suppress", Role::Editor, form);
    pages.post("/detections/{id}/suppress", Role::Editor, suppress);
    pages.post("/detections/{id}/state", Role::Editor, set_state);
}

/// The longest time that a rule is made for here, in days.
const MAX_DAYS: u32 = 3650;

#[derive(Debug, Template)]
#[template(path = "suppressions.html")]
struct List {
    layout: Layout,
    suppressions: Vec<Suppression>,
    may_edit: bool,
}

#[derive(Debug, Template)]
#[template(path = "suppress.html")]
struct Suppress {
    layout: Layout,
    detection: DetectionRecord,
    fields: Fields,
    preview: Option<SuppressionPreview>,
    alert: Option<Html>,
}

async fn list(page: Page) -> PageResult {
    let found: store_api::Page<Suppression> = page.api.get(&path(&["suppressions"])).await?;
    render(&List {
        layout: page.layout("Suppressions", Section::Detections),
        suppressions: found.items,
        may_edit: page.may(Role::Editor),
    })
}

async fn delete(page: Page, _: Fields) -> PageResult {
    page.api.delete(&path(&["suppressions", page.param("id")])).await?;
    see_other("/suppressions?done=unsuppressed")
}

/// The rule that a form describes.
fn rule(detection: &DetectionRecord, form: &Fields) -> Result<WriteSuppression, PageError> {
    let kind = match form.text("scope") {
        "repository" => Some((ScopeKind::Repository, detection.repository.clone())),
        "workflow" => Some((ScopeKind::Workflow, detection.workflow.clone())),
        "organization" => {
            let owner = detection.repository.split('/').next().unwrap_or_default();
            Some((ScopeKind::Organization, owner.to_owned()))
        }
        _ => None,
    };
    let scope = kind
        .map(|(kind, target)| Attachment::new(kind, &target))
        .transpose()
        .map_err(|error| ApiError::bad_request(error.to_string()).hint(error.hint))?;
    let days: Option<u32> = match form.get("days") {
        None => None,
        Some(text) => Some(
            text.parse()
                .ok()
                .filter(|days| (1..=MAX_DAYS).contains(days))
                .ok_or_else(|| ApiError::bad_request("a suppression lasts for 1 to 3650 days"))?,
        ),
    };
    Ok(WriteSuppression {
        kind: detection.kind.clone(),
        scope,
        endpoint: form.get("endpoint").map(str::to_owned),
        process: form.get("process").map(str::to_owned),
        expires_in_seconds: days.map(|days| days * 86_400),
        reason: form.text("reason").to_owned(),
    })
}

/// What the form begins with: as narrow as the detection allows.
fn defaults(detection: &DetectionRecord) -> Fields {
    let mut pairs = url::form_urlencoded::Serializer::new(String::new());
    pairs.append_pair("scope", "repository").append_pair("days", "30");
    if let Some(endpoint) = &detection.endpoint {
        pairs.append_pair("endpoint", endpoint);
    }
    if let Some(process) = &detection.process {
        pairs.append_pair("process", process);
    }
    Fields::read(pairs.finish().as_bytes())
}

async fn shown(
    page: &Page,
    detection: DetectionRecord,
    fields: Fields,
    error: Option<&PageError>,
) -> Result<Suppress, PageError> {
    let asked = path(&["suppressions:preview"]);
    let mut told = error.map(|error| alert(error.problem())).transpose()?;
    let mut preview = None;
    match rule(&detection, &fields) {
        Ok(rule) => {
            // What is shown is what would be suppressed, whatever the reason is going to be.
            let rule = WriteSuppression { reason: "preview".to_owned(), ..rule };
            match page.api.send_json(Method::POST, &asked, &rule).await {
                Ok(found) => preview = Some(found),
                Err(error) if told.is_none() => told = Some(alert(error.problem())?),
                Err(_) => {}
            }
        }
        Err(error) if told.is_none() => told = Some(alert(error.problem())?),
        Err(_) => {}
    }
    let layout = page.layout("Suppress", Section::Detections);
    Ok(Suppress { layout, detection, fields, preview, alert: told })
}

async fn form(page: Page) -> PageResult {
    let detection = super::detections::read(&page).await?;
    let is_changed = page.query("scope").is_some();
    let fields = if is_changed { page.open.query.clone() } else { defaults(&detection) };
    render(&shown(&page, detection, fields, None).await?)
}

async fn suppress(page: Page, form: Fields) -> PageResult {
    let detection = super::detections::read(&page).await?;
    let result = match rule(&detection, &form) {
        Ok(rule) => {
            let asked = path(&["suppressions"]);
            page.api.send_json::<Suppression>(Method::POST, &asked, &rule).await
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(_) => see_other(&format!("/detections/{}?done=suppressed", segment(&detection.id))),
        Err(error) => {
            let shown = shown(&page, detection, form, Some(&error)).await?;
            render_with(error.problem().status, &shown)
        }
    }
}

async fn set_state(page: Page, form: Fields) -> PageResult {
    let id = page.param("id");
    let body = WriteDetectionState {
        state: form.text("state").to_owned(),
        comment: form.get("comment").map(str::to_owned),
    };
    let asked = path(&["detections", id, "state"]);
    let _: DetectionRecord = page.api.send_json(Method::PUT, &asked, &body).await?;
    let done = if body.state == "resolved" { "resolved" } else { "reopened" };
    see_other(&format!("/detections/{}?done={done}", segment(id)))
}
