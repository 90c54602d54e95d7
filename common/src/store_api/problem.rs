//! Errors of the API: problem documents after RFC 9457.

use crate::diagnostic::Diagnostic;
use crate::policy::{PolicyError, PolicyErrors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A problem document (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Problem {
    /// The kind of problem: `urn:portcullis:problem:policy-invalid`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words, the same for every problem of the kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Everything that is wrong with a document that was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProblemDetail>,
    /// The sequence number from which events are expected, when those that were sent don't follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_seq: Option<u64>,
    /// The request's id, which stands in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// One mistake in a document that was sent.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct ProblemDetail {
    /// Where: `policy.yaml:3:5`.
    pub place: String,
    /// The key it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl From<&PolicyError> for ProblemDetail {
    fn from(error: &PolicyError) -> Self {
        Self {
            place: error.place.to_string(),
            key: error.key.clone(),
            message: error.message.clone(),
            hint: error.hint.clone(),
        }
    }
}

impl Problem {
    /// How the kinds of this store's problems begin; what another server answers has another kind, or none.
    pub const KIND_PREFIX: &str = "urn:portcullis:problem:";

    /// The mistakes of policy documents.
    pub fn details(errors: &PolicyErrors) -> Vec<ProblemDetail> {
        errors.errors().iter().map(ProblemDetail::from).collect()
    }

    /// The problem for a person: each mistake as a directory of files would tell it, or what happened.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        if self.errors.is_empty() {
            return vec![Diagnostic { message: self.detail.clone(), hint: self.hint.clone() }];
        }
        self.errors
            .iter()
            .map(|error| {
                let message = match &error.key {
                    Some(key) => format!("{}: `{key}`: {}", error.place, error.message),
                    None => format!("{}: {}", error.place, error.message),
                };
                Diagnostic::new(message, error.hint.clone())
            })
            .collect()
    }
}
