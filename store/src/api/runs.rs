//! Runs, jobs, their calls and detections, and destinations over many of them.

use super::extract::{Answer, InPath, Params, TheStore};
use super::policies::page_size;
use super::problem::{ApiError, ApiResult};
use super::{Routes, VIEWER};
use crate::database::{
    DestinationFilter, DetectionFilter, EndpointFilter, EventFilter, EventName, RunFilter,
    verdict_code,
};
use crate::service::Store;
use axum::extract::State;
use jiff::Timestamp;
use portcullis_common::event::{Event, Verdict};
use portcullis_common::store_api::{
    BaselineSource, DestinationSummary, DetectionRecord, JobRecord, Page, ProcessTree, Run, RunJobs,
};
use schemars::JsonSchema;
use serde::Deserialize;

const TAG: &str = "runs";

pub(super) fn routes(routes: &mut Routes) {
    routes.api(("GET", "/runs"), VIEWER, (TAG, "Runs, the newest first"), runs);
    routes.api(
        ("GET", "/runs/{id}"),
        VIEWER,
        (TAG, "A run with its jobs: RUN_ID, or RUN_ID-ATTEMPT"),
        run,
    );
    routes.api(("GET", "/jobs/{id}"), VIEWER, (TAG, "A job with its report"), job);
    routes.api(("GET", "/jobs/{id}/events"), VIEWER, (TAG, "Events of a job, in order"), events);
    routes.api(
        ("GET", "/jobs/{id}/network-events"),
        VIEWER,
        (TAG, "Calls of a job, and with dns=true its queries, in order"),
        network_events,
    );
    routes.api(
        ("GET", "/jobs/{id}/process-tree"),
        VIEWER,
        (TAG, "The processes of a job as a tree, with what they executed and where they called"),
        process_tree,
    );
    routes.api(("GET", "/detections"), VIEWER, (TAG, "Detections, the newest first"), detections);
    routes.api(
        ("GET", "/destinations"),
        VIEWER,
        (TAG, "Where jobs called, over an organization, a cluster, a repository"),
        destinations,
    );
}

/// One item more than a page, to know whether there is another page.
pub(super) fn asked(limit: usize) -> u32 {
    u32::try_from(limit + 1).unwrap_or(u32::MAX)
}

/// A cursor that is a number.
pub(super) fn number<T: std::str::FromStr>(cursor: Option<&str>) -> ApiResult<Option<T>> {
    cursor
        .map(|text| {
            text.parse().map_err(|_| ApiError::bad_request("the cursor is none of this list"))
        })
        .transpose()
}

/// The page of items that were read with their keys, one more than it has.
pub(super) fn page<T>(mut items: Vec<(i64, T)>, limit: usize) -> Page<T> {
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = has_more.then(|| items.last().map(|(key, _)| key.to_string())).flatten();
    Page { items: items.into_iter().map(|(_, item)| item).collect(), next_cursor }
}

fn lower(text: Option<String>) -> Option<String> {
    text.map(|text| text.to_ascii_lowercase())
}

/// Which runs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct RunParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many items at most.
    limit: Option<u32>,
    /// Only of this repository: `octo/hello`.
    repository: Option<String>,
    /// Only of this organization.
    organization: Option<String>,
    /// Only of this workflow: `octo/hello/.github/workflows/ci.yml`.
    workflow: Option<String>,
    /// Only with a job in this cluster.
    cluster: Option<String>,
    /// Only with a job under this policy.
    policy: Option<String>,
    /// Only with calls that were stopped, or would have been.
    blocked: bool,
    /// Only with detections.
    detections: bool,
    /// Only with a call to this endpoint, whatever became of it: `github.com:443`, as destinations have it.
    endpoint: Option<String>,
    /// Only with a job that began at this time or later, RFC 3339.
    since: Option<Timestamp>,
}

async fn runs(
    State(store): TheStore,
    Params(params): Params<RunParams>,
) -> ApiResult<Answer<Page<Run>>> {
    let limit = page_size(params.limit);
    let filter = RunFilter {
        before: number(params.cursor.as_deref())?,
        repository: lower(params.repository),
        organization: lower(params.organization),
        workflow: params.workflow,
        cluster: params.cluster,
        policy: params.policy,
        blocked: params.blocked,
        detections: params.detections,
        endpoint: params.endpoint,
        since_ms: params.since.map(Timestamp::as_millisecond),
        ..RunFilter::default()
    };
    Ok(Answer(page(store.database.runs(&filter, asked(limit)).await?, limit)))
}

