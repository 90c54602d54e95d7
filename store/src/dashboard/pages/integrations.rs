//! Who is told what happened: webhooks, Slack, object stores, collectors; and what became of telling them.

use crate::api::ApiError;
use crate::dashboard::api_client::{path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::html::Html;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render, render_with, see_other};
use crate::dashboard::{Pages, filters};
use askama::Template;
use axum::http::Method;
use portcullis_common::policy::Attachment;
use portcullis_common::store_api::{
    self, Delivery, DeliveryState, Integration, MessageFormat, Role, Secret, Selection, Target,
    WriteIntegration, WriteTarget,
};
use serde_json::json;
use std::collections::BTreeMap;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/integrations", Role::Admin, list);
    pages.get("/integrations/new", Role::Admin, new);
    pages.post("/integrations/new", Role::Admin, create);
    pages.get("/integrations/{id}", Role::Admin, show);
    pages.post("/integrations/{id}", Role::Admin, change);
    pages.post("/integrations/{id}/test", Role::Admin, test);
    pages.post("/integrations/{id}/delete", Role::Admin, delete);
    pages.post("/integrations/{id}/retry", Role::Admin, retry);
}

#[derive(Debug, Template)]
#[template(path = "integrations.html")]
struct Integrations {
    layout: Layout,
    integrations: Vec<Integration>,
}

#[derive(Debug, Template)]
#[template(path = "integration.html")]
struct Show {
    layout: Layout,
    integration: Integration,
    fields: Fields,
    kind: String,
    deliveries: Vec<Delivery>,
    alert: Option<Html>,
}

#[derive(Debug, Template)]
#[template(path = "integration_new.html")]
struct New {
    layout: Layout,
    fields: Fields,
    kind: String,
    alert: Option<Html>,
}

/// The kind of a target, as a parameter.
pub(super) const fn kind(target: &Target) -> &'static str {
    match target {
        Target::Webhook { .. } => "webhook",
        Target::Slack { .. } => "slack",
        Target::S3 { .. } => "s3",
        Target::Otlp { .. } => "otlp",
    }
}

/// Where a target is, in words.
pub(super) fn place(target: &Target) -> String {
    match target {
        Target::Webhook { origin, .. } | Target::Slack { origin } | Target::Otlp { origin, .. } => {
            origin.clone()
        }
        Target::S3 { bucket, endpoint, .. } => match endpoint {
            Some(endpoint) => format!("{bucket} at {endpoint}"),
            None => bucket.clone(),
        },
    }
}

/// `Name: value`, one a line.
fn headers(text: Option<&str>) -> Result<Option<BTreeMap<String, Secret>>, PageError> {
    let Some(text) = text else { return Ok(None) };
    let read = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| {
            ApiError::bad_request("a header is no `Name: value`").hint("write one a line")
        })?;
        Ok((name.trim().to_owned(), Secret::new(value.trim().to_owned())))
    };
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(read)
        .collect::<Result<_, PageError>>()
        .map(Some)
}

/// `repository octo/hello`, one a line.
fn scopes(text: &str) -> Result<Vec<Attachment>, PageError> {
    let read = |line: &str| {
        let (scope, target) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        serde_json::from_value(json!({ scope: target.trim() })).map_err(|error| {
            ApiError::bad_request(format!("`{line}` is no scope: {error}")).hint(
                "write a cluster, organization, repository or workflow and its name, such as `repository octo/hello`, one a line",
            )
        })
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(read).collect::<Result<_, _>>()?)
}

