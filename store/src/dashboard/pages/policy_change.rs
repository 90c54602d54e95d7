//! What changes a policy as a whole: another name, its end; and the endpoint that a job was kept from.

use super::policy_history::{Line, lines};
use crate::api::ApiError;
use crate::dashboard::api_client::{IfVersion, path, segment};
use crate::dashboard::fields::Fields;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, render, see_other};
use crate::dashboard::{Pages, filters};
use askama::Template;
use portcullis_common::endpoint::DnsName;
use portcullis_common::policy::{EndpointList, WrittenEndpoint};
use portcullis_common::store_api::{JobRecord, Policy, PolicySummary, RenamePolicy, Role};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/policies/{name}/delete", Role::Editor, ask_delete);
    pages.post("/policies/{name}/delete", Role::Editor, delete);
    pages.get("/policies/{name}/rename", Role::Editor, ask_rename);
    pages.post("/policies/{name}/rename", Role::Editor, rename);
    pages.get("/policies/{name}/add-endpoint", Role::Editor, ask_add);
    pages.post("/policies/{name}/add-endpoint", Role::Editor, add);
}

#[derive(Debug, Template)]
#[template(path = "policy_delete.html")]
struct Delete {
    layout: Layout,
    policy: PolicySummary,
}

#[derive(Debug, Template)]
#[template(path = "policy_rename.html")]
struct Rename {
    layout: Layout,
    policy: PolicySummary,
}

#[derive(Debug, Template)]
#[template(path = "policy_add.html")]
struct Add {
    layout: Layout,
    policy: PolicySummary,
    endpoint: String,
    /// What the endpoint means, with the port that is meant when none is written.
    meaning: String,
    /// Whether only a name is known, as of a query that was refused: calls have a port.
    is_name: bool,
    job: Option<JobRecord>,
    lines: Vec<Line>,
}

async fn ask_delete(page: Page) -> PageResult {
    let policy = super::policy::read(&page).await?.summary;
    let layout = page.layout(format!("Delete {}", policy.name), Section::Policies);
    render(&Delete { layout, policy })
}

async fn delete(page: Page, form: Fields) -> PageResult {
    let asked = path(&["policies", page.param("name")]);
    page.api.delete_if(&asked, form.number("version").unwrap_or_default()).await?;
    see_other("/policies?done=deleted")
}

async fn ask_rename(page: Page) -> PageResult {
    let policy = super::policy::read(&page).await?.summary;
    let layout = page.layout(format!("Rename {}", policy.name), Section::Policies);
    render(&Rename { layout, policy })
}

async fn rename(page: Page, form: Fields) -> PageResult {
    let asked = path(&["policies", page.param("name"), "rename"]);
    let body = RenamePolicy {
        name: form.text("new-name").to_owned(),
        comment: form.get("comment").map(str::to_owned),
    };
    let version = form.number("version").unwrap_or_default();
    let renamed: Policy = page.api.send_json_if(&asked, version, &body).await?;
    see_other(&format!("/policies/{}?done=renamed", segment(&renamed.summary.name)))
}

/// A policy with one endpoint more.
fn with_endpoint(policy: &Policy, endpoint: &str) -> Result<Policy, PageError> {
    let written = WrittenEndpoint::new(endpoint).map_err(|error| {
        ApiError::bad_request(format!("no policy can allow this: {error}")).hint(error.hint)
    })?;
    let mut changed = policy.clone();
    let list = changed.document.0.allowed_endpoints.get_or_insert_with(EndpointList::default);
    if list.0.iter().any(|known| known.endpoint() == written.endpoint()) {
        return Err(ApiError::conflict("the policy allows this endpoint already")
            .hint("it may stand under denied-endpoints as well, which wins")
            .into());
    }
    list.0.push(written);
    Ok(changed)
}

async fn ask_add(page: Page) -> PageResult {
    let policy = super::policy::read(&page).await?;
    let endpoint = page.query("endpoint").unwrap_or_default().to_owned();
    let changed = with_endpoint(&policy, &endpoint)?;
    let list = changed.document.0.allowed_endpoints.as_ref();
    let added = list.and_then(|list| list.0.last());
    let meaning = added.map_or_else(|| endpoint.clone(), |added| added.endpoint().to_string());
    let version = policy.summary.version;
    let diff = crate::catalog::diff(
        &policy.summary.name,
        (version, &policy.document.0),
        (version + 1, &changed.document.0),
    );
    let job = match page.query("job") {
        Some(job) => page.api.find(&path(&["jobs", job])).await?,
        None => None,
    };
    render(&Add {
        layout: page.layout(format!("Add to {}", policy.summary.name), Section::Policies),
        policy: policy.summary,
        is_name: endpoint.parse::<DnsName>().is_ok(),
        meaning,
        endpoint,
        job,
        lines: lines(&diff.unified),
    })
}

async fn add(page: Page, form: Fields) -> PageResult {
    let policy = super::policy::read(&page).await?;
    let endpoint = form.text("endpoint");
    let changed = with_endpoint(&policy, endpoint)?;
    let name = &policy.summary.name;
    let comment = form.get("comment").map_or_else(|| format!("{endpoint} added"), str::to_owned);
    let asked = path(&["policies", name]).with("comment", &comment);
    let version = IfVersion::Is(form.number("version").unwrap_or_default());
    let text = super::policy::yaml(&changed.document.0)?;
    let _: Policy = page.api.put_yaml(&asked, version, &text).await?;
    see_other(&format!("/policies/{}?done=endpoint-added", segment(name)))
}