async fn run(State(store): TheStore, InPath(id): InPath<String>) -> ApiResult<Answer<RunJobs>> {
    let unknown = || ApiError::not_found("there is no such run");
    let (run_id, attempt) = match id.split_once('-') {
        Some((run_id, attempt)) => (run_id, Some(attempt)),
        None => (id.as_str(), None),
    };
    let filter = RunFilter {
        run_id: Some(run_id.parse().map_err(|_| unknown())?),
        run_attempt: attempt.map(str::parse).transpose().map_err(|_| unknown())?,
        ..RunFilter::default()
    };
    // Without an attempt the newest one.
    let (key, run) =
        store.database.runs(&filter, 1).await?.into_iter().next().ok_or_else(unknown)?;
    let job_records = store.database.jobs_of_run(key).await?;
    Ok(Answer(RunJobs { run, job_records }))
}

pub(super) async fn find_job(store: &Store, id: &str) -> ApiResult<(i64, JobRecord)> {
    store.database.job(id).await?.ok_or_else(no_such_job)
}

fn no_such_job() -> ApiError {
    ApiError::not_found("there is no such job")
        .hint("`portcullis runs RUN_ID` shows the jobs of a run with their ids")
}

async fn job(State(store): TheStore, InPath(id): InPath<String>) -> ApiResult<Answer<JobRecord>> {
    Ok(Answer(find_job(&store, &id).await?.1))
}

/// Which events.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct EventParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many items at most.
    limit: Option<u32>,
    /// Only with this verdict: `allowed`, `blocked`, `would-block`.
    status: Option<Verdict>,
    /// Only to an endpoint that has this text in it.
    endpoint: Option<String>,
    /// Only of an executable that has this text in its path.
    process: Option<String>,
    /// Only of this step.
    step: Option<String>,
    /// Only judged by the policy with this name.
    policy: Option<String>,
    /// Queries for names as well.
    dns: bool,
    /// Only calls to endpoints that the job had never called before, by its `New-Outbound-Network-Call` detections.
    new: bool,
    /// Only events of this kind: `network`, `dns`, `process`, `file`, `detection`, `posture`, `job`.
    #[serde(rename = "type")]
    kind: Option<EventName>,
}

async fn events(
    State(store): TheStore,
    InPath(id): InPath<String>,
    Params(params): Params<EventParams>,
) -> ApiResult<Answer<Page<Event>>> {
    read_events(&store, &id, params, false).await
}

async fn network_events(
    State(store): TheStore,
    InPath(id): InPath<String>,
    Params(params): Params<EventParams>,
) -> ApiResult<Answer<Page<Event>>> {
    read_events(&store, &id, params, true).await
}

async fn process_tree(
    State(store): TheStore,
    InPath(id): InPath<String>,
) -> ApiResult<Answer<ProcessTree>> {
    let tree = store.process_tree(&id).await?;
    Ok(Answer(tree.ok_or_else(no_such_job)?))
}

async fn read_events(
    store: &Store,
    id: &str,
    params: EventParams,
    network: bool,
) -> ApiResult<Answer<Page<Event>>> {
    let (key, _) = find_job(store, id).await?;
    let limit = page_size(params.limit);
    let filter = EventFilter {
        after: number(params.cursor.as_deref())?.unwrap_or_default(),
        network,
        dns: params.dns,
        kind: params.kind,
        others: false,
        verdict: params.status,
        endpoint: params.endpoint,
        process: params.process,
        step: params.step,
        policy: params.policy,
        new: params.new,
    };
    let mut rows = store.database.events(key, &filter, asked(limit)).await?;
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = has_more.then(|| rows.last().map(|(seq, _)| seq.to_string())).flatten();
    let items =
        rows.iter().map(|(_, body)| serde_json::from_str(body)).collect::<Result<_, _>>().map_err(
            |error| ApiError::internal(format!("a stored event can't be read: {error}")),
        )?;
    Ok(Answer(Page { items, next_cursor }))
}

/// Which detections.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct DetectionParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many items at most.
    limit: Option<u32>,
    /// Only of this type: `Reverse-Shell`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Only of this repository.
    repository: Option<String>,
    /// Only of this organization.
    organization: Option<String>,
    /// Only of this cluster.
    cluster: Option<String>,
    /// Only of this job.
    job: Option<String>,
    /// Only of this run of GitHub.
    run_id: Option<u64>,
    /// Only in this state: `new`, `suppressed`, `resolved`.
    state: Option<DetectionStateName>,
    /// Only of this time or later, RFC 3339.
    since: Option<Timestamp>,
}

/// The state of a detection.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DetectionStateName {
    New,
    Suppressed,
    Resolved,
}

