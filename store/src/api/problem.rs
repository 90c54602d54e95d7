//! Errors as HTTP answers: problem documents after RFC 9457.

use crate::catalog::{AnswerError, ChangeError};
use crate::database::DatabaseError;
use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::PolicyErrors;
use portcullis_common::resolution::ResolveError;
use portcullis_common::store_api::Problem;

/// The content type of problem documents.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error that is answered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .problem.detail)]
pub struct ApiError {
    /// What is answered.
    pub problem: Box<Problem>,
    /// After how many seconds trying again makes sense.
    retry_after: Option<u64>,
}

/// What handlers return.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error of a kind.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        let problem = Problem {
            kind: format!("{}{kind}", Problem::KIND_PREFIX),
            title: title(kind).to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            ..Problem::default()
        };
        Self { problem: Box::new(problem), retry_after: None }
    }

    /// A problem that was told already.
    pub(crate) const fn of(problem: Box<Problem>) -> Self {
        Self { problem, retry_after: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    /// With the time after which trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The request can't be understood.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// The caller is nobody that is known.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// The caller may not do this.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// What is asked for contradicts what is there.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", detail)
    }

    /// Something is wrong here, not with the request.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }
}

/// The title of a kind of problem.
fn title(kind: &str) -> &'static str {
    match kind {
        "bad-request" => "The request can't be understood",
        "not-found" => "There is no such thing",
        "method-not-allowed" => "This can't be done with it",
        "unauthorized" => "The caller is not known",
        "forbidden" => "The caller may not do this",
        "conflict" => "What is asked for contradicts what is there",
        "version-changed" => "Somebody else changed it meanwhile",
        "policy-invalid" => "The policy can't be used",
        "in-use" => "It is in use",
        "too-large" => "The request is too large",
        "too-many-requests" => "There are too many requests",
        "unavailable" => "The store can't do this now",
        "identity-refused" => "The job's identity could not be verified",
        "events-out-of-order" => "Events are missing before these",
        _ => "Something went wrong in the store",
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&*self.problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::UNAUTHORIZED {
            headers
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"portcullis\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<DatabaseError> for ApiError {
    fn from(error: DatabaseError) -> Self {
        // What the database says is for the operator: it can hold names of tables, and values.
        if error.is_transient() {
            tracing::warn!(error = %with_causes(&error), "the database is not available");
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the database can't be used now",
            )
            .hint("try again in a moment; the server's log has the reason")
            .retry_after(2);
        }
        if matches!(error, DatabaseError::Stale) {
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the policies keep changing; nothing was written",
            )
            .retry_after(1);
        }
        tracing::error!(error = %with_causes(&error), "the database failed");
        Self::internal("the database failed").hint("the server's log has the reason")
    }
}

/// Everything that is wrong with policies, as one problem.
pub fn invalid_policy(errors: &PolicyErrors) -> ApiError {
    let detail = match errors.errors() {
        [only] => only.message.clone(),
        several => format!("there are {} mistakes", several.len()),
    };
    let mut error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "policy-invalid", detail);
    error.problem.errors = Problem::details(errors);
    error
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        let detail = error.to_string();
        match error {
            ChangeError::Invalid(errors) => invalid_policy(&errors),
            ChangeError::NotFound { .. } => Self::not_found(detail)
                .hint("`portcullis policy list` shows all names"),
            ChangeError::Exists { .. } => Self::conflict(detail).hint("choose another name"),
            ChangeError::VersionChanged { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, "version-changed", detail)
                    .hint("read the newest version, make the change in it, and write that")
            }
            ChangeError::NameDiffers { .. } => {
                Self::bad_request(detail).hint("to give a policy another name, rename it")
            }
            ChangeError::AttachInDocument => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "policy-invalid", detail)
                    .hint("attach the policy by a request of its own, or import the file")
            }
            ChangeError::TargetTaken { .. } => Self::conflict(detail).hint(
                "detach that one first, or replace it; a target has at most one policy, `extends` unites several",
            ),
            ChangeError::NotAttached { .. } => Self::not_found(detail),
            ChangeError::InUse { .. } => Self::new(StatusCode::CONFLICT, "in-use", detail)
                .hint("detach it, and take it out of the others' `extends`, first"),
        }
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Resolve(error) => error.into(),
            AnswerError::Json(_) => Self::internal(with_causes(&error)),
        }
    }
}

impl From<ResolveError> for ApiError {
    fn from(error: ResolveError) -> Self {
        match &error {
            ResolveError::Policy(errors) => invalid_policy(errors),
            ResolveError::DefaultMissing { hint, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "policy-invalid", error.to_string())
                    .hint(hint.clone())
            }
        }
    }
}
