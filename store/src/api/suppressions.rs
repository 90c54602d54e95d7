//! Suppression rules, and the states of detections.

use super::access::Called;
use super::extract::{Answer, Created, Done, InPath, JsonBody, TheStore};
use super::problem::ApiResult;
use super::{EDITOR, Routes, VIEWER};
use axum::extract::State;
use portcullis_common::store_api::{
    DetectionRecord, Page, Suppression, SuppressionPreview, WriteDetectionState, WriteSuppression,
};

const TAG: &str = "detections";

pub(super) fn routes(routes: &mut Routes) {
    routes.api(
        ("GET", "/suppressions"),
        VIEWER,
        (TAG, "All suppression rules, the newest first"),
        list,
    );
    routes.api(
        ("POST", "/suppressions"),
        EDITOR,
        (TAG, "Makes a suppression rule; it suppresses what is there already, too"),
        create,
    );
    routes.api(
        ("POST", "/suppressions:preview"),
        VIEWER,
        (TAG, "What a suppression rule would suppress of what is there; writes nothing"),
        preview,
    );
    routes.api(
        ("DELETE", "/suppressions/{id}"),
        EDITOR,
        (TAG, "Removes a suppression rule; what it suppressed is new again"),
        delete,
    );
    routes.api(("GET", "/detections/{id}"), VIEWER, (TAG, "A detection"), detection);
    routes.api(
        ("PUT", "/detections/{id}/state"),
        EDITOR,
        (TAG, "Resolves a detection, or opens it again"),
        set_state,
    );
}

async fn list(State(store): TheStore) -> ApiResult<Answer<Page<Suppression>>> {
    Ok(Answer(Page::whole(store.suppressions().await?)))
}

async fn create(
    State(store): TheStore,
    called: Called,
    JsonBody(written): JsonBody<WriteSuppression>,
) -> ApiResult<Created<Suppression>> {
    Ok(Created(store.create_suppression(&called.write_request(), &written).await?))
}

async fn preview(
    State(store): TheStore,
    JsonBody(written): JsonBody<WriteSuppression>,
) -> ApiResult<Answer<SuppressionPreview>> {
    Ok(Answer(store.preview_suppression(&written).await?))
}

async fn delete(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
) -> ApiResult<Done> {
    store.delete_suppression(&called.write_request(), &id).await?;
    Ok(Done)
}

async fn detection(
    State(store): TheStore,
    InPath(id): InPath<String>,
) -> ApiResult<Answer<DetectionRecord>> {
    Ok(Answer(store.detection(&id).await?))
}

async fn set_state(
    State(store): TheStore,
    called: Called,
    InPath(id): InPath<String>,
    JsonBody(written): JsonBody<WriteDetectionState>,
) -> ApiResult<Answer<DetectionRecord>> {
    Ok(Answer(store.set_detection_state(&called.write_request(), &id, &written).await?))
}