impl DetectionStateName {
    const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Suppressed => "suppressed",
            Self::Resolved => "resolved",
        }
    }
}

async fn detections(
    State(store): TheStore,
    Params(params): Params<DetectionParams>,
) -> ApiResult<Answer<Page<DetectionRecord>>> {
    let limit = page_size(params.limit);
    let filter = DetectionFilter {
        before: number(params.cursor.as_deref())?,
        kind: params.kind,
        repository: lower(params.repository),
        organization: lower(params.organization),
        cluster: params.cluster,
        job: params.job,
        run_id: params.run_id,
        state: params.state.map(|state| state.name().to_owned()),
        since_us: params.since.map(Timestamp::as_microsecond),
        ..DetectionFilter::default()
    };
    Ok(Answer(page(store.database.detections(&filter, asked(limit)).await?, limit)))
}

/// Whose destinations.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct DestinationParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many items at most.
    limit: Option<u32>,
    /// Only of this organization.
    organization: Option<String>,
    /// Only of this repository.
    repository: Option<String>,
    /// Only of this cluster.
    cluster: Option<String>,
    /// Only of this workflow.
    workflow: Option<String>,
    /// Only with this verdict.
    status: Option<Verdict>,
    /// Only endpoints that have this text in them.
    endpoint: Option<String>,
    /// Only what was called at this time or later, RFC 3339; calls and runs are counted from the beginning.
    since: Option<Timestamp>,
}

impl DestinationParams {
    /// Where just what is asked for is added up.
    fn added_up(&self) -> AddedUp {
        if self.workflow.is_some() {
            return AddedUp::Nowhere;
        }
        let asked = (
            lower(self.organization.clone()),
            lower(self.repository.clone()),
            self.cluster.clone(),
        );
        match asked {
            (None, None, None) => AddedUp::Everywhere,
            (Some(organization), None, None) => {
                AddedUp::By(BaselineSource::Organization { organization })
            }
            (None, Some(repository), None) => {
                AddedUp::By(BaselineSource::Repository { repository })
            }
            (None, None, Some(cluster)) => AddedUp::By(BaselineSource::Cluster { cluster }),
            _ => AddedUp::Nowhere,
        }
    }
}

/// Where calls are added up already.
enum AddedUp {
    /// By a baseline.
    By(BaselineSource),
    /// By all baselines of organizations together.
    Everywhere,
    /// Nowhere; the jobs have to be looked at.
    Nowhere,
}

async fn destinations(
    State(store): TheStore,
    Params(params): Params<DestinationParams>,
) -> ApiResult<Answer<Page<DestinationSummary>>> {
    let limit = page_size(params.limit);
    let after = destination_cursor(params.cursor.as_deref())?;
    let endpoints = EndpointFilter {
        verdict: params.status,
        containing: params.endpoint.clone(),
        since_us: params.since.map(Timestamp::as_microsecond),
        after,
        ..EndpointFilter::default()
    };
    let found = match params.added_up() {
        AddedUp::By(source) => {
            Some(store.baseline_endpoints(&source, &endpoints, asked(limit)).await?)
        }
        AddedUp::Everywhere => {
            Some(store.database.baseline_endpoints(None, &endpoints, asked(limit)).await?)
        }
        AddedUp::Nowhere => None,
    };
    if let Some(items) = found {
        return Ok(Answer(destination_page(items, limit)));
    }
    let filter = DestinationFilter {
        organization: lower(params.organization),
        repository: lower(params.repository),
        cluster: params.cluster,
        workflow: params.workflow,
        endpoints,
    };
    let items = store.database.destinations(&filter, asked(limit)).await?;
    Ok(Answer(destination_page(items, limit)))
}

/// A cursor of a list of destinations: the verdict's number and the endpoint of the last one.
pub(super) fn destination_cursor(cursor: Option<&str>) -> ApiResult<Option<(String, i16)>> {
    match cursor.map(|cursor| cursor.split_once(' ')) {
        None => Ok(None),
        Some(Some((verdict, endpoint))) => {
            let verdict = number(Some(verdict))?.unwrap_or_default();
            Ok(Some((endpoint.to_owned(), verdict)))
        }
        Some(None) => Err(ApiError::bad_request("the cursor is none of this list")),
    }
}

/// The page of destinations that were read, one more than it has.
pub(super) fn destination_page(
    mut items: Vec<DestinationSummary>,
    limit: usize,
) -> Page<DestinationSummary> {
    let has_more = items.len() > limit;
    items.truncate(limit);
    let last = items.last().map(|item| format!("{} {}", verdict_code(item.verdict), item.endpoint));
    Page { items, next_cursor: has_more.then_some(last).flatten() }
}
