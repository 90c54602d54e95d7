//! The history of a policy.

use super::access::Called;
use super::extract::{Answer, InPath, JsonBody, Params, TheStore, Versioned, expected_version};
use super::policies::{comment, page_size, unknown};
use super::problem::{ApiError, ApiResult};
use super::{EDITOR, Routes, VIEWER};
use crate::catalog::{self, Snapshot};
use crate::database::VersionRow;
use crate::service::{Store, read_document};
use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use portcullis_common::policy::{JsonPolicyDocument, PolicyDocument};
use portcullis_common::store_api::{Page, Policy, PolicyDiff, PolicyVersion, RestorePolicy};
use schemars::JsonSchema;
use serde::Deserialize;

const TAG: &str = "policies";

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/policies/{name}/versions"),
        VIEWER,
        (TAG, "The versions of a policy, the newest first, without documents"),
        list,
    );
    routes.api(
        ("GET", "/policies/{name}/versions/{version}"),
        VIEWER,
        (TAG, "One version of a policy"),
        get,
    );
    routes.api(
        ("GET", "/policies/{name}/diff"),
        VIEWER,
        (TAG, "What changed between two versions"),
        diff,
    );
    routes.api(
        ("POST", "/policies/{name}/restore"),
        EDITOR,
        (TAG, "Writes an earlier version anew as the newest one"),
        restore,
    );
}

/// Which page of a list.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct VersionParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many items at most.
    limit: Option<u32>,
}

async fn list(
    State(store): TheStore,
    InPath(name): InPath<String>,
    Params(params): Params<VersionParams>,
) -> ApiResult<Answer<Page<PolicyVersion>>> {
    let id = policy_id(&store, &name).await?;
    let before = match params.cursor.as_deref().map(str::parse) {
        None => None,
        Some(Ok(before)) => Some(before),
        Some(Err(_)) => return Err(ApiError::bad_request("the cursor is none of this list")),
    };
    let limit = page_size(params.limit);
    let asked = u32::try_from(limit + 1).unwrap_or(u32::MAX);
    let mut rows = store.database.versions(&id, before, asked).await?;
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = has_more.then(|| rows.last().map(|row| row.version.to_string())).flatten();
    let items = rows.into_iter().map(|row| version(&row, None)).collect::<ApiResult<_>>()?;
    Ok(Answer(Page { items, next_cursor }))
}

async fn get(
    State(store): TheStore,
    InPath((name, number)): InPath<(String, u64)>,
) -> ApiResult<Answer<PolicyVersion>> {
    let (row, document) = stored(&store, &name, number).await?;
    Ok(Answer(version(&row, Some(document))?))
}

/// Which versions are compared.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct DiffParams {
    /// The older version; the one before `to` when it is not said.
    from: Option<u64>,
    /// The newer version; the newest one when it is not said.
    to: Option<u64>,
}

async fn diff(
    State(store): TheStore,
    InPath(name): InPath<String>,
    Params(params): Params<DiffParams>,
) -> ApiResult<Answer<PolicyDiff>> {
    let newest = store.snapshot().await?.get(&name).ok_or_else(|| unknown(&name))?.version;
    let to = params.to.unwrap_or(newest);
    let from = params.from.unwrap_or_else(|| to.saturating_sub(1).max(1));
    let (_, old) = stored(&store, &name, from).await?;
    let (_, new) = stored(&store, &name, to).await?;
    Ok(Answer(catalog::diff(&name, (from, &old), (to, &new))))
}

async fn restore(
    State(store): TheStore,
    called: Called,
    InPath(name): InPath<String>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<RestorePolicy>,
) -> ApiResult<Versioned<Policy>> {
    let expected = expected_version(&headers)?;
    let (row, _) = stored(&store, &name, request.version).await?;
    let mut source = read_document(&row.name, &row.yaml)?;
    // The policy may have had another name then.
    source.document.name = name.parse().map_err(|_| unknown(&name))?;
    let reason = match comment(request.comment.as_deref())? {
        Some(text) => text.to_owned(),
        None => format!("version {} restored", request.version),
    };
    let actor = called.actor();
    let decide = |snapshot: &Snapshot, now| -> ApiResult<_> {
        if snapshot.get(&name).is_none() {
            return Err(unknown(&name));
        }
        let plan =
            catalog::put(snapshot, &name, source.clone(), expected, 1, Some(&reason), &actor, now)?;
        Ok((plan, ()))
    };
    let record =
        ("policy.restore", format!("policy:{name}"), Some(format!("version {}", request.version)));
    let (snapshot, ()) = store.change(&called.write_request(), record, decide).await?;
    let entry = snapshot.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Versioned { value: entry.policy(), version: entry.version, is_new: false })
}

async fn policy_id(store: &Store, name: &str) -> ApiResult<String> {
    let snapshot = store.snapshot().await?;
    snapshot.get(name).map(|entry| entry.id.clone()).ok_or_else(|| unknown(name))
}

async fn stored(store: &Store, name: &str, number: u64) -> ApiResult<(VersionRow, PolicyDocument)> {
    let id = policy_id(store, name).await?;
    let row = store
        .database
        .versions(&id, Some(number.saturating_add(1)), 1)
        .await?
        .into_iter()
        .find(|row| row.version == number)
        .ok_or_else(|| {
            ApiError::not_found(format!("policy `{name}` has no version {number}"))
                .hint("`portcullis policy history` shows all versions")
        })?;
    let document = read_document(&row.name, &row.yaml)?.document;
    Ok((row, document))
}

fn version(row: &VersionRow, document: Option<PolicyDocument>) -> ApiResult<PolicyVersion> {
    Ok(PolicyVersion {
        name: row.name.clone(),
        version: row.version,
        author: row.author.clone(),
        comment: row.comment.clone(),
        created_at: Timestamp::from_millisecond(row.created_ms)
            .map_err(|error| ApiError::internal(format!("a time can't be understood: {error}")))?,
        document: document.map(JsonPolicyDocument),
    })
}
