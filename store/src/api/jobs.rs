//! What runner hosts upload.

use super::access::Called;
use super::extract::{Answer, Done, InPath, JsonBody, TextBody, TheStore};
use super::problem::{ApiError, ApiResult};
use super::{RUNNER, Routes};
use crate::database::{Intake, JobEnd, JobStart, NewEvent};
use crate::service::now;
use axum::extract::State;
use axum::http::StatusCode;
use portcullis_common::event::{Event, FeatureState, Posture, PostureLevel};
use portcullis_common::hook::with_causes;
use portcullis_common::report::Report;
use portcullis_common::store_api::{Accepted, NewJob};
use portcullis_common::text::shown;

const TAG: &str = "upload";

/// The most events of one batch.
const MAX_BATCH: usize = 10_000;

/// The longest text of a job that is kept in columns of its own, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

pub(super) fn routes(routes: &mut Routes) {
    routes.api(("POST", "/jobs"), RUNNER, (TAG, "A job has begun; again changes nothing"), start);
    routes.api(
        ("POST", "/jobs/{id}/events"),
        RUNNER,
        (TAG, "A batch of events, NDJSON, in order; what is there already is left out"),
        events,
    );
    routes.api(("PUT", "/jobs/{id}/report"), RUNNER, (TAG, "A job has ended"), report);
}

fn host(called: &Called) -> ApiResult<(&str, &str)> {
    called.host().ok_or_else(|| ApiError::forbidden("only runner hosts upload"))
}

async fn start(
    State(store): TheStore,
    called: Called,
    JsonBody(job): JsonBody<NewJob>,
) -> ApiResult<Answer<Accepted>> {
    let (host_id, cluster) = host(&called)?;
    job.context.validate().map_err(|error| ApiError::bad_request(with_causes(&error)))?;
    if job.id.len() != 32 || !job.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ApiError::bad_request("a job's id is a UUID of 32 hexadecimal digits"));
    }
    let texts = [&job.policy.name, &job.policy.version, &job.target];
    if texts.iter().any(|text| text.len() > MAX_TEXT_BYTES || text.contains('\0')) {
        return Err(ApiError::bad_request("the policy can't be the one of a job"));
    }
    if i64::try_from(job.context.run_id).is_err() {
        return Err(ApiError::bad_request("the run's id is no number that GitHub gives"));
    }
    let context = serde_json::to_string(&job.context)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let start = JobStart { job: &job, host_id, cluster, context };
    match store.database.start_job(&start).await? {
        Some(last_seq) => Ok(Answer(Accepted { last_seq })),
        None => Err(ApiError::conflict("another host has a job of this id")),
    }
}

async fn events(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
    TextBody(body): TextBody,
) -> ApiResult<Answer<Accepted>> {
    let (host_id, _) = host(&called)?;
    let text = std::str::from_utf8(&body)
        .map_err(|_| ApiError::bad_request("the events are not UTF-8"))?;
    let batch = read_batch(&id, text)?;
    let now_ms = now().as_millisecond();
    let stored = store.database.store_events(&id, host_id, &batch, (store.thresholds(), now_ms));
    match stored.await? {
        Intake::Stored { last_seq, new, is_told } => {
            store.events.inc_by(new);
            if is_told {
                store.dispatcher.wake();
            }
            Ok(Answer(Accepted { last_seq }))
        }
        Intake::Gap { expected } => {
            let mut error = ApiError::new(
                StatusCode::CONFLICT,
                "events-out-of-order",
                format!("event {expected} is expected next"),
            )
            .hint("send the events from there on");
            error.problem.expected_seq = Some(expected);
            Err(error)
        }
        Intake::NoJob => Err(no_job()),
    }
}

fn no_job() -> ApiError {
    ApiError::not_found("this host has no job of this id").hint("begin it by `POST /jobs`")
}