/// The integration that a form describes. Secrets that are left empty stay as they are.
fn written(form: &Fields) -> Result<WriteIntegration, PageError> {
    let secret = |name: &str| form.get(name).map(|text| Secret::new(text.to_owned()));
    let format =
        if form.text("format") == "ocsf" { MessageFormat::Ocsf } else { MessageFormat::Portcullis };
    let target = match form.text("kind") {
        "slack" => WriteTarget::Slack { url: secret("url") },
        "s3" => WriteTarget::S3 {
            bucket: form.text("bucket").to_owned(),
            region: form.text("region").to_owned(),
            endpoint: form.get("endpoint").map(str::to_owned),
            prefix: form.text("prefix").to_owned(),
            access_key_id: form.text("access_key_id").to_owned(),
            secret_access_key: secret("secret_access_key"),
            events: form.is_set("events"),
            format,
        },
        "otlp" => WriteTarget::Otlp { url: secret("url"), headers: headers(form.get("headers"))? },
        _ => WriteTarget::Webhook {
            url: secret("url"),
            secret: secret("secret"),
            headers: headers(form.get("headers"))?,
            format,
        },
    };
    let types = form.text("types").split([' ', ',']).filter(|text| !text.is_empty());
    Ok(WriteIntegration {
        name: form.text("name").to_owned(),
        target,
        selection: Selection {
            detections: form.is_set("detections"),
            detection_types: types.map(str::to_owned).collect(),
            lockdown_only: form.is_set("lockdown_only"),
            blocked_calls: form.is_set("blocked_calls"),
            would_block_calls: form.is_set("would_block_calls"),
            scopes: scopes(form.text("scopes"))?,
        },
        enabled: form.is_set("enabled"),
    })
}

/// The form of an integration as it is.
fn fields(integration: &Integration) -> Fields {
    let mut pairs = url::form_urlencoded::Serializer::new(String::new());
    let selection = &integration.selection;
    pairs
        .append_pair("kind", kind(&integration.target))
        .append_pair("name", &integration.name)
        .append_pair("types", &selection.detection_types.join(" "))
        .append_pair(
            "scopes",
            &selection.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        );
    for (name, is_set) in [
        ("detections", selection.detections),
        ("lockdown_only", selection.lockdown_only),
        ("blocked_calls", selection.blocked_calls),
        ("would_block_calls", selection.would_block_calls),
        ("enabled", integration.enabled),
    ] {
        if is_set {
            pairs.append_pair(name, "true");
        }
    }
    if let Target::Webhook { format: MessageFormat::Ocsf, .. }
    | Target::S3 { format: MessageFormat::Ocsf, .. } = &integration.target
    {
        pairs.append_pair("format", "ocsf");
    }
    if let Target::S3 { bucket, region, endpoint, prefix, access_key_id, events, .. } =
        &integration.target
    {
        pairs
            .append_pair("bucket", bucket)
            .append_pair("region", region)
            .append_pair("endpoint", endpoint.as_deref().unwrap_or_default())
            .append_pair("prefix", prefix)
            .append_pair("access_key_id", access_key_id);
        if *events {
            pairs.append_pair("events", "true");
        }
    }
    Fields::read(pairs.finish().as_bytes())
}

async fn list(page: Page) -> PageResult {
    let found: store_api::Page<Integration> = page.api.get(&path(&["integrations"])).await?;
    let layout = page.layout("Integrations", Section::Integrations);
    render(&Integrations { layout, integrations: found.items })
}

async fn new(page: Page) -> PageResult {
    let kinds = ["slack", "s3", "otlp"];
    let kind = page.query("kind").filter(|kind| kinds.contains(kind)).unwrap_or("webhook");
    render(&New {
        layout: page.layout("New integration", Section::Integrations),
        fields: Fields::read(b"detections=true&enabled=true"),
        kind: kind.to_owned(),
        alert: None,
    })
}

