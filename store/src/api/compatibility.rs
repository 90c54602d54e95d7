//! The two read endpoints of the existing action's API, so that its clients get their policy here unchanged.
//!
//! They are called by jobs, not by people: with GitHub's OIDC token of the job, or (the second one) with a runner host's
//! credential in `vm-api-key`. So they are registered as public and check for themselves.

use super::Routes;
use super::access::{Access, bearer};
use super::extract::{Answer, InPath, Params, TheStore};
use super::problem::{ApiError, ApiResult, invalid_policy};
use super::resolve::identity_error;
use crate::catalog::{Entry, Snapshot};
use crate::database::Caller;
use crate::identity::oidc::Claims;
use crate::identity::secret::SecretKind;
use crate::service::{AuthenticationError, Store};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::{Attachment, EffectivePolicy, EgressMode, Rule};
use portcullis_common::resolution::{DefaultPolicy, HostDefaults, ScopeKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const TAG: &str = "compatibility";

pub(super) fn routes(routes: &mut Routes) {
    routes.add(
        ("GET", "/v1/github/{owner}/actions/policies/{name}"),
        Access::Public,
        (TAG, "A policy by name, with the job's OIDC token as bearer"),
        by_name,
    );
    routes.add(
        ("GET", "/v1/github/{owner}/{repository}/actions/policies/workflow-policy"),
        Access::Public,
        (TAG, "The policy of a workflow, with the job's OIDC token as bearer or a host's credential as vm-api-key"),
        by_workflow,
    );
}

/// A policy as that API has it.
#[expect(clippy::struct_excessive_bools, reason = "each is a key of that API")]
#[derive(Debug, JsonSchema, Serialize)]
struct CompatiblePolicy {
    owner: String,
    policy_name: String,
    egress_policy: EgressMode,
    allowed_endpoints: Vec<String>,
    denied_endpoints: Vec<String>,
    disable_sudo: bool,
    disable_sudo_and_containers: bool,
    disable_file_monitoring: bool,
    disable_telemetry: bool,
    lockdown: bool,
}

fn compatible(owner: &str, policy: &EffectivePolicy) -> CompatiblePolicy {
    let texts = |rules: &[Arc<Rule>]| rules.iter().map(|rule| rule.text.to_string()).collect();
    CompatiblePolicy {
        owner: owner.to_owned(),
        policy_name: policy.name.clone(),
        egress_policy: policy.egress,
        allowed_endpoints: texts(&policy.allowed),
        denied_endpoints: texts(&policy.denied),
        disable_sudo: policy.disable_sudo,
        disable_sudo_and_containers: policy.disable_sudo_and_containers,
        disable_file_monitoring: policy.disable_file_monitoring,
        disable_telemetry: policy.disable_telemetry,
        lockdown: policy.lockdown.enabled,
    }
}

async fn claims(store: &Store, token: &str, owner: &str) -> ApiResult<Claims> {
    let claims = store.verifier.claims(token).await.map_err(|error| identity_error(&error))?;
    let own = claims.repository.split('/').next().unwrap_or_default();
    if own.eq_ignore_ascii_case(owner) {
        return Ok(claims);
    }
    Err(ApiError::forbidden("the id token is that of another owner's job"))
}

async fn by_name(
    State(store): TheStore,
    InPath((owner, name)): InPath<(String, String)>,
    headers: HeaderMap,
) -> ApiResult<Answer<CompatiblePolicy>> {
    claims(&store, bearer(&headers)?, &owner).await?;
    let snapshot = store.snapshot().await?;
    // Anybody's job on GitHub can have a token for this store made; policies are for owners that the store knows.
    if !is_known(&snapshot, &owner) {
        return Err(super::policies::unknown(&name));
    }
    let policy = snapshot
        .effective(&name)
        .ok_or_else(|| super::policies::unknown(&name))?
        .map_err(|errors| invalid_policy(&errors))?;
    Ok(Answer(compatible(&owner, &policy)))
}

/// Whether a policy is attached to this owner, or to anything of its.
fn is_known(snapshot: &Snapshot, owner: &str) -> bool {
    let is_its = |target: &Attachment| {
        target.scope() != ScopeKind::Cluster
            && target.target().split('/').next().is_some_and(|it| it.eq_ignore_ascii_case(owner))
    };
    snapshot.entries().values().flat_map(Entry::attachments).any(is_its)
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct WorkflowParams {
    /// The workflow's file: `ci.yml`, or its path in the repository.
    workflow: String,
    /// GitHub's id of the run.
    run_id: Option<String>,
}

async fn by_workflow(
    State(store): TheStore,
    InPath((owner, repository)): InPath<(String, String)>,
    Params(params): Params<WorkflowParams>,
    headers: HeaderMap,
) -> ApiResult<Answer<CompatiblePolicy>> {
    let full_name = format!("{owner}/{repository}");
    let secret = match api_key(&headers) {
        Some(key) => key,
        None => bearer(&headers)?,
    };
    let path = if params.workflow.contains('/') {
        params.workflow.trim_start_matches('/').to_owned()
    } else {
        format!(".github/workflows/{}", params.workflow)
    };
    let mut context = JobContext {
        repository: full_name.clone(),
        repository_owner: owner.clone(),
        workflow_ref: format!("{full_name}/{path}@refs/heads/main"),
        ..JobContext::default()
    };
    let cluster = if secret.starts_with(SecretKind::Host.prefix()) {
        Some(cluster_of(&store, secret).await?)
    } else {
        let claims = claims(&store, secret, &owner).await?;
        let mut is_same = claims.repository.eq_ignore_ascii_case(&full_name)
            && params.run_id.as_ref().is_none_or(|run_id| *run_id == claims.run_id);
        // The token says which workflow it is, also when that is one of another repository; the client may not say another.
        context.workflow_ref = claims.workflow_ref;
        is_same &= file_of(context.workflow_path()) == Some(&path);
        if !is_same {
            return Err(ApiError::forbidden("the id token is another job's"));
        }
        None
    };
    let host = HostDefaults { cluster, default_policy: DefaultPolicy::Audit };
    let resolution = store.snapshot().await?.resolve(&context, &host)?;
    if resolution.scope == ScopeKind::Default {
        return Err(ApiError::not_found(
            "no policy is attached to this workflow, its repository or its owner",
        ));
    }
    Ok(Answer(compatible(&owner, &resolution.policy)))
}

/// A host's credential, as clients send their key: `Authorization: vm-api-key KEY`, or in a header of that name.
fn api_key(headers: &HeaderMap) -> Option<&str> {
    let of_header = headers.get("vm-api-key").and_then(|key| key.to_str().ok());
    of_header.or_else(|| {
        let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, key) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("vm-api-key").then(|| key.trim())
    })
}

/// The path in its repository of `owner/name/path`.
fn file_of(workflow_path: &str) -> Option<&str> {
    workflow_path.splitn(3, '/').nth(2)
}

async fn cluster_of(store: &Store, secret: &str) -> ApiResult<String> {
    match store.authenticate(secret).await {
        Ok(known) => match &*known.caller {
            Caller::Host { cluster, .. } => Ok(cluster.clone()),
            Caller::Token { .. } | Caller::Person { .. } => {
                Err(ApiError::forbidden("this is no host's credential"))
            }
        },
        Err(AuthenticationError::Database(error)) => Err(error.into()),
        Err(error) => Err(ApiError::unauthorized(error.to_string())),
    }
}
