//! Integrations: who is told what happened. Secrets go in and never out.

use super::access::Called;
use super::extract::{Answer, Created, Done, InPath, JsonBody, Params, TheStore};
use super::policies::page_size;
use super::problem::{ApiError, ApiResult};
use super::runs::{asked, number, page};
use super::{ADMIN, Routes, VIEWER};
use crate::database::DeliveryFilter;
use crate::service::NotifyError;
use axum::extract::State;
use portcullis_common::store_api::{Delivery, DeliveryState, Integration, Page, WriteIntegration};
use schemars::JsonSchema;
use serde::Deserialize;

const TAG: &str = "notifications";

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/integrations"),
        VIEWER,
        (TAG, "All integrations, without their secrets"),
        list,
    );
    routes.api(("POST", "/integrations"), ADMIN, (TAG, "Makes an integration"), create);
    routes.api(
        ("GET", "/integrations/{id}"),
        VIEWER,
        (TAG, "An integration, without its secrets"),
        get,
    );
    routes.api(
        ("PUT", "/integrations/{id}"),
        ADMIN,
        (
            TAG,
            "Changes an integration; secrets that are left out stay, unless it tells another host",
        ),
        put,
    );
    routes.api(
        ("DELETE", "/integrations/{id}"),
        ADMIN,
        (TAG, "Removes an integration with its deliveries"),
        delete,
    );
    routes.api(
        ("POST", "/integrations/{id}/test"),
        ADMIN,
        (TAG, "Tells an integration that this is a test, and what became of it"),
        test,
    );
    routes.api(
        ("GET", "/integrations/{id}/deliveries"),
        VIEWER,
        (TAG, "Deliveries of an integration, the newest first"),
        deliveries,
    );
    routes.api(
        ("POST", "/deliveries/{id}/retry"),
        ADMIN,
        (TAG, "Tries a delivery that was given up again"),
        retry,
    );
}

impl From<NotifyError> for ApiError {
    fn from(error: NotifyError) -> Self {
        match error {
            NotifyError::Invalid { detail, hint } => Self::bad_request(detail).hint(hint),
            NotifyError::NotFound(detail) => Self::not_found(detail),
            NotifyError::NameTaken(_) => {
                Self::conflict(error.to_string()).hint("choose another name")
            }
            NotifyError::Database(error) => error.into(),
        }
    }
}

async fn list(State(store): TheStore) -> ApiResult<Answer<Page<Integration>>> {
    Ok(Answer(Page::whole(store.integrations().await?)))
}

async fn create(
    State(store): TheStore,
    called: Called,
    JsonBody(written): JsonBody<WriteIntegration>,
) -> ApiResult<Created<Integration>> {
    Ok(Created(store.create_integration(&called.write_request(), &written).await?))
}

async fn get(State(store): TheStore, InPath(id): InPath<String>) -> ApiResult<Answer<Integration>> {
    Ok(Answer(store.integration(&id).await?))
}

async fn put(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
    JsonBody(written): JsonBody<WriteIntegration>,
) -> ApiResult<Answer<Integration>> {
    Ok(Answer(store.update_integration(&called.write_request(), &id, &written).await?))
}

async fn delete(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
) -> ApiResult<Done> {
    store.delete_integration(&called.write_request(), &id).await?;
    Ok(Done)
}

async fn test(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
) -> ApiResult<Answer<Delivery>> {
    Ok(Answer(store.test_integration(&called.write_request(), &id).await?))
}

/// Which deliveries.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct DeliveryParams {
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
    /// How many items at most.
    limit: Option<u32>,
    /// Only in this state: `pending`, `delivered`, `dead`.
    state: Option<DeliveryState>,
}

async fn deliveries(
    State(store): TheStore,
    InPath(id): InPath<String>,
    Params(params): Params<DeliveryParams>,
) -> ApiResult<Answer<Page<Delivery>>> {
    let limit = page_size(params.limit);
    let filter = DeliveryFilter {
        before: number(params.cursor.as_deref())?,
        integration: Some(id),
        state: params.state,
    };
    Ok(Answer(page(store.deliveries(&filter, asked(limit)).await?, limit)))
}

async fn retry(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
) -> ApiResult<Done> {
    store.retry_delivery(&called.write_request(), &id).await?;
    Ok(Done)
}
