//! Which policy applies to a job: signed for runner hosts, and for people who want to know.

use super::Routes;
use super::access::{Access, Called};
use super::describe::{DescribeAnswer, Operation};
use super::extract::{JsonBody, TheStore};
use super::problem::{ApiError, ApiResult};
use crate::database::job_of_token;
use crate::identity::oidc::IdentityError;
use crate::identity::secret::hash;
use crate::service::{Store, now};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::is_cluster;
use portcullis_common::resolution::{Considered, HostDefaults, Identity, ScopeKind};
use portcullis_common::store_api::{ResolveRequest, Resolved, SIGNATURE_HEADER};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// How long an answer can be acted on. A host asks anew for each job; the time covers a clock that is off.
const VALIDITY: Duration = Duration::from_mins(5);

/// The longest nonce in bytes.
const MAX_NONCE_BYTES: usize = 128;

/// The longest `job_workflow_ref` that is kept, in bytes: names and paths of GitHub are shorter.
const MAX_WORKFLOW_REF_BYTES: usize = 1024;

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("POST", "/resolve"),
        Access::RunnerOrViewer,
        ("resolution", "Which policy applies to a job, and why; the answer is signed"),
        resolve,
    );
}

/// The answer as bytes with the signature over exactly these.
#[derive(Debug)]
struct Signed {
    body: Vec<u8>,
    signature: String,
}

impl IntoResponse for Signed {
    fn into_response(self) -> Response {
        let mut response = self.body.into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(signature) = HeaderValue::try_from(self.signature) {
            headers.insert(HeaderName::from_static(SIGNATURE_HEADER), signature);
        }
        response
    }
}

impl DescribeAnswer for Signed {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.schema::<Resolved>();
        let text =
            "The resolution; the header Portcullis-Signature is a detached JWS over the body.";
        operation.answer(200, text, json!({ "application/json": { "schema": schema } }));
    }
}

/// A [`Resolved`] but for its policy, which is written already.
#[derive(Debug, Serialize)]
struct WithoutPolicy<'a> {
    scope: ScopeKind,
    target: &'a str,
    identity: Identity,
    considered: &'a [Considered],
    context: &'a JobContext,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
    issued_at: Timestamp,
    expires_at: Timestamp,
}

/// The text of a [`Resolved`] with this policy.
fn body(policy: &str, rest: &WithoutPolicy<'_>) -> Result<Vec<u8>, serde_json::Error> {
    /// What stands around the policy; the rest begins with a brace, of which a comma is made.
    const BEFORE: &[u8] = b"{\"policy\":";
    /// The rest is some 1.2 KiB with a job's usual names.
    const USUAL_REST_BYTES: usize = 2048;
    let mut body = Vec::with_capacity(BEFORE.len() + policy.len() + USUAL_REST_BYTES);
    body.extend_from_slice(BEFORE);
    body.extend_from_slice(policy.as_bytes());
    let end = body.len();
    serde_json::to_writer(&mut body, rest)?;
    if let Some(brace) = body.get_mut(end) {
        *brace = b',';
    }
    Ok(body)
}

async fn resolve(
    State(store): TheStore,
    called: Called,
    JsonBody(request): JsonBody<ResolveRequest>,
) -> ApiResult<Signed> {
    request.context.validate().map_err(|error| ApiError::bad_request(with_causes(&error)))?;
    if request.nonce.as_ref().is_some_and(|nonce| nonce.len() > MAX_NONCE_BYTES) {
        return Err(ApiError::bad_request(format!("a nonce has at most {MAX_NONCE_BYTES} bytes")));
    }
    let cluster = cluster(&called, request.cluster)?;
    let identity = match &request.id_token {
        Some(token) => {
            Box::pin(verify(&store, token, &request.context)).await?;
            Identity::Verified
        }
        None => Identity::Asserted,
    };
    let snapshot = match called.policies {
        Some(generation) => store.snapshot_from(generation).await?,
        None => store.snapshot().await?,
    };
    let host = HostDefaults { cluster: cluster.clone(), default_policy: request.default_policy };
    let answer = snapshot.answer(&request.context, &host)?;
    let issued_at = now();
    let body = body(
        &answer.policy,
        &WithoutPolicy {
            scope: answer.scope,
            target: &answer.target,
            identity,
            considered: &answer.considered,
            context: &request.context,
            cluster: cluster.as_deref(),
            nonce: request.nonce.as_deref(),
            issued_at,
            expires_at: issued_at + VALIDITY,
        },
    )
    .map_err(|error| ApiError::internal(format!("the answer can't be written: {error}")))?;
    let signature = store.signer.sign(&body);
    Ok(Signed { body, signature })
}

