//! Policies: read, write, delete, rename, look through.

use super::access::Called;
use super::extract::{
    Answer, Done, Either, InPath, JsonBody, Params, Text, TextBody, TheStore, Versioned,
    expected_version,
};
use super::problem::{ApiError, ApiResult, invalid_policy};
use super::{EDITOR, Routes, VIEWER};
use crate::catalog::{self, Entry, Snapshot};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use portcullis_common::policy::{EgressMode, PolicyName, SourceDocument, parse_documents};
use portcullis_common::store_api::{
    LintFinding, MAX_PAGE, Page, Policy, PolicyCounts, PolicySummary, RenamePolicy,
};
use portcullis_common::text::log_line;
use schemars::JsonSchema;
use serde::Deserialize;
use std::ops::Bound;

const TAG: &str = "policies";

/// The longest time in days that is looked back for unused endpoints: ten years.
const MAX_UNUSED_DAYS: u32 = 3650;

/// The longest comment of a version in bytes.
const MAX_COMMENT_BYTES: usize = 1000;

pub(super) fn routes(routes: &mut Routes) {
    routes.api(("GET", "/policies"), VIEWER, (TAG, "All policies, by name"), list);
    routes.api(
        ("GET", "/policies:count"),
        VIEWER,
        (TAG, "How many policies there are, by mode, and how many are attached to nothing"),
        count,
    );
    routes.api(
        ("GET", "/policies/{name}"),
        VIEWER,
        (TAG, "A policy; as YAML where Accept says so"),
        get,
    );
    routes.api(
        ("PUT", "/policies/{name}"),
        EDITOR,
        (
            TAG,
            "Writes a policy: a new version, or a new policy. If-Match guards against lost updates",
        ),
        put,
    );
    routes.api(
        ("DELETE", "/policies/{name}"),
        EDITOR,
        (TAG, "Deletes a policy that nothing uses"),
        delete,
    );
    routes.api(
        ("POST", "/policies/{name}/rename"),
        EDITOR,
        (TAG, "Gives a policy another name; those that extend it follow"),
        rename,
    );
    routes.api(
        ("GET", "/policies/{name}/lint"),
        VIEWER,
        (TAG, "What a reviewer should know about a policy"),
        lint,
    );
    routes.api(
        ("POST", "/policies:validate"),
        VIEWER,
        (TAG, "Whether documents could be written as they are; writes nothing"),
        validate,
    );
}

/// Which page of a list.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct ListParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many items at most; 100 when it is not said, 1000 at most.
    limit: Option<u32>,
    /// Only names that begin with this.
    prefix: Option<String>,
    /// Only those with this text in their name, description or targets; letter case does not count.
    search: Option<String>,
    /// Only those that say this `egress-policy` by themselves.
    mode: Option<EgressMode>,
    /// Only those that are attached to something, or to nothing.
    attached: Option<bool>,
}

impl ListParams {
    fn wants(&self, entry: &Entry, search: Option<&str>) -> bool {
        let document = &entry.source.document;
        let has = |text: &str| search.is_none_or(|search| text.to_lowercase().contains(search));
        self.mode.is_none_or(|mode| document.egress_policy == Some(mode))
            && self.attached.is_none_or(|attached| attached != document.attach.is_empty())
            && (has(document.name.as_str())
                || document.description.as_deref().is_some_and(has)
                || document.attach.iter().any(|target| has(target.target())))
    }
}

async fn list(
    State(store): TheStore,
    Params(params): Params<ListParams>,
) -> ApiResult<Answer<Page<PolicySummary>>> {
    let snapshot = store.snapshot().await?;
    let limit = page_size(params.limit);
    let prefix = params.prefix.clone().unwrap_or_default();
    let search = params.search.as_deref().map(str::to_lowercase);
    let start = match &params.cursor {
        Some(cursor) => Bound::Excluded(cursor.as_str()),
        None => Bound::Included(prefix.as_str()),
    };
    let mut items: Vec<PolicySummary> = snapshot
        .entries()
        .range::<str, _>((start, Bound::Unbounded))
        .filter(|(name, entry)| name.starts_with(&prefix) && params.wants(entry, search.as_deref()))
        .take(limit + 1)
        .map(|(_, entry)| entry.summary())
        .collect();
    let next_cursor = (items.len() > limit).then(|| {
        items.truncate(limit);
        items.last().map(|item| item.name.clone())
    });
    Ok(Answer(Page { items, next_cursor: next_cursor.flatten() }))
}

async fn count(State(store): TheStore) -> ApiResult<Answer<PolicyCounts>> {
    let snapshot = store.snapshot().await?;
    let mut counts = PolicyCounts::default();
    for entry in snapshot.entries().values() {
        let document = &entry.source.document;
        counts.total += 1;
        counts.block += u64::from(document.egress_policy == Some(EgressMode::Block));
        counts.audit += u64::from(document.egress_policy == Some(EgressMode::Audit));
        counts.unattached += u64::from(document.attach.is_empty());
    }
    Ok(Answer(counts))
}

/// How many items a page has.
pub(super) fn page_size(asked: Option<u32>) -> usize {
    usize::try_from(asked.unwrap_or(100).clamp(1, MAX_PAGE)).unwrap_or(100)
}

async fn get(
    State(store): TheStore,
    InPath(name): InPath<String>,
    headers: HeaderMap,
) -> ApiResult<Either<Versioned<Policy>>> {
    let snapshot = store.snapshot().await?;
    let entry = snapshot.get(&name).ok_or_else(|| unknown(&name))?;
    if wants(&headers, "yaml") {
        let yaml =
            entry.source.document.to_yaml().map_err(|error| {
                ApiError::internal(format!("the policy can't be written: {error}"))
            })?;
        return Ok(Either::Text(Text("application/yaml", yaml)));
    }
    Ok(Either::Json(Versioned { value: entry.policy(), version: entry.version, is_new: false }))
}

