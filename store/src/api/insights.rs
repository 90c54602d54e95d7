//! What is shown at a glance.

use super::extract::{Answer, InPath, Params, TheStore};
use super::policies::page_size;
use super::problem::{ApiError, ApiResult};
use super::runs::find_job;
use super::{Routes, VIEWER};
use crate::database::{SeenKind, hours_before, verdict_name};
use crate::service::now;
use axum::extract::State;
use jiff::Timestamp;
use portcullis_common::event::Verdict;
use portcullis_common::report::Report;
use portcullis_common::store_api::{
    DestinationSummary, HostState, Page, Summary, SummaryHour, Timeline, TimelinePart,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

const TAG: &str = "insights";

/// New destinations that are counted at most; beyond, "so many or more" is all that helps.
const MAX_NEW: u32 = 1000;

/// New destinations that are shown.
const SHOWN_NEW: usize = 10;

/// Parts that a job's time is divided into, at most.
const PARTS: i64 = 90;

/// Microseconds of a second.
const SECOND_US: i64 = 1_000_000;

pub(super) fn routes(routes: &mut Routes) {
    routes.api(("GET", "/summary"), VIEWER, (TAG, "What happened in the last hours"), summary);
    routes.api(("GET", "/jobs/{id}/timeline"), VIEWER, (TAG, "A job's calls over time"), timeline);
    routes.api(
        ("GET", "/targets"),
        VIEWER,
        (TAG, "Clusters, organizations, repositories and workflows that runners have reported"),
        targets,
    );
    routes.api(
        ("GET", "/hosts:state"),
        VIEWER,
        (TAG, "What was in force on each host, by the last report of a job"),
        host_states,
    );
    routes.api(
        ("GET", "/hosts/{id}/state"),
        VIEWER,
        (TAG, "What was in force on a host, with every mechanism"),
        host_state,
    );
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct SummaryParams {
    /// How many hours back; 24 when it is not said, a week at most.
    hours: Option<u32>,
}

async fn summary(
    State(store): TheStore,
    Params(params): Params<SummaryParams>,
) -> ApiResult<Answer<Summary>> {
    let hours = params.hours.unwrap_or(24).clamp(1, 168);
    let now_ms = now().as_millisecond();
    let since_ms = hours_before(now_ms, hours);
    let counts = store.database.jobs_by_hour(since_ms).await?;
    let (runs, lockdowns) = store.database.runs_and_lockdowns(since_ms).await?;
    let new = store.database.new_endpoints(since_ms, MAX_NEW).await?;
    let newest = new.iter().take(SHOWN_NEW).map(new_destination).collect::<ApiResult<_>>()?;
    let by_hour: BTreeMap<i64, _> = counts.iter().map(|hour| (hour.hour_ms, hour)).collect();
    // Also hours in which nothing happened: a gap in a chart is a fact.
    let first = since_ms.div_euclid(3_600_000);
    let last = now_ms.div_euclid(3_600_000);
    let hours = (first..=last)
        .map(|hour| {
            let found = by_hour.get(&(hour * 3_600_000)).map(|found| **found).unwrap_or_default();
            Ok(SummaryHour {
                time: time(hour * 3_600_000_000)?,
                jobs: found.jobs,
                allowed: found.allowed,
                blocked: found.blocked,
                would_block: found.would_block,
            })
        })
        .collect::<ApiResult<_>>()?;
    let sum = |of: fn(&crate::database::SummaryCounts) -> u64| counts.iter().map(of).sum();
    Ok(Answer(Summary {
        since: time(since_ms.saturating_mul(1000))?,
        runs,
        jobs: sum(|hour| hour.jobs),
        running: sum(|hour| hour.running),
        blocked: sum(|hour| hour.blocked),
        would_block: sum(|hour| hour.would_block),
        detections: sum(|hour| hour.detections),
        lockdowns,
        weak_jobs: sum(|hour| hour.weak),
        new_destinations: u64::try_from(new.len()).unwrap_or(u64::MAX),
        newest,
        hours,
    }))
}

fn time(microseconds: i64) -> ApiResult<Timestamp> {
    Timestamp::from_microsecond(microseconds)
        .map_err(|error| ApiError::internal(format!("a time can't be understood: {error}")))
}

fn new_destination(row: &(String, i16, i64, i64, i64, i64)) -> ApiResult<DestinationSummary> {
    let (endpoint, verdict, calls, runs, first, last) = row;
    Ok(DestinationSummary {
        endpoint: endpoint.clone(),
        verdict: verdict_name(*verdict).unwrap_or(Verdict::Allowed),
        calls: u64::try_from(*calls).unwrap_or_default(),
        runs: u64::try_from(*runs).unwrap_or_default(),
        first_seen: time(*first)?,
        last_seen: time(*last)?,
    })
}

async fn timeline(
    State(store): TheStore,
    InPath(id): InPath<String>,
) -> ApiResult<Answer<Timeline>> {
    let (key, _) = find_job(&store, &id).await?;
    let Some((first, last)) = store.database.span_of_calls(key).await? else {
        return Ok(Answer(Timeline { seconds: 1, parts: Vec::new() }));
    };
    let seconds = ((last - first) / SECOND_US / PARTS + 1).max(1);
    let start = first.div_euclid(SECOND_US) * SECOND_US;
    let counts = store.database.timeline(key, start, seconds * SECOND_US).await?;
    let number = (last - start) / (seconds * SECOND_US) + 1;
    let mut parts = (0..number.clamp(1, 2 * PARTS))
        .map(|part| {
            let time = time(start + part * seconds * SECOND_US)?;
            Ok(TimelinePart { time, allowed: 0, blocked: 0, would_block: 0 })
        })
        .collect::<ApiResult<Vec<_>>>()?;
    for count in counts {
        let Some(part) = usize::try_from(count.part).ok().and_then(|index| parts.get_mut(index))
        else {
            continue;
        };
        match verdict_name(count.verdict) {
            Some(Verdict::Allowed) => part.allowed += count.count,
            Some(Verdict::Blocked) => part.blocked += count.count,
            Some(Verdict::WouldBlock) => part.would_block += count.count,
            None => {}
        }
    }
    Ok(Answer(Timeline { seconds: u64::try_from(seconds).unwrap_or(1), parts }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetParams {
    /// What kind of target.
    kind: SeenKind,
    /// Only those with this text; letter case does not count.
    #[serde(default)]
    search: Option<String>,
    /// How many at most.
    #[serde(default)]
    limit: Option<u32>,
}

async fn targets(
    State(store): TheStore,
    Params(params): Params<TargetParams>,
) -> ApiResult<Answer<Page<String>>> {
    let limit = u32::try_from(page_size(params.limit)).unwrap_or(100);
    let search = params.search.unwrap_or_default();
    Ok(Answer(Page::whole(store.database.seen(params.kind, &search, limit).await?)))
}

async fn host_states(State(store): TheStore) -> ApiResult<Answer<Page<HostState>>> {
    let states = store.database.host_states(None).await?;
    Ok(Answer(Page::whole(states.into_iter().map(|(state, _)| state).collect())))
}

async fn host_state(
    State(store): TheStore,
    InPath(id): InPath<String>,
) -> ApiResult<Answer<HostState>> {
    let (mut state, report) = store
        .database
        .host_states(Some(&id))
        .await?
        .into_iter()
        .next()
        .ok_or_else(|| ApiError::not_found("no job of this host has reported yet"))?;
    let report: Report = serde_json::from_str(&report)
        .map_err(|error| ApiError::internal(format!("a stored report can't be read: {error}")))?;
    state.posture = Some(report.posture);
    Ok(Answer(state))
}
