//! Whether the server is alive, and whether it can do its work.

use super::Routes;
use super::access::Access;
use super::extract::{Answer, TheStore};
use super::problem::{ApiError, ApiResult};
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

pub(super) fn routes(routes: &mut Routes) {
    routes.add(
        ("GET", "/healthz"),
        Access::Public,
        ("health", "Whether the process answers"),
        healthz,
    );
    routes.add(
        ("GET", "/readyz"),
        Access::Public,
        ("health", "Whether the database answers, and requests can be served"),
        readyz,
    );
}

#[derive(Debug, JsonSchema, Serialize)]
struct Health {
    status: &'static str,
}

async fn healthz() -> ApiResult<Answer<Health>> {
    Ok(Answer(Health { status: "alive" }))
}

async fn readyz(State(store): TheStore) -> ApiResult<Answer<Health>> {
    if store.is_draining() {
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "the server is about to stop",
        )
        .retry_after(5));
    }
    store.database.ping().await?;
    Ok(Answer(Health { status: "ready" }))
}
