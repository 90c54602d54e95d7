//! Endpoints into policies and out of them, and policies tried on what was recorded.

use super::access::Called;
use super::extract::{Answer, Either, InPath, JsonBody, Text, TheStore, expected_version};
use super::policies::{comment, unknown, wants};
use super::problem::{ApiError, ApiResult, invalid_policy};
use super::{EDITOR, Routes, VIEWER};
use crate::service::{DryRunError, EndpointsError};
use axum::extract::State;
use axum::http::HeaderMap;
use portcullis_common::store_api::{
    DryRun, DryRunRequest, Endpoints, ImportEndpoints, ImportedEndpoints, PolicyFromBaseline,
    PolicyOfBaseline,
};

const TAG: &str = "policies";

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/policies/{name}/endpoints"),
        VIEWER,
        (TAG, "What a policy allows once `extends` is followed; as text, one a line, where Accept says so"),
        endpoints,
    );
    routes.api(
        ("POST", "/policies/{name}/import-endpoints"),
        EDITOR,
        (TAG, "Adds endpoints of a baseline or a list to a policy, or tells what would be added"),
        import_endpoints,
    );
    routes.api(
        ("POST", "/policies:from-baseline"),
        EDITOR,
        (TAG, "Makes a policy that allows what a baseline has, or tells what it would be"),
        from_baseline,
    );
    routes.api(
        ("POST", "/policies:dry-run"),
        VIEWER,
        (TAG, "Judges a policy, stored or not, against recorded runs"),
        dry_run,
    );
}

async fn endpoints(
    State(store): TheStore,
    InPath(name): InPath<String>,
    headers: HeaderMap,
) -> ApiResult<Either<Answer<Endpoints>>> {
    let snapshot = store.snapshot().await?;
    let rules = snapshot
        .rules(&name)
        .ok_or_else(|| unknown(&name))?
        .map_err(|errors| invalid_policy(&errors))?;
    let endpoints: Vec<String> = rules.allowed.iter().map(|rule| rule.text.to_string()).collect();
    if wants(&headers, "text/plain") {
        let mut text = endpoints.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        return Ok(Either::Text(Text("text/plain; charset=utf-8", text)));
    }
    Ok(Either::Json(Answer(Endpoints { endpoints })))
}

async fn import_endpoints(
    State(store): TheStore,
    called: Called,
    InPath(name): InPath<String>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<ImportEndpoints>,
) -> ApiResult<Answer<ImportedEndpoints>> {
    comment(request.comment.as_deref())?;
    let expected = expected_version(&headers)?;
    let write = called.write_request();
    Ok(Answer(store.import_endpoints(&name, &request, expected, &write).await?))
}

async fn from_baseline(
    State(store): TheStore,
    called: Called,
    JsonBody(request): JsonBody<PolicyFromBaseline>,
) -> ApiResult<Answer<PolicyOfBaseline>> {
    comment(request.comment.as_deref())?;
    Ok(Answer(store.policy_from_baseline(&request, &called.write_request()).await?))
}

async fn dry_run(
    State(store): TheStore,
    JsonBody(request): JsonBody<DryRunRequest>,
) -> ApiResult<Answer<DryRun>> {
    Ok(Answer(store.dry_run(&request).await?))
}

impl From<EndpointsError> for ApiError {
    fn from(error: EndpointsError) -> Self {
        let detail = error.to_string();
        match error {
            EndpointsError::Change(error) => error.into(),
            EndpointsError::Database(error) => error.into(),
            EndpointsError::Invalid(errors) => invalid_policy(&errors),
            EndpointsError::Name(_) => Self::bad_request(detail),
            EndpointsError::NoBaseline(_) => Self::not_found(detail)
                .hint("`portcullis baseline list` shows all; a job is named by its repository, its workflow's file and its key"),
            EndpointsError::NoSource => Self::bad_request(detail)
                .hint("`baseline` names whose runs, `endpoints` is a list"),
            EndpointsError::Unwritable(_) => Self::internal(detail),
        }
    }
}

impl From<DryRunError> for ApiError {
    fn from(error: DryRunError) -> Self {
        let detail = error.to_string();
        match error {
            DryRunError::Database(error) => error.into(),
            DryRunError::Invalid(errors) => invalid_policy(&errors),
            DryRunError::NotFound(name) => unknown(&name),
            DryRunError::NoPolicy => Self::bad_request(detail)
                .hint("`policy` names one of the store, `document` is one as YAML or JSON"),
            DryRunError::NotOne(_) => Self::bad_request(detail),
            DryRunError::NoRuns => Self::bad_request(detail)
                .hint("name an organization, a repository, a cluster, a run or a job, or attach the policy first"),
            DryRunError::NothingRecorded(_) => Self::not_found(detail)
                .hint("`portcullis runs` and `portcullis baseline list` show what is recorded"),
        }
    }
}
