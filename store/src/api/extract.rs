//! Extractors whose refusals are problem documents, and answers that describe themselves.

use super::describe::{DescribeAnswer, DescribeInput, Operation};
use super::problem::ApiError;
use crate::catalog::Expected;
use crate::service::Store;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

/// The store itself.
pub type TheStore = State<Arc<Store>>;

impl DescribeInput for TheStore {
    fn describe(_: &mut Operation<'_>) {}
}

/// A JSON body.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let wrong = |error: JsonRejection| {
            ApiError::bad_request(error.body_text())
                .hint("the OpenAPI document at /openapi.json says what is expected")
        };
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "bad-request",
                "the body must be JSON, and say so",
            )
            .hint("send it with Content-Type: application/json"));
        }
        let bytes =
            Bytes::from_request(request, state).await.map_err(|error| body_error(&error))?;
        if has_nul(&bytes) {
            return Err(ApiError::bad_request("a text has a NUL character, which can't be kept"));
        }
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Self(value)),
            // Read again with an eye on where in the document the mistake is, which is slower.
            Err(_) => Json::from_bytes(&bytes).map(|Json(value)| Self(value)).map_err(wrong),
        }
    }
}

/// Whether a body says that it is JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json")
}

/// Whether a text in JSON has a NUL character, which PostgreSQL can't keep. It can only stand escaped; where that is found it is
/// looked at closely, for `\\u0000` is a backslash and five letters.
fn has_nul(json: &[u8]) -> bool {
    fn any(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains('\0'),
            Value::Array(items) => items.iter().any(any),
            Value::Object(keys) => keys.iter().any(|(key, value)| key.contains('\0') || any(value)),
            _ => false,
        }
    }
    const ESCAPED: &[u8] = b"\\u0000";
    memchr::memmem::find(json, ESCAPED).is_some()
        && serde_json::from_slice(json).is_ok_and(|value| any(&value))
}

impl<T: JsonSchema> DescribeInput for JsonBody<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.schema::<T>();
        operation.body(&json!({ "application/json": { "schema": schema } }));
    }
}

/// A body of text: policies as YAML (JSON is YAML, too) or events as NDJSON.
#[derive(Debug)]
pub struct TextBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for TextBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state).await.map(Self).map_err(|error| body_error(&error))
    }
}

impl DescribeInput for TextBody {
    fn describe(operation: &mut Operation<'_>) {
        let text = json!({ "schema": { "type": "string" } });
        operation.body(&json!({
            "application/yaml": text, "application/json": { "schema": {} }, "application/x-ndjson": text,
        }));
    }
}

fn body_error(error: &BytesRejection) -> ApiError {
    let status = error.status();
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::new(status, "too-large", "the body is larger than may be")
            .hint("send less at a time");
    }
    ApiError::new(status, "bad-request", error.body_text())
}

/// Query parameters.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::bad_request(error.body_text())),
        }
    }
}

impl<T: JsonSchema> DescribeInput for Params<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.query::<T>();
    }
}

/// The parts of the path.
#[derive(Debug)]
pub struct InPath<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::not_found(error.body_text())),
        }
    }
}

impl<T> DescribeInput for InPath<T> {
    fn describe(_: &mut Operation<'_>) {}
}

/// The headers.
impl DescribeInput for HeaderMap {
    fn describe(_: &mut Operation<'_>) {}
}

impl<A: DescribeInput, B: DescribeInput> DescribeInput for (A, B) {
    fn describe(operation: &mut Operation<'_>) {
        A::describe(operation);
        B::describe(operation);
    }
}

/// A body that may be absent.
impl DescribeInput for Bytes {
    fn describe(_: &mut Operation<'_>) {}
}

/// The version that `If-Match` or `If-None-Match: *` asks for.
pub fn expected_version(headers: &HeaderMap) -> Result<Expected, ApiError> {
    if headers.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == b"*") {
        return Ok(Expected::Nothing);
    }
    let Some(value) = headers.get(IF_MATCH) else { return Ok(Expected::Anything) };
    if value.as_bytes() == b"*" {
        return Ok(Expected::Anything);
    }
    let version = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix('"')?.strip_suffix('"')?.parse::<u64>().ok());
    match version {
        Some(version) => Ok(Expected::Version(version)),
        None => Err(ApiError::bad_request("`If-Match` is no version of a policy")
            .hint("send the ETag of the policy as it was read, such as \"7\" with its quotes")),
    }
}

/// A JSON answer.
#[derive(Debug)]
pub struct Answer<T>(pub T);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        Json(self.0).into_response()
    }
}

impl<T: JsonSchema> DescribeAnswer for Answer<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.schema::<T>();
        operation.answer(200, "Done.", json!({ "application/json": { "schema": schema } }));
    }
}

/// A JSON answer that says that something new is there.
#[derive(Debug)]
pub struct Created<T>(pub T);

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        (StatusCode::CREATED, Json(self.0)).into_response()
    }
}

impl<T: JsonSchema> DescribeAnswer for Created<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.schema::<T>();
        operation.answer(201, "Made.", json!({ "application/json": { "schema": schema } }));
    }
}

/// Nothing to tell but that it is done.
#[derive(Debug)]
pub struct Done;

impl IntoResponse for Done {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl DescribeAnswer for Done {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer(204, "Done.", Value::Null);
    }
}

/// A JSON answer with the version as `ETag`; `is_new` makes it 201.
#[derive(Debug)]
pub struct Versioned<T> {
    /// What is answered.
    pub value: T,
    /// Its version.
    pub version: u64,
    /// Whether it was made just now.
    pub is_new: bool,
}

impl<T: Serialize> IntoResponse for Versioned<T> {
    fn into_response(self) -> Response {
        let status = if self.is_new { StatusCode::CREATED } else { StatusCode::OK };
        let mut response = (status, Json(self.value)).into_response();
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", self.version)) {
            response.headers_mut().insert(ETAG, tag);
        }
        response
    }
}

impl<T: JsonSchema> DescribeAnswer for Versioned<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.schema::<T>();
        let content = json!({ "application/json": { "schema": schema } });
        operation.answer(200, "Done; the version is the ETag.", content.clone());
        operation.answer(201, "Made; the version is the ETag.", content);
    }
}

/// Text of some type.
#[derive(Debug)]
pub struct Text(pub &'static str, pub String);

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(CONTENT_TYPE, self.0)], self.1).into_response()
    }
}

impl DescribeAnswer for Text {
    fn describe(operation: &mut Operation<'_>) {
        // YAML is not described by a schema of text: what reads it sees what it means.
        let text = json!({ "schema": { "type": "string" } });
        let yaml = json!({ "schema": {} });
        operation.answer(200, "Done.", json!({ "text/plain": text, "application/yaml": yaml }));
    }
}

/// JSON of the type, or text where `Accept` prefers it.
#[derive(Debug)]
pub enum Either<T> {
    /// JSON.
    Json(T),
    /// Text of some type.
    Text(Text),
}

impl<T: IntoResponse> IntoResponse for Either<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Json(value) => value.into_response(),
            Self::Text(text) => text.into_response(),
        }
    }
}

impl<T: DescribeAnswer> DescribeAnswer for Either<T> {
    fn describe(operation: &mut Operation<'_>) {
        T::describe(operation);
        operation.also(200, "text/plain", &json!({ "type": "string" }));
        operation.also(200, "application/yaml", &json!({}));
    }
}