/// Reads a batch: each line one event of the job, numbers without gaps.
fn read_batch<'a>(id: &str, text: &'a str) -> ApiResult<Vec<NewEvent<'a>>> {
    let mut batch: Vec<NewEvent<'a>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let wrong = |what: &str| ApiError::bad_request(format!("line {}: {what}", index + 1));
        if batch.len() == MAX_BATCH {
            return Err(ApiError::bad_request(format!("a batch has at most {MAX_BATCH} events")));
        }
        let event: Event =
            serde_json::from_str(line).map_err(|error| wrong(&format!("no event: {error}")))?;
        if event.job_id != id {
            return Err(wrong("an event of another job"));
        }
        let follows = batch.last().map_or(event.seq >= 1, |last| event.seq == last.event.seq + 1);
        if !follows || i64::try_from(event.seq).is_err() {
            return Err(wrong("its number does not follow"));
        }
        // PostgreSQL can't store it, and no text of ours has it: JSON escapes it, so the event's strings have to be looked at.
        if line.contains("\\u0000") {
            return Err(wrong("a NUL character"));
        }
        batch.push(NewEvent { event, line });
    }
    Ok(batch)
}

async fn report(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
    JsonBody(report): JsonBody<Report>,
) -> ApiResult<Done> {
    let (host_id, _) = host(&called)?;
    if report.job_id != id {
        return Err(ApiError::bad_request("the report is another job's"));
    }
    let text =
        serde_json::to_string(&report).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if text.contains("\\u0000") {
        return Err(ApiError::bad_request("the report has a NUL character"));
    }
    let end = JobEnd {
        id: &id,
        host_id,
        posture: posture(report.posture.level),
        posture_reason: weakness(&report.posture),
        report: text,
        now_ms: now().as_millisecond(),
    };
    if store.database.end_job(&end).await? {
        return Ok(Done);
    }
    Err(no_job())
}

/// The longest reason of a posture that is kept beside the report, in bytes.
const MAX_REASON_BYTES: usize = 400;

/// Why a posture is less than it should be, in few words: the mechanism that is missed most, else the first warning. Nothing where
/// all is in force that the policy asks for.
fn weakness(posture: &Posture) -> Option<String> {
    if matches!(posture.level, PostureLevel::Enforced | PostureLevel::Audit) {
        return None;
    }
    let lacking = posture.features.iter().filter(|one| one.state != FeatureState::Active);
    // Of those that are lacking equally the first one.
    let worst = lacking.rev().max_by_key(|one| one.state);
    let told = match worst {
        Some(feature) if feature.state == FeatureState::Missing => {
            format!("{} is missing: {}", feature.name, feature.reason)
        }
        Some(feature) => format!("{} is degraded: {}", feature.name, feature.reason),
        None => posture.warnings.first()?.clone(),
    };
    Some(shown(&told, MAX_REASON_BYTES))
}

/// A posture as it is serialized.
const fn posture(level: PostureLevel) -> &'static str {
    match level {
        PostureLevel::Enforced => "enforced",
        PostureLevel::Degraded => "degraded",
        PostureLevel::Audit => "audit",
        PostureLevel::AuditFallback => "audit-fallback",
        PostureLevel::Unenforced => "unenforced",
    }
}

#[cfg(test)]
mod tests {
    use super::weakness;
    use serde_json::json;

    #[test]
    fn the_worst_of_a_posture_is_told_in_few_words() {
        let told = |level: &str, features: &[(&str, &str)], warnings: &[&str]| {
            let features: Vec<_> = features
                .iter()
                .map(|(name, state)| json!({ "name": name, "state": state, "reason": "why" }))
                .collect();
            let posture = json!({ "level": level, "scope": "host", "features": features, "warnings": warnings });
            weakness(&serde_json::from_value(posture).unwrap())
        };
        let features = [
            ("a", "active"),
            ("b", "degraded"),
            ("c", "missing"),
            ("d", "missing"),
            ("e", "degraded"),
        ];
        assert_eq!(told("degraded", &features, &["w"]).as_deref(), Some("c is missing: why"));
        assert_eq!(told("degraded", &features[..2], &["w"]).as_deref(), Some("b is degraded: why"));
        assert_eq!(told("unenforced", &features[..1], &["w", "x"]).as_deref(), Some("w"));
        assert_eq!(told("unenforced", &[], &[]), None);
        assert_eq!(told("enforced", &features, &["w"]), None);
        let long = told("degraded", &[], &["\u{202e}x".repeat(1000).as_str()]).unwrap();
        assert!(long.len() <= 410 && !long.contains('\u{202e}'), "{long}");
    }
}
