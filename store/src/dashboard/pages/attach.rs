//! What a policy is attached to: attaching, detaching, and what has a policy already.

use crate::api::ApiError;
use crate::dashboard::api_client::{path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::html::Html;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render, render_with, see_other};
use crate::dashboard::{Pages, filters};
use askama::Template;
use axum::http::Method;
use axum::response::IntoResponse as _;
use portcullis_common::policy::Attachment;
use portcullis_common::resolution::ScopeKind;
use portcullis_common::store_api::{self, PolicySummary, Role};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/policies/{name}/attach", Role::Editor, form);
    pages.post("/policies/{name}/attach", Role::Editor, attach);
    pages.get("/policies/{name}/attach/check", Role::Editor, check);
    pages.post("/policies/{name}/detach", Role::Editor, detach);
    pages.get("/targets", Role::Viewer, targets);
}

/// Kinds of target: as a parameter, in words, an example.
const KINDS: [(&str, &str, &str); 4] = [
    ("repository", "Repository", "octo/hello"),
    ("workflow", "Workflow", "octo/hello/.github/workflows/ci.yml"),
    ("organization", "Organization", "octo"),
    ("cluster", "Cluster", "prod-linux"),
];

#[derive(Debug, Template)]
#[template(path = "attach.html")]
struct Attach {
    layout: Layout,
    dialog: AttachForm,
}

/// The form, on a page of its own or in a dialog.
#[derive(Debug, Template)]
#[template(path = "attach_form.html")]
struct AttachForm {
    name: String,
    proof: String,
    kind: String,
    target: String,
    alert: Option<Html>,
    /// Another policy that the target has.
    taken_by: Option<String>,
    is_dialog: bool,
}

#[derive(Debug, Template)]
#[template(path = "attach_check.html")]
struct Check {
    taken_by: Option<String>,
    is_own: bool,
}

#[derive(Debug, Template)]
#[template(
    source = "{% for target in targets %}<option value=\"{{ target }}\"></option>{% endfor %}",
    ext = "html"
)]
struct Options {
    targets: Vec<String>,
}

/// The target of a form.
pub(super) fn target(form: &Fields) -> Result<Attachment, PageError> {
    let kind = match form.text("kind") {
        "cluster" => ScopeKind::Cluster,
        "organization" => ScopeKind::Organization,
        "repository" => ScopeKind::Repository,
        "workflow" => ScopeKind::Workflow,
        _ => return Err(ApiError::bad_request("choose what kind of target it is").into()),
    };
    Attachment::new(kind, form.text("target"))
        .map_err(|error| ApiError::bad_request(error.to_string()).hint(error.hint).into())
}

async fn form(page: Page) -> PageResult {
    let policy = super::policy::read(&page).await?;
    let query = &page.open.query;
    let form = AttachForm {
        name: policy.summary.name,
        proof: page.proof(),
        kind: query.get("kind").unwrap_or("repository").to_owned(),
        target: query.text("target").to_owned(),
        alert: None,
        taken_by: None,
        is_dialog: page.is_part,
    };
    if page.is_part {
        return render(&form);
    }
    let layout = page.layout(format!("Attach {}", form.name), Section::Policies);
    render(&Attach { layout, dialog: form })
}

async fn attach(page: Page, form: Fields) -> PageResult {
    let name = page.param("name");
    let result = async {
        let target = target(&form)?;
        let mut asked = path(&["policies", name, "attachments"]);
        if form.is_set("replace") {
            asked = asked.with("replace", "true");
        }
        page.api.send_json::<store_api::Page<Attachment>>(Method::POST, &asked, &target).await
    }
    .await;
    let Err(error) = result else {
        return see_other(&format!("/policies/{}?done=attached#attachments", segment(name)));
    };
    let taken_by = match target(&form) {
        Ok(target) => holder(&page, &target).await?.filter(|holder| holder != name),
        Err(_) => None,
    };
    let dialog = AttachForm {
        name: name.to_owned(),
        proof: page.proof(),
        kind: form.text("kind").to_owned(),
        target: form.text("target").to_owned(),
        alert: Some(alert(error.problem())?),
        taken_by,
        is_dialog: false,
    };
    let layout = page.layout(format!("Attach {name}"), Section::Policies);
    render_with(error.problem().status, &Attach { layout, dialog })
}

/// The policy that a target has.
async fn holder(page: &Page, target: &Attachment) -> Result<Option<String>, PageError> {
    let mut cursor = None;
    loop {
        let asked = path(&["policies"])
            .with("search", target.target())
            .with("attached", "true")
            .with_some("cursor", cursor.as_deref());
        let found: store_api::Page<PolicySummary> = page.api.get(&asked).await?;
        let holder = found.items.into_iter().find(|policy| policy.attachments.contains(target));
        match (holder, found.next_cursor) {
            (Some(policy), _) => return Ok(Some(policy.name)),
            (None, None) => return Ok(None),
            (None, next) => cursor = next,
        }
    }
}

/// Tells while one types that the target has a policy already.
async fn check(page: Page) -> PageResult {
    let holder = match target(&page.open.query) {
        Ok(target) => holder(&page, &target).await?,
        Err(_) => None,
    };
    let is_own = holder.as_deref() == Some(page.param("name"));
    render(&Check { taken_by: holder.filter(|_| !is_own), is_own })
}

async fn detach(page: Page, form: Fields) -> PageResult {
    let name = page.param("name");
    let target = target(&form)?;
    let kind = portcullis_common::policy::scope_name(target.scope());
    let asked = path(&["policies", name, "attachments"]).with(kind, target.target());
    page.api.delete(&asked).await?;
    see_other(&format!("/policies/{}?done=detached#attachments", segment(name)))
}

/// What runners have reported, as choices of a field.
async fn targets(page: Page) -> PageResult {
    let asked = path(&["targets"])
        .with("kind", page.query("kind").unwrap_or("repository"))
        .with_some("search", page.query("target").or_else(|| page.query("search")))
        .with("limit", "20");
    let found: store_api::Page<String> = page.api.get(&asked).await?;
    Ok(render(&Options { targets: found.items })?.into_response())
}
