//! Baselines: where the jobs of a repository, an organization, a cluster, or one job of a workflow have been calling.

use super::extract::{Answer, Either, Params, Text, TheStore};
use super::policies::{page_size, wants};
use super::problem::{ApiError, ApiResult};
use super::runs::asked;
use super::{Routes, VIEWER};
use crate::database::{BaselineFilter, BaselineKind, EndpointFilter};
use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use portcullis_common::store_api::{
    BaselineSource, BaselineState, BaselineSummary, DestinationSummary, Page,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// The most endpoints that one export holds; a baseline beyond is no policy.
const MAX_EXPORT: u32 = 100_000;

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/baselines"),
        VIEWER,
        ("baselines", "Endpoints that jobs reached or would have been blocked from; as text, one a line, where Accept says so"),
        list,
    );
    routes.api(
        ("GET", "/baselines/states"),
        VIEWER,
        ("baselines", "Baselines with how much they have learned, without their endpoints"),
        states,
    );
}

/// Whose baseline.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Source {
    /// All jobs of an organization.
    Organization,
    /// All jobs of a repository.
    Repository,
    /// All jobs on the hosts of a cluster.
    Cluster,
    /// One job of a workflow.
    Job,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BaselineParams {
    /// Whose baseline.
    source: Source,
    /// The organization.
    organization: Option<String>,
    /// The repository, also of a job.
    repository: Option<String>,
    /// The cluster.
    cluster: Option<String>,
    /// The workflow of a job: `octo/hello/.github/workflows/ci.yml`.
    workflow: Option<String>,
    /// The key of a job in its workflow.
    job: Option<String>,
    /// Only endpoints that were called at this time or later, RFC 3339.
    since: Option<Timestamp>,
    /// Only endpoints that were called in so many runs at least.
    min_runs: Option<u32>,
    /// Only endpoints that have this text in them.
    endpoint: Option<String>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many endpoints at most.
    limit: Option<u32>,
}

impl BaselineParams {
    fn source(&self) -> ApiResult<BaselineSource> {
        let needed = |name: &str, value: &Option<String>| {
            value
                .clone()
                .ok_or_else(|| ApiError::bad_request(format!("`{name}` is needed for this source")))
        };
        let source = match self.source {
            Source::Organization => BaselineSource::Organization {
                organization: needed("organization", &self.organization)?,
            },
            Source::Repository => {
                BaselineSource::Repository { repository: needed("repository", &self.repository)? }
            }
            Source::Cluster => {
                BaselineSource::Cluster { cluster: needed("cluster", &self.cluster)? }
            }
            Source::Job => BaselineSource::Job {
                repository: needed("repository", &self.repository)?,
                workflow: needed("workflow", &self.workflow)?,
                job: needed("job", &self.job)?,
            },
        };
        Ok(source.normalised())
    }
}

/// Which baselines.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct StateParams {
    /// Only of this kind.
    source: Option<Source>,
    /// Only of this organization, its repositories and their jobs.
    organization: Option<String>,
    /// Only of this repository and its jobs.
    repository: Option<String>,
    /// Only of this cluster.
    cluster: Option<String>,
    /// Only of jobs of this workflow: `octo/hello/.github/workflows/ci.yml`.
    workflow: Option<String>,
    /// Only of jobs with this key.
    job: Option<String>,
    /// Only those that have learned so much: `creating`, `stable`, `unstable`.
    state: Option<BaselineState>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many baselines at most.
    limit: Option<u32>,
}

async fn states(
    State(store): TheStore,
    Params(params): Params<StateParams>,
) -> ApiResult<Answer<Page<BaselineSummary>>> {
    let limit = page_size(params.limit);
    let filter = BaselineFilter {
        kind: params.source.map(|source| match source {
            Source::Organization => BaselineKind::Organization,
            Source::Repository => BaselineKind::Repository,
            Source::Cluster => BaselineKind::Cluster,
            Source::Job => BaselineKind::Job,
        }),
        organization: params.organization.map(|name| name.to_ascii_lowercase()),
        repository: params.repository.map(|name| name.to_ascii_lowercase()),
        cluster: params.cluster,
        workflow: params.workflow,
        job: params.job,
        state: params.state,
        after: super::runs::number(params.cursor.as_deref())?,
    };
    Ok(Answer(super::runs::page(store.baselines(&filter, asked(limit)).await?, limit)))
}

async fn list(
    State(store): TheStore,
    headers: HeaderMap,
    Params(params): Params<BaselineParams>,
) -> ApiResult<Either<Answer<Page<DestinationSummary>>>> {
    let source = params.source()?;
    let mut filter = EndpointFilter {
        reached_only: true,
        min_runs: params.min_runs,
        since_us: params.since.map(Timestamp::as_microsecond),
        containing: params.endpoint.clone(),
        ..EndpointFilter::default()
    };
    if wants(&headers, "text/plain") {
        let all = store.baseline_endpoints(&source, &filter, MAX_EXPORT).await?;
        let mut text = String::new();
        let mut last = None;
        // What can't be written into a policy (frames, connections from outside) is left out.
        for item in all.iter().filter(|item| is_endpoint(&item.endpoint)) {
            if last != Some(&item.endpoint) {
                text.push_str(&item.endpoint);
                text.push('\n');
            }
            last = Some(&item.endpoint);
        }
        return Ok(Either::Text(Text("text/plain; charset=utf-8", text)));
    }
    filter.after = super::runs::destination_cursor(params.cursor.as_deref())?;
    let limit = page_size(params.limit);
    let items = store.baseline_endpoints(&source, &filter, asked(limit)).await?;
    Ok(Either::Json(Answer(super::runs::destination_page(items, limit))))
}

fn is_endpoint(text: &str) -> bool {
    text.parse::<portcullis_common::endpoint::Endpoint>().is_ok()
}
