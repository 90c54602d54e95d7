//! Policies: the document as written, and what it means for a job once `extends` is followed.

mod attachment;
mod document;
mod effective;
pub(crate) mod error;
mod extends;
mod name;
mod yaml;

use crate::endpoint::Endpoint;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

pub use attachment::{Attachment, AttachmentError};
pub use attachment::{is_cluster, scope_name};
pub(crate) use attachment::{is_owner, is_repository, normalised_workflow};
pub use document::{EndpointList, JsonPolicyDocument, PolicyDocument, WrittenEndpoint};
pub use effective::{DEFAULT_AUDIT, DEFAULT_BLOCK};
pub use error::{Place, PolicyError, PolicyErrors};
pub(crate) use extends::Completeness;
pub use extends::{Library, PolicyRules};
pub use name::{PolicyName, PolicyNameError};
pub(crate) use yaml::too_large;
pub use yaml::{MAX_FILE_BYTES, SourceDocument, parse_documents};

/// What happens to a call that no endpoint allows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressMode {
    /// It is recorded as `would-block` and goes through.
    #[default]
    Audit,
    /// It is dropped and recorded as `blocked`.
    Block,
}

/// What happens when a policy can't be had or can't be put in force (DESIGN §7 in `docs/architecture.md`).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureMode {
    /// The job does not run.
    #[default]
    Closed,
    /// The policy of the last successful resolution applies; without one, as `closed`.
    LastKnownGood,
    /// The job runs and is only watched; never silently.
    Audit,
}

/// The detection types that Lockdown Mode can answer.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum LockdownDetection {
    /// A container with the host's privileges was started.
    #[serde(rename = "Privileged-Container")]
    PrivilegedContainer,
    /// The memory of Runner.Worker, Runner.Listener or the monitor was accessed.
    #[serde(rename = "Runner-Worker-Memory-Read")]
    RunnerWorkerMemoryRead,
    /// A shell whose standard streams lead to a remote peer.
    #[serde(rename = "Reverse-Shell")]
    ReverseShell,
}

/// `lockdown-mode` of a policy.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LockdownMode {
    /// Whether a listed detection kills the job.
    #[serde(default)]
    pub enabled: bool,
    /// The detections that kill the job; others are recorded only.
    #[serde(default)]
    pub detections: Vec<LockdownDetection>,
}

/// An endpoint with the place it was written in, so that a verdict can name the rule responsible.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Rule {
    /// What is allowed or denied.
    pub endpoint: Endpoint,
    /// The endpoint as its author wrote it: `*.npmjs.org:443`.
    pub text: Arc<str>,
    /// The policy the endpoint stands in; differs from the effective policy's name when it came by `extends`.
    pub policy: Arc<str>,
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// A policy with `extends` followed: what is in force for a job.
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the policy document")]
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct EffectivePolicy {
    /// The policy's name.
    pub name: String,
    /// Identifies the exact content: a counter in a served store, a content hash in the embedded one.
    pub version: String,
    /// What happens to calls that nothing allows.
    pub egress: EgressMode,
    /// What may be reached; united over `extends`, without duplicates, in order of first mention. Rules are shared: there can
    /// be tens of thousands, and a job's resolver, rules and events all need them.
    pub allowed: Vec<Arc<Rule>>,
    /// What must not be reached, also in audit mode; wins over `allowed`.
    pub denied: Vec<Arc<Rule>>,
    /// Whether a blocked call also fails the job.
    pub fail_on_block: bool,
    /// Whether setuid programs stop working for the job.
    pub disable_sudo: bool,
    /// Whether in addition the container engines' sockets are closed to the job.
    pub disable_sudo_and_containers: bool,
    /// Whether file events are left out.
    pub disable_file_monitoring: bool,
    /// Whether events stay on the host.
    pub disable_telemetry: bool,
    /// What happens when this policy can't be put in force; `None` leaves it to the host's configuration.
    pub on_failure: Option<FailureMode>,
    /// Lockdown Mode.
    pub lockdown: LockdownMode,
}