/// Whether `Accept` names a type that has this word.
pub(super) fn wants(headers: &HeaderMap, word: &str) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains(word))
}

pub(super) fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no policy named `{}`", log_line(name, 80)))
        .hint("`portcullis policy list` shows all names")
}

/// How a document is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WriteParams {
    /// Why; stands in the history.
    pub(super) comment: Option<String>,
    /// What messages call the document: the name of the file it comes from.
    pub(super) source: Option<String>,
}

impl WriteParams {
    pub(super) fn comment(&self) -> ApiResult<Option<&str>> {
        comment(self.comment.as_deref())
    }

    pub(super) fn source(&self) -> String {
        self.source.as_deref().map_or_else(|| "policy".to_owned(), |source| log_line(source, 200))
    }
}

/// A comment that can be kept.
pub(super) fn comment(text: Option<&str>) -> ApiResult<Option<&str>> {
    match text {
        Some(text) if text.len() > MAX_COMMENT_BYTES || text.contains('\0') => {
            Err(ApiError::bad_request(format!(
                "a comment has at most {MAX_COMMENT_BYTES} bytes and no NUL"
            )))
        }
        other => Ok(other.filter(|text| !text.is_empty())),
    }
}

async fn put(
    State(store): TheStore,
    called: Called,
    InPath(name): InPath<String>,
    (headers, Params(params)): (HeaderMap, Params<WriteParams>),
    TextBody(body): TextBody,
) -> ApiResult<Versioned<Policy>> {
    let expected = expected_version(&headers)?;
    let source = one_document(&params.source(), &body)?;
    let comment = params.comment()?;
    let first_version = store.database.next_version_of_name(&name).await?;
    let actor = called.actor();
    let decide = |snapshot: &Snapshot, now| -> ApiResult<_> {
        let is_new = snapshot.get(&name).is_none();
        let plan = catalog::put(
            snapshot,
            &name,
            source.clone(),
            expected,
            first_version,
            comment,
            &actor,
            now,
        )?;
        Ok((plan, is_new))
    };
    let record = ("policy.write", format!("policy:{name}"), comment.map(str::to_owned));
    let (snapshot, is_new) = store.change(&called.write_request(), record, decide).await?;
    let entry = snapshot.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Versioned { value: entry.policy(), version: entry.version, is_new })
}

pub(super) fn one_document(file: &str, body: &[u8]) -> ApiResult<SourceDocument> {
    let mut documents = parse_documents(file, body).map_err(|errors| invalid_policy(&errors))?;
    match documents.len() {
        1 => Ok(documents.remove(0)),
        several => {
            Err(ApiError::bad_request(format!("{several} policies were sent, and one is expected"))
                .hint("import several by `POST /policies:import`"))
        }
    }
}

async fn delete(
    State(store): TheStore,
    called: Called,
    InPath(name): InPath<String>,
    headers: HeaderMap,
) -> ApiResult<Done> {
    let expected = expected_version(&headers)?;
    let decide = |snapshot: &Snapshot, _| -> ApiResult<_> {
        Ok((catalog::delete(snapshot, &name, expected)?, ()))
    };
    let record = ("policy.delete", format!("policy:{name}"), None);
    store.change(&called.write_request(), record, decide).await?;
    Ok(Done)
}

async fn rename(
    State(store): TheStore,
    called: Called,
    InPath(name): InPath<String>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<RenamePolicy>,
) -> ApiResult<Versioned<Policy>> {
    let expected = expected_version(&headers)?;
    let new_name: PolicyName =
        request.name.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let comment = comment(request.comment.as_deref())?;
    let actor = called.actor();
    let decide = |snapshot: &Snapshot, now| -> ApiResult<_> {
        Ok((catalog::rename(snapshot, &name, &new_name, expected, comment, &actor, now)?, ()))
    };
    let record = ("policy.rename", format!("policy:{name}"), Some(format!("to {new_name}")));
    let (snapshot, ()) = store.change(&called.write_request(), record, decide).await?;
    let entry = snapshot.get(&new_name).ok_or_else(|| unknown(&new_name))?;
    Ok(Versioned { value: entry.policy(), version: entry.version, is_new: false })
}

/// What to look for beside the policy itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LintParams {
    /// Also endpoints that no job has called in so many days.
    unused_days: Option<u32>,
}

async fn lint(
    State(store): TheStore,
    InPath(name): InPath<String>,
    Params(params): Params<LintParams>,
) -> ApiResult<Answer<Page<LintFinding>>> {
    let snapshot = store.snapshot().await?;
    let mut findings = snapshot
        .lint(&name)
        .ok_or_else(|| unknown(&name))?
        .map_err(|errors| invalid_policy(&errors))?;
    if let Some(days) = params.unused_days {
        findings.extend(
            store.unused_endpoints(&name, days.min(MAX_UNUSED_DAYS), crate::service::now()).await?,
        );
    }
    Ok(Answer(Page::whole(findings)))
}

async fn validate(
    State(store): TheStore,
    called: Called,
    Params(params): Params<WriteParams>,
    TextBody(body): TextBody,
) -> ApiResult<Answer<Page<String>>> {
    let documents =
        parse_documents(&params.source(), &body).map_err(|errors| invalid_policy(&errors))?;
    let snapshot = store.snapshot().await?;
    let names = documents.iter().map(|source| source.document.name.to_string()).collect();
    let versions = std::collections::BTreeMap::new();
    catalog::import(
        &snapshot,
        documents,
        &versions,
        false,
        None,
        &called.actor(),
        crate::service::now(),
    )?;
    Ok(Answer(Page::whole(names)))
}
