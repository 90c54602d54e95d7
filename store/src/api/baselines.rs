//! Baselines: where the jobs of a repository, an organization, a cluster, or one job of a workflow have been calling.

use super::extract::{Answer, Either, Params, Text, TheStore};
use super::policies::{page_size, wants};
use super::problem::{ApiError, ApiResult};
use super::runs::asked;
use super::{Routes, VIEWER};
use crate::database::DestinationFilter;
use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use portcullis_common::store_api::{DestinationSummary, Page};
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
    /// Only jobs that began at this time or later, RFC 3339.
    since: Option<Timestamp>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many endpoints at most.
    limit: Option<u32>,
}

impl BaselineParams {
    fn filter(&self) -> ApiResult<DestinationFilter> {
        let needed = |name: &str, value: &Option<String>| {
            value
                .clone()
                .ok_or_else(|| ApiError::bad_request(format!("`{name}` is needed for this source")))
        };
        let lower = |text: String| text.to_ascii_lowercase();
        let mut filter = DestinationFilter {
            passed_only: true,
            since_ms: self.since.map(Timestamp::as_millisecond),
            ..DestinationFilter::default()
        };
        match self.source {
            Source::Organization => {
                filter.organization = Some(lower(needed("organization", &self.organization)?));
            }
            Source::Repository => {
                filter.repository = Some(lower(needed("repository", &self.repository)?));
            }
            Source::Cluster => filter.cluster = Some(needed("cluster", &self.cluster)?),
            Source::Job => {
                filter.repository = Some(lower(needed("repository", &self.repository)?));
                filter.workflow = Some(needed("workflow", &self.workflow)?);
                filter.job_name = Some(needed("job", &self.job)?);
            }
        }
        Ok(filter)
    }
}

async fn list(
    State(store): TheStore,
    headers: HeaderMap,
    Params(params): Params<BaselineParams>,
) -> ApiResult<Either<Answer<Page<DestinationSummary>>>> {
    let mut filter = params.filter()?;
    if wants(&headers, "text/plain") {
        let all = store.database.destinations(&filter, MAX_EXPORT).await?;
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
    let items = store.database.destinations(&filter, asked(limit)).await?;
    Ok(Either::Json(Answer(super::runs::destination_page(items, limit))))
}

fn is_endpoint(text: &str) -> bool {
    text.parse::<portcullis_common::endpoint::Endpoint>().is_ok()
}
