//! Tokens of people and programs.

use super::access::Called;
use super::extract::{Answer, Created, Done, InPath, JsonBody, TheStore};
use super::problem::{ApiError, ApiResult};
use super::{ADMIN, Routes};
use crate::database::{NewAuditEntry, StoredToken};
use crate::identity::secret::{SecretKind, generate, hash};
pub(super) use crate::service::is_name;
use crate::service::now;
use axum::extract::State;
use jiff::Timestamp;
use portcullis_common::store_api::{CreateToken, CreatedSecret, Page, Role, Token};
use std::time::Duration;
use uuid::Uuid;

const TAG: &str = "access";

pub(super) fn routes(routes: &mut Routes) {
    routes.api(("GET", "/tokens"), ADMIN, (TAG, "All tokens, without their secrets"), list);
    routes.api(
        ("POST", "/tokens"),
        ADMIN,
        (TAG, "Makes a token; its secret is shown this once"),
        create,
    );
    routes.api(("DELETE", "/tokens/{id}"), ADMIN, (TAG, "Revokes a token at once"), delete);
}

async fn list(State(store): TheStore) -> ApiResult<Answer<Page<Token>>> {
    Ok(Answer(Page::whole(store.database.tokens().await?)))
}

async fn create(
    State(store): TheStore,
    called: Called,
    JsonBody(request): JsonBody<CreateToken>,
) -> ApiResult<Created<CreatedSecret>> {
    if !is_name(&request.name) {
        return Err(ApiError::bad_request(
            "a token's name has 1 to 100 visible characters in one line",
        ));
    }
    if request.role == Role::Runner {
        return Err(ApiError::bad_request("runner hosts get their credentials by enrolment")
            .hint("`portcullis enrol create --cluster NAME`"));
    }
    let secret =
        generate(SecretKind::Token).map_err(|error| ApiError::internal(error.to_string()))?;
    let now = now();
    let expires_at =
        request.expires_in_seconds.map(|seconds| now + Duration::from_secs(seconds.into()));
    let token = StoredToken {
        id: Uuid::now_v7().simple().to_string(),
        name: request.name,
        role: request.role,
        hash: hash(&secret),
        created_by: called.actor(),
        created_ms: now.as_millisecond(),
        expires_ms: expires_at.map(Timestamp::as_millisecond),
    };
    let detail = format!("{} ({})", token.name, token.role);
    store
        .database
        .insert_token(&token, &entry(&called, "token.create", &token.id, Some(detail)))
        .await?;
    Ok(Created(CreatedSecret { id: token.id, secret, expires_at }))
}

async fn delete(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
) -> ApiResult<Done> {
    if store.database.delete_token(&id, &entry(&called, "token.revoke", &id, None)).await? {
        return Ok(Done);
    }
    Err(ApiError::not_found("there is no such token"))
}

/// The record of a change of who may do what.
pub(super) fn entry(
    called: &Called,
    action: &'static str,
    id: &str,
    detail: Option<String>,
) -> NewAuditEntry {
    let kind = action.split('.').next().unwrap_or_default();
    NewAuditEntry {
        time_ms: now().as_millisecond(),
        actor: called.actor(),
        action,
        subject: format!("{kind}:{id}"),
        detail,
        address: Some(called.address.to_string()),
    }
}
