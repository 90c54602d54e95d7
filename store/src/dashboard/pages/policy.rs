//! One policy: its document in an editor with a form beside it, what it is attached to, what a reviewer should know.

use crate::api::{ApiError, MAX_BODY_BYTES};
use crate::dashboard::api_client::{IfVersion, path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::html::Html;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render, render_with, see_other};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use portcullis_common::policy::PolicyDocument;
use portcullis_common::store_api::{
    self, LintFinding, Policy, PolicySummary, Problem, ProblemDetail, Role,
};
use serde::Serialize;

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/policies/new", Role::Editor, new);
    pages.post("/policies/new", Role::Editor, create);
    pages.post("/policies/check", Role::Viewer, check);
    pages.get("/policies.yaml", Role::Viewer, export_all);
    pages.get("/schemas/policy.json", Role::Viewer, schema);
    pages.get("/policies/{name}", Role::Viewer, show);
    pages.post("/policies/{name}", Role::Editor, save);
    pages.get("/policies/{name}/policy.yaml", Role::Viewer, export);
}

/// What a new policy begins with.
const TEMPLATE: &str = "name: my-policy
description: What it is for
egress-policy: audit
allowed-endpoints:
  - github.com:443
";

/// The tabs of a policy's pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tab {
    Document,
    History,
    Import,
    DryRun,
}

/// The document's editor.
#[derive(Debug)]
struct Editor {
    document: String,
    version: u64,
    comment: String,
    may_edit: bool,
    is_new: bool,
}

#[derive(Debug, Template)]
#[template(path = "policy.html")]
struct Show {
    layout: Layout,
    policy: PolicySummary,
    tab: Tab,
    editor: Editor,
    findings: Result<Vec<LintFinding>, Html>,
    alert: Option<Html>,
}

#[derive(Debug, Template)]
#[template(path = "policy_new.html")]
struct New {
    layout: Layout,
    editor: Editor,
    alert: Option<Html>,
}

/// A policy of the store.
pub(super) async fn read(page: &Page) -> Result<Policy, PageError> {
    page.api.get(&path(&["policies", page.param("name")])).await
}

/// A document as YAML, as the embedded store has it.
pub(super) fn yaml(document: &PolicyDocument) -> Result<String, PageError> {
    document.to_yaml().map_err(|error| PageError::internal(format!("a policy: {error}")))
}

async fn show(page: Page) -> PageResult {
    let policy = read(&page).await?;
    let document = yaml(&policy.document.0)?;
    let editor = Editor {
        version: policy.summary.version,
        document,
        comment: String::new(),
        may_edit: page.may(Role::Editor),
        is_new: false,
    };
    render(&shown(&page, policy.summary, editor, None).await?)
}

async fn shown(
    page: &Page,
    policy: PolicySummary,
    editor: Editor,
    alert: Option<Html>,
) -> Result<Show, PageError> {
    let asked = path(&["policies", &policy.name, "lint"]);
    let findings = match page.api.get::<store_api::Page<LintFinding>>(&asked).await {
        Ok(found) => Ok(found.items),
        Err(error) => Err(super::super::page::alert(error.problem())?),
    };
    let layout = page.layout(policy.name.clone(), Section::Policies);
    Ok(Show { layout, policy, tab: Tab::Document, editor, findings, alert })
}

async fn save(page: Page, form: Fields) -> PageResult {
    let name = page.param("name").to_owned();
    let document = form.raw("document").unwrap_or_default();
    let version: u64 = form.number("version").unwrap_or_default();
    let asked = path(&["policies", &name])
        .with("source", "policy.yaml")
        .with_some("comment", form.get("comment"));
    // The API writes a version whenever it is told to; a form that was sent as it came asks for none.
    let current = read(&page).await?;
    if current.summary.version == version && is_same(&yaml(&current.document.0)?, document) {
        return see_other(&format!("/policies/{}?done=unchanged", segment(&name)));
    }
    match page.api.put_yaml::<Policy>(&asked, IfVersion::Is(version), document).await {
        Ok(_) => see_other(&format!("/policies/{}?done=saved", segment(&name))),
        Err(error) => {
            let policy = read(&page).await?;
            let editor = Editor {
                document: document.to_owned(),
                // What was seen, not what is there now: a second try must not overwrite what was not read.
                version,
                comment: form.text("comment").to_owned(),
                may_edit: true,
                is_new: false,
            };
            let told = alert(error.problem())?;
            let shown = shown(&page, policy.summary, editor, Some(told)).await?;
            render_with(error.problem().status, &shown)
        }
    }
}

/// Whether two texts are the same but for how lines end: forms are sent with CR LF.
fn is_same(one: &str, other: &str) -> bool {
    one.trim_end().lines().eq(other.trim_end().lines())
}

async fn new(page: Page) -> PageResult {
    let document = match page.query("from") {
        None => TEMPLATE.to_owned(),
        Some(from) => {
            let policy: Policy = page.api.get(&path(&["policies", from])).await?;
            let mut document = policy.document.0;
            let name: String = format!("{}-copy", document.name).chars().take(63).collect();
            if let Ok(name) = name.parse() {
                document.name = name;
            }
            yaml(&document)?
        }
    };
    let editor =
        Editor { document, version: 0, comment: String::new(), may_edit: true, is_new: true };
    render(&New { layout: page.layout("New policy", Section::Policies), editor, alert: None })
}

