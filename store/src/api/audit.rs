//! The audit log.

use super::extract::{Answer, Params, TheStore};
use super::policies::page_size;
use super::problem::{ApiError, ApiResult};
use super::{ADMIN, Routes};
use crate::database::AuditFilter;
use axum::extract::State;
use portcullis_common::store_api::{AuditEntry, Page};
use schemars::JsonSchema;
use serde::Deserialize;

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/audit-log"),
        ADMIN,
        ("access", "Who changed what, the newest first"),
        list,
    );
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AuditParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many entries at most.
    limit: Option<u32>,
    /// Only what this actor did: `token:ci`.
    actor: Option<String>,
    /// Only this action, or this kind of action: `policy.write`, `policy`.
    action: Option<String>,
    /// Only what concerns this: `policy:node-build`.
    subject: Option<String>,
}

async fn list(
    State(store): TheStore,
    Params(params): Params<AuditParams>,
) -> ApiResult<Answer<Page<AuditEntry>>> {
    let before = match params.cursor.as_deref().map(str::parse) {
        None => None,
        Some(Ok(before)) => Some(before),
        Some(Err(_)) => return Err(ApiError::bad_request("the cursor is none of this list")),
    };
    let limit = page_size(params.limit);
    let filter =
        AuditFilter { before, actor: params.actor, action: params.action, subject: params.subject };
    let asked = u32::try_from(limit + 1).unwrap_or(u32::MAX);
    let mut items = store.database.audit_log(&filter, asked).await?;
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = has_more.then(|| items.last().map(|entry| entry.id.to_string())).flatten();
    Ok(Answer(Page { items, next_cursor }))
}
