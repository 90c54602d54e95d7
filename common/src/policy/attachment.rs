//! What a policy can be attached to.

use crate::resolution::ScopeKind;
use crate::text::log_line;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest target in bytes.
const MAX_TARGET_BYTES: usize = 512;

/// A target that a policy is attached to, normalised: GitHub's names in lower case (GitHub does not tell letter case
/// apart in owners and repositories), a workflow's path and a cluster's name as they are written.
#[derive(
    Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(try_from = "AttachmentText", into = "AttachmentText")]
#[schemars(with = "AttachmentText")]
pub struct Attachment {
    /// The kind of target; never [`ScopeKind::Default`].
    scope: ScopeKind,
    /// The target: `prod-linux`, `octo`, `octo/hello`, `octo/hello/.github/workflows/ci.yml`.
    target: String,
}

/// The attachment as it is written: one key, the kind of target.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
enum AttachmentText {
    /// The cluster that a host's `monitor.toml` names.
    Cluster(String),
    /// A GitHub organization or user: `octo`.
    Organization(String),
    /// `owner/name`.
    Repository(String),
    /// `owner/name/.github/workflows/file.yml`, without `@ref`.
    Workflow(String),
}

/// A text names no target.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{}` names no {}", log_line(.target, 120), scope_name(*.scope))]
pub struct AttachmentError {
    /// The kind of target.
    pub scope: ScopeKind,
    /// The text.
    pub target: String,
    /// What to write instead.
    pub hint: &'static str,
}

/// The kind of target as a key: `repository`.
pub const fn scope_name(scope: ScopeKind) -> &'static str {
    match scope {
        ScopeKind::Default => "default",
        ScopeKind::Cluster => "cluster",
        ScopeKind::Organization => "organization",
        ScopeKind::Repository => "repository",
        ScopeKind::Workflow => "workflow",
    }
}

impl fmt::Display for ScopeKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(scope_name(*self))
    }
}

impl Attachment {
    /// Checks and normalises a target.
    ///
    /// # Errors
    /// When the text does not name such a target.
    pub fn new(scope: ScopeKind, target: &str) -> Result<Self, AttachmentError> {
        let (normalised, hint) = match scope {
            ScopeKind::Default => (
                None,
                "a policy is attached to a cluster, organization, repository or workflow; the default is set in monitor.toml",
            ),
            ScopeKind::Cluster => (
                is_cluster(target).then(|| target.to_owned()),
                "write the `cluster` of monitor.toml: 1 to 100 letters, digits, `.`, `_` and `-`",
            ),
            ScopeKind::Organization => (
                is_owner(target).then(|| target.to_ascii_lowercase()),
                "write the organization or user alone, such as `octo`",
            ),
            ScopeKind::Repository => {
                (normalised_repository(target), "write `owner/name`, such as `octo/hello`")
            }
            ScopeKind::Workflow => (
                normalised_workflow(target),
                "write `owner/name/path` without `@ref`, such as `octo/hello/.github/workflows/ci.yml`",
            ),
        };
        match normalised {
            Some(target) => Ok(Self { scope, target }),
            None => Err(AttachmentError { scope, target: target.to_owned(), hint }),
        }
    }

    /// The kind of target.
    pub const fn scope(&self) -> ScopeKind {
        self.scope
    }

    /// The target, normalised.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// As [`Self::target`], for who needs nothing else of it.
    pub fn into_target(self) -> String {
        self.target
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.scope, self.target)
    }
}

impl TryFrom<AttachmentText> for Attachment {
    type Error = String;

    fn try_from(text: AttachmentText) -> Result<Self, Self::Error> {
        let (scope, target) = match text {
            AttachmentText::Cluster(target) => (ScopeKind::Cluster, target),
            AttachmentText::Organization(target) => (ScopeKind::Organization, target),
            AttachmentText::Repository(target) => (ScopeKind::Repository, target),
            AttachmentText::Workflow(target) => (ScopeKind::Workflow, target),
        };
        Self::new(scope, &target).map_err(|error| format!("{error}; {}", error.hint))
    }
}

impl From<Attachment> for AttachmentText {
    fn from(attachment: Attachment) -> Self {
        let target = attachment.target;
        match attachment.scope {
            ScopeKind::Organization => Self::Organization(target),
            ScopeKind::Repository => Self::Repository(target),
            ScopeKind::Workflow => Self::Workflow(target),
            // No attachment has the scope `default`: `Attachment::new` refuses it.
            ScopeKind::Cluster | ScopeKind::Default => Self::Cluster(target),
        }
    }
}

/// Whether `text` can be a cluster's name.
pub fn is_cluster(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether `text` can be a GitHub owner: letters, digits, hyphens, and the underscore of enterprise-managed users.
pub(crate) fn is_owner(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Whether `text` can be a repository's name without its owner.
fn is_repository_name(text: &str) -> bool {
    is_cluster(text) && text != "." && text != ".."
}

/// Whether `text` is `owner/name`.
pub(crate) fn is_repository(text: &str) -> bool {
    text.split_once('/').is_some_and(|(owner, name)| is_owner(owner) && is_repository_name(name))
}

fn normalised_repository(text: &str) -> Option<String> {
    is_repository(text).then(|| text.to_ascii_lowercase())
}

/// `owner/name/path` with the repository in lower case, when the path is one that git can hold.
pub(crate) fn normalised_workflow(text: &str) -> Option<String> {
    let (owner, rest) = text.split_once('/')?;
    let (name, path) = rest.split_once('/')?;
    let segments = path.split('/').all(|s| !s.is_empty() && s != "." && s != "..");
    let letters = !path.chars().any(|c| c.is_control() || c == '\\') && !path.contains("@refs/");
    (text.len() <= MAX_TARGET_BYTES
        && is_owner(owner)
        && is_repository_name(name)
        && segments
        && letters)
        .then(|| format!("{}/{}/{path}", owner.to_ascii_lowercase(), name.to_ascii_lowercase()))
}