async fn create(page: Page, form: Fields) -> PageResult {
    let document = form.raw("document").unwrap_or_default();
    match make(&page, document, form.get("comment")).await {
        Ok(name) => see_other(&format!("/policies/{}?done=created", segment(&name))),
        Err(error) => {
            let editor = Editor {
                document: document.to_owned(),
                version: 0,
                comment: form.text("comment").to_owned(),
                may_edit: true,
                is_new: true,
            };
            let layout = page.layout("New policy", Section::Policies);
            let told = Some(alert(error.problem())?);
            render_with(error.problem().status, &New { layout, editor, alert: told })
        }
    }
}

/// Writes a new policy, and returns its name, which stands in the document.
async fn make(page: &Page, document: &str, comment: Option<&str>) -> Result<String, PageError> {
    let asked = path(&["policies:validate"]).with("source", "policy.yaml");
    let names: store_api::Page<String> = page.api.post_yaml(&asked, document).await?;
    let [name] = names.items.as_slice() else {
        return Err(ApiError::bad_request("one policy is expected here")
            .hint("several at once are imported with `portcullis import`")
            .into());
    };
    let asked =
        path(&["policies", name]).with("source", "policy.yaml").with_some("comment", comment);
    match page.api.put_yaml::<Policy>(&asked, IfVersion::New, document).await {
        Ok(_) => Ok(name.clone()),
        Err(error) if error.problem().status == 412 => {
            Err(ApiError::conflict(format!("there is a policy named `{name}` already"))
                .hint("choose another name")
                .into())
        }
        Err(error) => Err(error),
    }
}

/// What is wrong with a document, for the editor.
#[derive(Debug, Serialize)]
struct Checked {
    problems: Vec<Mistake>,
}

/// One mistake.
#[derive(Debug, Serialize)]
struct Mistake {
    line: usize,
    column: usize,
    message: String,
    hint: String,
}

async fn check(page: Page, form: Fields) -> PageResult {
    let document = form.raw("document").unwrap_or_default();
    if document.len() > MAX_BODY_BYTES {
        return Err(ApiError::bad_request("the document is too large").into());
    }
    let asked = path(&["policies:validate"]).with("source", "policy.yaml");
    let problems = match page.api.post_yaml::<store_api::Page<String>>(&asked, document).await {
        Ok(_) => Vec::new(),
        Err(error) => mistakes(error.problem()),
    };
    Ok(axum::Json(Checked { problems }).into_response())
}

fn mistakes(problem: &Problem) -> Vec<Mistake> {
    if problem.errors.is_empty() {
        let hint = problem.hint.clone().unwrap_or_default();
        return vec![Mistake { line: 1, column: 1, message: problem.detail.clone(), hint }];
    }
    problem.errors.iter().map(mistake).collect()
}

/// A mistake with its place taken apart: `policy.yaml:3:5`.
fn mistake(error: &ProblemDetail) -> Mistake {
    let mut numbers = error.place.rsplit(':').map_while(|part| part.parse::<usize>().ok());
    let (last, before) = (numbers.next(), numbers.next());
    let (line, column) = (before.or(last).unwrap_or(1), before.and(last).unwrap_or(1));
    let message = match &error.key {
        Some(key) => format!("{key}: {}", error.message),
        None => error.message.clone(),
    };
    Mistake { line, column, message, hint: error.hint.clone() }
}

async fn schema(_: Page) -> PageResult {
    let found = portcullis_common::schema::all().into_iter().find(|schema| schema.name == "policy");
    match found {
        Some(schema) => Ok(axum::Json(schema.schema).into_response()),
        None => Err(PageError::internal("the schema of policies is missing")),
    }
}

/// A file to be kept.
pub(super) fn download(file: &str, content_type: &'static str, text: String) -> Response {
    let safe: String =
        file.chars()
            .map(|letter| {
                if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' }
            })
            .collect();
    let disposition = format!("attachment; filename=\"{safe}\"");
    ([(CONTENT_TYPE, content_type.to_owned()), (CONTENT_DISPOSITION, disposition)], text)
        .into_response()
}

async fn export(page: Page) -> PageResult {
    let name = page.param("name");
    let text = page.api.text(&path(&["policies", name]), "application/yaml").await?;
    Ok(download(&format!("{name}.yaml"), "application/yaml", text))
}

async fn export_all(page: Page) -> PageResult {
    let text = page.api.text(&path(&["policies:export"]), "application/yaml").await?;
    Ok(download("policies.yaml", "application/yaml", text))
}

#[cfg(test)]
mod tests {
    use super::mistake;
    use portcullis_common::store_api::ProblemDetail;

    #[test]
    fn places_are_taken_apart() {
        for (place, expected) in
            [("policy.yaml:3:5", (3, 5)), ("policy.yaml", (1, 1)), ("a:b:7:1", (7, 1))]
        {
            let found = mistake(&ProblemDetail { place: place.to_owned(), ..Default::default() });
            assert_eq!((found.line, found.column), expected, "{place}");
        }
    }
}
