//! Resolution: from a job's context to the one policy that applies, with the reason.
//!
//! The most specific attached policy wins: workflow, repository, organization, cluster, then the host's default.
//! The workflow is that of `GITHUB_WORKFLOW_REF`, which may live in another repository than the job's (a required workflow of
//! an organization); the repository and the organization are those of `GITHUB_REPOSITORY`.

mod set;

#[cfg(test)]
mod tests;

use crate::policy::EffectivePolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use set::{Choice, Chosen, DefaultPolicy, HostDefaults, PolicySet, ResolveError};

/// Where a policy can be attached, the most specific last: the order is the precedence.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ScopeKind {
    /// Nothing is attached: the host's default policy.
    Default,
    /// A fleet of runners under one operator.
    Cluster,
    /// A GitHub organization or user.
    Organization,
    /// `owner/name`.
    Repository,
    /// `owner/name/.github/workflows/file.yml`.
    Workflow,
}

/// One attachment target that was looked at during a resolution.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Considered {
    /// The kind of target.
    pub scope: ScopeKind,
    /// The target: `octo/hello`.
    pub target: String,
    /// The policy attached to it, if any.
    pub policy: Option<String>,
    /// Why it applies or does not, in words for a person.
    pub reason: String,
    /// Whether this is the one that applies.
    pub chosen: bool,
}

/// How sure the store is of the job's identity.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// Only the hook's environment says so.
    #[default]
    Asserted,
    /// A GitHub OIDC token says the same and was verified.
    Verified,
}

/// The answer to "which policy applies to this job?".
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Resolution {
    /// The policy that applies.
    pub policy: EffectivePolicy,
    /// The kind of target that matched.
    pub scope: ScopeKind,
    /// The target that matched, `default` for the host's default.
    pub target: String,
    /// How sure the store is of the job's identity.
    pub identity: Identity,
    /// Every target that was looked at, the most specific first.
    pub considered: Vec<Considered>,
}
