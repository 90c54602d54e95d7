//! Which policy applies to a job, and why the others don't.

use crate::api::ApiError;
use crate::dashboard::api_client::path;
use crate::dashboard::fields::Fields;
use crate::dashboard::html::Html;
use crate::dashboard::layout::{Layout, Section};
use crate::dashboard::page::{Page, PageError, PageResult, alert, render};
use crate::dashboard::{Pages, filters, html};
use askama::Template;
use axum::http::Method;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::EgressMode;
use portcullis_common::resolution::Resolution;
use portcullis_common::store_api::{ResolveRequest, Resolved, Role};

pub(super) fn pages(pages: &mut Pages) {
    pages.get("/explain", Role::Viewer, explain);
}

#[derive(Debug, Template)]
#[template(path = "explain.html")]
struct Explain {
    layout: Layout,
    repository: String,
    workflow: String,
    cluster: String,
    default: String,
    context: String,
    outcome: Option<Result<Resolution, Html>>,
}

/// The job that is asked about.
fn context(query: &Fields) -> Result<JobContext, PageError> {
    if let Some(text) = query.get("context") {
        return serde_json::from_str(text).map_err(|error| {
            ApiError::bad_request(format!("the context can't be understood: {error}"))
                .hint("paste the `context` of a job as JSON, as the API or `portcullis runs --output json` shows it")
                .into()
        });
    }
    let repository = query.text("repository").to_owned();
    let workflow = query.get("workflow").unwrap_or("ci.yml");
    let workflow_path = if workflow.contains('/') {
        workflow.to_owned()
    } else {
        format!("{repository}/.github/workflows/{workflow}")
    };
    Ok(JobContext {
        repository_owner: repository.split('/').next().unwrap_or_default().to_owned(),
        repository,
        workflow_ref: format!("{workflow_path}@refs/heads/main"),
        job: "explain".to_owned(),
        run_id: 1,
        run_attempt: 1,
        server_url: "https://github.com".to_owned(),
        runner_name: "explain".to_owned(),
        ..JobContext::default()
    })
}

async fn resolve(page: &Page) -> Result<Resolution, PageError> {
    let query = &page.open.query;
    let request = ResolveRequest {
        context: context(query)?,
        id_token: None,
        cluster: query.get("cluster").map(str::to_owned),
        default_policy: query
            .get("default")
            .unwrap_or("audit")
            .parse()
            .map_err(|error| ApiError::bad_request(format!("the host's default: {error}")))?,
        nonce: None,
    };
    let resolved: Resolved =
        page.api.send_json(Method::POST, &path(&["resolve"]), &request).await?;
    Ok(resolved.resolution)
}

async fn explain(page: Page) -> PageResult {
    let query = &page.open.query;
    let is_asked = query.get("repository").is_some() || query.get("context").is_some();
    let outcome = if is_asked {
        Some(match resolve(&page).await {
            Ok(resolution) => Ok(resolution),
            Err(error) => Err(alert(error.problem())?),
        })
    } else {
        None
    };
    render(&Explain {
        layout: page.layout("Explain", Section::Explain),
        repository: query.text("repository").to_owned(),
        workflow: query.text("workflow").to_owned(),
        cluster: query.text("cluster").to_owned(),
        default: query.text("default").to_owned(),
        context: query.text("context").to_owned(),
        outcome,
    })
}
