//! Which policy applies to a job.

use crate::job_context::JobContext;
use crate::resolution::{DefaultPolicy, Resolution};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The header that carries the signature over the answer's body: a JWS with detached payload (RFC 7515, appendix F),
/// `EdDSA` over Ed25519. The body is the payload, so that it can be read without unpacking it.
pub const SIGNATURE_HEADER: &str = "portcullis-signature";

/// `POST /resolve`. `Debug` does not show the token.
#[derive(Clone, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// The job as its hook sees it.
    pub context: JobContext,
    /// GitHub's OIDC token of the job, when it has `id-token: write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
    /// The cluster. A runner's host may leave it out: the store knows it, and refuses another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// What applies when nothing is attached: `audit`, `block` or a policy's name.
    #[serde(default)]
    #[schemars(with = "String")]
    pub default_policy: DefaultPolicy,
    /// Random, chosen anew for each request; the answer repeats it, so that an old answer can't be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub nonce: Option<String>,
}

impl fmt::Debug for ResolveRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ResolveRequest")
            .field("context", &self.context)
            .field("id_token", &self.id_token.as_ref().map(|_| "[redacted]"))
            .field("cluster", &self.cluster)
            .field("default_policy", &self.default_policy)
            .finish_non_exhaustive()
    }
}

/// The answer to `POST /resolve`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Resolved {
    /// The policy and why it is this one.
    #[serde(flatten)]
    pub resolution: Resolution,
    /// The job that was asked for.
    pub context: JobContext,
    /// The cluster that counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The request's nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// When the answer was made.
    pub issued_at: Timestamp,
    /// When it may no longer be acted on as an answer of the store.
    pub expires_at: Timestamp,
}
