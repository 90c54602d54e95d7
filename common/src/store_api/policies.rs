//! Policies, their versions, and what they are attached to.

use crate::policy::{Attachment, EgressMode, JsonPolicyDocument};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A policy without its endpoints.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PolicySummary {
    /// The name.
    pub name: String,
    /// The newest version, from 1.
    pub version: u64,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its own `egress-policy`; absent when it comes by `extends`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_policy: Option<EgressMode>,
    /// Endpoints that it allows by itself, without those that come by `extends`.
    #[serde(default)]
    pub allowed: u64,
    /// Endpoints that it denies by itself.
    #[serde(default)]
    pub denied: u64,
    /// Whether a detection can kill a job, as far as the policy says so by itself.
    #[serde(default)]
    pub lockdown: bool,
    /// What it is attached to; a policy that is attached to nothing applies to nobody.
    pub attachments: Vec<Attachment>,
    /// When the first version was written.
    pub created_at: Timestamp,
    /// When the newest version was written.
    pub updated_at: Timestamp,
    /// Who wrote it.
    pub updated_by: String,
}

/// `GET /policies:count`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct PolicyCounts {
    /// All policies.
    pub total: u64,
    /// Those that say `egress-policy: block` by themselves.
    pub block: u64,
    /// Those that say `egress-policy: audit` by themselves.
    pub audit: u64,
    /// Those that are attached to nothing.
    pub unattached: u64,
}

/// A policy.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Policy {
    /// All but the document.
    #[serde(flatten)]
    pub summary: PolicySummary,
    /// The document, without `attach`.
    pub document: JsonPolicyDocument,
}

/// One version of a policy; it never changes.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PolicyVersion {
    /// The policy's name at that time.
    pub name: String,
    /// The version, from 1.
    pub version: u64,
    /// Who wrote it.
    pub author: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// When.
    pub created_at: Timestamp,
    /// The document; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<JsonPolicyDocument>,
}

/// What changed between two versions.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PolicyDiff {
    /// The older version.
    pub from: u64,
    /// The newer version.
    pub to: u64,
    /// The documents as YAML, as a unified diff; empty when they are the same.
    pub unified: String,
    /// Endpoints that `to` allows and `from` does not list.
    pub allowed_added: Vec<String>,
    /// Endpoints that `from` allows and `to` does not list.
    pub allowed_removed: Vec<String>,
    /// Endpoints that `to` denies and `from` does not list.
    pub denied_added: Vec<String>,
    /// Endpoints that `from` denies and `to` does not list.
    pub denied_removed: Vec<String>,
}

/// `POST /policies/{name}/restore`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePolicy {
    /// The version to write anew as the newest one.
    pub version: u64,
    /// Why.
    #[serde(default)]
    pub comment: Option<String>,
}

/// `POST /policies/{name}/rename`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RenamePolicy {
    /// The new name.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9-]{0,62}$"))]
    pub name: String,
    /// Why.
    #[serde(default)]
    pub comment: Option<String>,
}

/// `POST` and `DELETE /policies/{name}/attachments`: one target, written as in a policy file.
pub type AttachRequest = Attachment;

/// A target and its policy.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct AttachedPolicy {
    /// The target.
    pub target: Attachment,
    /// The policy.
    pub policy: String,
}

/// What an import did, or would do.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ImportOutcome {
    /// Whether nothing was written, because that was asked for.
    pub dry_run: bool,
    /// Each policy of the bundle, by name.
    pub policies: Vec<ImportedPolicy>,
}

/// What an import did to one policy.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ImportedPolicy {
    /// The policy.
    pub name: String,
    /// `created`, `updated`, `unchanged` or `deleted`.
    pub action: String,
    /// The version after the import.
    pub version: u64,
    /// Targets that the policy is newly attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached: Vec<Attachment>,
    /// Targets that it is no longer attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detached: Vec<Attachment>,
}

/// What a reviewer should know about a policy.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct LintFinding {
    /// The rule: `duplicate-endpoint`.
    pub rule: String,
    /// The endpoint it concerns, as it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What is noteworthy.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// A list of endpoints to add.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// The endpoints as text.
    pub endpoints: Vec<String>,
}
