//! What policies are attached to.

use super::access::Called;
use super::extract::{Answer, InPath, JsonBody, Params, TheStore};
use super::policies::unknown;
use super::problem::{ApiError, ApiResult};
use super::{EDITOR, Routes, VIEWER};
use crate::catalog::{self, Snapshot};
use axum::body::Bytes;
use axum::extract::State;
use portcullis_common::policy::Attachment;
use portcullis_common::store_api::{AttachRequest, Page};
use schemars::JsonSchema;
use serde::Deserialize;

const TAG: &str = "attachments";

pub(super) fn routes(routes: &mut Routes) {
    let path = "/policies/{name}/attachments";
    routes.api(("GET", path), VIEWER, (TAG, "What a policy is attached to"), list);
    routes.api(
        ("POST", path),
        EDITOR,
        (TAG, "Attaches a policy to a target; with replace=true in place of the target's policy"),
        attach,
    );
    routes.api(
        ("DELETE", path),
        EDITOR,
        (TAG, "Detaches a policy from the target in the query or the body"),
        detach,
    );
}

async fn list(
    State(store): TheStore,
    InPath(name): InPath<String>,
) -> ApiResult<Answer<Page<Attachment>>> {
    let snapshot = store.snapshot().await?;
    let entry = snapshot.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Answer(Page::whole(entry.attachments().to_vec())))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AttachParams {
    /// Whether another policy of the target is detached.
    replace: bool,
}

async fn attach(
    State(store): TheStore,
    called: Called,
    InPath(name): InPath<String>,
    Params(params): Params<AttachParams>,
    JsonBody(target): JsonBody<AttachRequest>,
) -> ApiResult<Answer<Page<Attachment>>> {
    let decide = |snapshot: &Snapshot, _| -> ApiResult<_> {
        Ok((catalog::attach(snapshot, &name, &target, params.replace)?, ()))
    };
    let record = ("policy.attach", format!("policy:{name}"), Some(target.to_string()));
    let (snapshot, ()) = store.change(&called.write_request(), record, decide).await?;
    let entry = snapshot.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Answer(Page::whole(entry.attachments().to_vec())))
}

/// The target, when it is not in the body: some clients can't send a body with DELETE.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct DetachParams {
    /// A cluster.
    cluster: Option<String>,
    /// An organization.
    organization: Option<String>,
    /// A repository.
    repository: Option<String>,
    /// A workflow.
    workflow: Option<String>,
}

impl DetachParams {
    fn target(self) -> ApiResult<Option<Attachment>> {
        let keys = [
            ("cluster", self.cluster),
            ("organization", self.organization),
            ("repository", self.repository),
            ("workflow", self.workflow),
        ];
        let mut given =
            keys.into_iter().filter_map(|(kind, target)| target.map(|target| (kind, target)));
        match (given.next(), given.next()) {
            (None, _) => Ok(None),
            (Some((kind, target)), None) => {
                read_target(&serde_json::json!({ kind: target })).map(Some)
            }
            (Some(_), Some(_)) => Err(ApiError::bad_request("one target is expected, not several")),
        }
    }
}

fn read_target(value: &serde_json::Value) -> ApiResult<Attachment> {
    serde_json::from_value(value.clone()).map_err(|error| ApiError::bad_request(error.to_string()))
}

async fn detach(
    State(store): TheStore,
    called: Called,
    InPath(name): InPath<String>,
    Params(params): Params<DetachParams>,
    body: Bytes,
) -> ApiResult<Answer<Page<Attachment>>> {
    let target = match params.target()? {
        Some(target) => target,
        None => serde_json::from_slice(&body).map_err(|error| {
            ApiError::bad_request(format!("the target can't be understood: {error}"))
                .hint("send a target such as {\"repository\": \"octo/hello\"}")
        })?,
    };
    let decide = |snapshot: &Snapshot, _| -> ApiResult<_> {
        Ok((catalog::detach(snapshot, &name, &target)?, ()))
    };
    let record = ("policy.detach", format!("policy:{name}"), Some(target.to_string()));
    let (snapshot, ()) = store.change(&called.write_request(), record, decide).await?;
    let entry = snapshot.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Answer(Page::whole(entry.attachments().to_vec())))
}