/// The cluster that counts: a host's own, or what a person asks about.
fn cluster(called: &Called, asked: Option<String>) -> ApiResult<Option<String>> {
    if let Some(text) = asked.as_deref().filter(|text| !is_cluster(text)) {
        let shown = portcullis_common::text::log_line(text, 80);
        return Err(ApiError::bad_request(format!("`{shown}` can't be a cluster's name")));
    }
    match called.host() {
        None => Ok(asked),
        Some((_, own)) => match asked {
            Some(asked) if asked != own => Err(ApiError::forbidden(format!(
                "this host is enrolled in cluster `{own}`, and asks for `{asked}`"
            ))
            .hint("correct `cluster` in monitor.toml, or enrol the host anew")),
            _ => Ok(Some(own.to_owned())),
        },
    }
}

/// Verifies a token and notes that it was used for this job.
async fn verify(store: &Store, token: &str, context: &JobContext) -> ApiResult<()> {
    let claims =
        store.verifier.verify(token, context).await.map_err(|error| identity_error(&error))?;
    let job = job_of_token(context);
    let expires_ms = claims.exp.saturating_mul(1000).saturating_add(120_000);
    // Signed by GitHub all the same; a text that no column of ours takes is not kept.
    let is_text = |text: &&str| text.len() <= MAX_WORKFLOW_REF_BYTES && !text.contains('\0');
    let workflow = claims.job_workflow_ref.as_deref().filter(is_text);
    if store.database.claim_id_token(&hash(token), &job, workflow, expires_ms).await? {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "identity-refused",
        "the id token was used for another job already",
    ))
}

/// What a caller is told whose token does not verify it.
pub(super) fn identity_error(error: &IdentityError) -> ApiError {
    match error {
        IdentityError::KeysUnavailable { .. } => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string())
                .hint("the store must reach the issuer to verify jobs")
                .retry_after(10)
        }
        IdentityError::Token(_) | IdentityError::Contradiction { .. } => {
            ApiError::new(StatusCode::FORBIDDEN, "identity-refused", error.to_string()).hint(
                "the job is not what it says it is, or its clock or the store's audience is wrong",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{WithoutPolicy, body};
    use jiff::Timestamp;
    use portcullis_common::job_context::JobContext;
    use portcullis_common::policy::{EffectivePolicy, EgressMode};
    use portcullis_common::resolution::{Considered, Identity, Resolution, ScopeKind};
    use portcullis_common::store_api::Resolved;

    #[test]
    fn the_text_is_that_of_the_whole_answer() {
        for optional in [None, Some("prod \"{,}\" \u{e9}".to_owned())] {
            let considered = Considered {
                scope: ScopeKind::Repository,
                target: "octo/hello".to_owned(),
                policy: optional.clone(),
                reason: "because".to_owned(),
                chosen: true,
            };
            let whole = Resolved {
                resolution: Resolution {
                    policy: EffectivePolicy::built_in(EgressMode::Block),
                    scope: ScopeKind::Repository,
                    target: "octo/hello".to_owned(),
                    identity: Identity::Verified,
                    considered: vec![considered],
                },
                context: JobContext {
                    repository: "octo/hello".to_owned(),
                    run_id: 7,
                    ..JobContext::default()
                },
                cluster: optional.clone(),
                nonce: optional,
                issued_at: Timestamp::UNIX_EPOCH,
                expires_at: Timestamp::MAX,
            };
            let resolution = &whole.resolution;
            let rest = WithoutPolicy {
                scope: resolution.scope,
                target: &resolution.target,
                identity: resolution.identity,
                considered: &resolution.considered,
                context: &whole.context,
                cluster: whole.cluster.as_deref(),
                nonce: whole.nonce.as_deref(),
                issued_at: whole.issued_at,
                expires_at: whole.expires_at,
            };
            let policy = serde_json::to_string(&resolution.policy).unwrap();
            assert_eq!(body(&policy, &rest).unwrap(), serde_json::to_vec(&whole).unwrap());
        }
    }
}