async fn create(page: Page, form: Fields) -> PageResult {
    let result = match written(&form) {
        Ok(written) => {
            let asked = path(&["integrations"]);
            page.api.send_json::<Integration>(Method::POST, &asked, &written).await
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(made) => {
            see_other(&format!("/integrations/{}?done=integration-saved", segment(&made.id)))
        }
        Err(error) => render_with(
            error.problem().status,
            &New {
                layout: page.layout("New integration", Section::Integrations),
                kind: form.text("kind").to_owned(),
                fields: form,
                alert: Some(alert(error.problem())?),
            },
        ),
    }
}

async fn read(page: &Page) -> Result<Integration, PageError> {
    page.api.get(&path(&["integrations", page.param("id")])).await
}

async fn shown(page: &Page, form: Option<Fields>, alert: Option<Html>) -> Result<Show, PageError> {
    let integration = read(page).await?;
    let asked = path(&["integrations", &integration.id, "deliveries"]).with("limit", "30");
    let deliveries: store_api::Page<Delivery> = page.api.get(&asked).await?;
    let title = portcullis_common::text::shown(&integration.name, 100);
    Ok(Show {
        layout: page.layout(title, Section::Integrations),
        fields: form.unwrap_or_else(|| fields(&integration)),
        kind: kind(&integration.target).to_owned(),
        deliveries: deliveries.items,
        integration,
        alert,
    })
}

async fn show(page: Page) -> PageResult {
    render(&shown(&page, None, None).await?)
}

async fn change(page: Page, form: Fields) -> PageResult {
    let id = page.param("id");
    let asked = path(&["integrations", id]);
    let result = match written(&form) {
        Ok(written) => page.api.send_json::<Integration>(Method::PUT, &asked, &written).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(_) => see_other(&format!("/integrations/{}?done=integration-saved", segment(id))),
        Err(error) => {
            let told = alert(error.problem())?;
            render_with(error.problem().status, &shown(&page, Some(form), Some(told)).await?)
        }
    }
}

async fn test(page: Page, _: Fields) -> PageResult {
    let id = page.param("id");
    let asked = path(&["integrations", id, "test"]);
    let delivery: Delivery = page.api.post(&asked).await?;
    let done =
        if delivery.state == DeliveryState::Delivered { "test-delivered" } else { "test-failed" };
    see_other(&format!("/integrations/{}?done={done}#deliveries", segment(id)))
}

async fn retry(page: Page, form: Fields) -> PageResult {
    let _: Option<serde_json::Value> =
        page.api.post(&path(&["deliveries", form.text("delivery"), "retry"])).await?;
    see_other(&format!("/integrations/{}?done=retried#deliveries", segment(page.param("id"))))
}

async fn delete(page: Page, _: Fields) -> PageResult {
    page.api.delete(&path(&["integrations", page.param("id")])).await?;
    see_other("/integrations?done=integration-deleted")
}

#[cfg(test)]
mod tests {
    use super::{fields, headers, written};
    use crate::dashboard::fields::Fields;
    use portcullis_common::store_api::{Integration, WriteTarget};
    use serde_json::json;

    #[test]
    fn headers_are_read_line_by_line() {
        let read = headers(Some("X-One: a\n\n X-Two:b: c ")).unwrap().unwrap();
        assert_eq!(read["X-Two"].expose(), "b: c");
        assert_eq!(read.len(), 2);
        assert!(headers(Some("nonsense")).is_err());
        assert!(headers(None).unwrap().is_none());
    }

    #[test]
    fn a_secret_that_is_left_empty_stays() {
        let form = Fields::read(b"kind=webhook&name=x&url=&secret=&enabled=true");
        let WriteTarget::Webhook { url, secret, .. } = written(&form).unwrap().target else {
            panic!()
        };
        assert!(url.is_none() && secret.is_none());
    }

    #[test]
    fn what_is_selected_survives_the_form() {
        let selection = json!({
            "detections": true,
            "detection_types": ["Reverse-Shell"],
            "blocked_calls": true,
            "scopes": [{ "repository": "octo/hello" }, { "organization": "octo" }],
        });
        let integration: Integration = serde_json::from_value(json!({
            "id": "1",
            "name": "x",
            "target": { "kind": "slack", "origin": "https://hooks.example.com" },
            "selection": selection,
            "enabled": true,
            "pending": 0,
            "dead": 0,
            "created_by": "ada",
            "created_at": "2026-11-01T00:00:00Z",
            "updated_at": "2026-11-01T00:00:00Z",
        }))
        .unwrap();
        let again = written(&fields(&integration)).unwrap();
        assert_eq!(again.selection, integration.selection);
        assert_eq!(again.selection.scopes.len(), 2);
    }

    #[test]
    fn a_scope_that_is_none_is_refused() {
        for text in ["repository", "repository+hello", "octo%2Fhello", "default+x"] {
            let form = Fields::read(format!("kind=slack&name=x&scopes={text}").as_bytes());
            assert!(written(&form).is_err(), "{text}");
        }
    }
}
