//! Who may do what: people's tokens, runner hosts, and the record of changes.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a caller may do. The first three are each contained in the next.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A runner host: resolves and uploads, and reads nothing.
    Runner,
    /// Reads everything but secrets.
    Viewer,
    /// Changes policies, attachments and suppressions.
    Editor,
    /// Changes who may do what.
    Admin,
}

impl Role {
    /// Whether a caller of this role may do what `needed` allows. A runner and people share nothing.
    pub const fn allows(self, needed: Self) -> bool {
        match (self, needed) {
            (Self::Runner, Self::Runner)
            | (Self::Viewer | Self::Editor | Self::Admin, Self::Viewer)
            | (Self::Editor | Self::Admin, Self::Editor)
            | (Self::Admin, Self::Admin) => true,
            (Self::Viewer | Self::Editor | Self::Admin, Self::Runner)
            | (Self::Runner, Self::Viewer | Self::Editor | Self::Admin)
            | (Self::Viewer, Self::Editor | Self::Admin)
            | (Self::Editor, Self::Admin) => false,
        }
    }

    /// The role as text: `editor`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runner => "runner",
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A text is no role.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("there is no such role; it can be admin, editor, viewer or runner")]
pub struct RoleError;

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Runner, Self::Viewer, Self::Editor, Self::Admin]
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or(RoleError)
    }
}

/// A token for the API, without its secret.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// Whose it is, or what it is for.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was used last, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// `POST /tokens`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Whose it is, or what it is for.
    #[schemars(length(min = 1, max = 100))]
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it ends, in seconds from now; absent: never.
    #[serde(default)]
    pub expires_in_seconds: Option<u32>,
}

/// A secret that is shown this once. `Debug` does not show it.
#[derive(Clone, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct CreatedSecret {
    /// The id by which it is listed and revoked.
    pub id: String,
    /// The secret. The store keeps a hash of it only.
    pub secret: String,
    /// When it ends; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl fmt::Debug for CreatedSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CreatedSecret").field("id", &self.id).finish_non_exhaustive()
    }
}

/// `POST /enrolments`: allow one host to enrol.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateEnrolment {
    /// The cluster that the host will belong to.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,100}$"))]
    pub cluster: String,
    /// How long the enrolment token can be used; absent: an hour.
    #[serde(default)]
    pub expires_in_seconds: Option<u32>,
    /// How many hosts may enrol with it, for images; absent: one.
    #[serde(default)]
    pub hosts: Option<u32>,
}

/// An enrolment token, without its secret.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Enrolment {
    /// Its id.
    pub id: String,
    /// The cluster.
    pub cluster: String,
    /// How many hosts may still enrol with it.
    pub hosts_left: u32,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// `POST /enrol`, with the enrolment token as bearer.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// What the host calls itself.
    #[schemars(length(min = 1, max = 100))]
    pub host_name: String,
}

/// What a host gets when it enrols. `Debug` does not show the credential.
#[derive(Clone, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Enrolled {
    /// The host's id.
    pub host_id: String,
    /// The cluster it belongs to.
    pub cluster: String,
    /// Its credential, shown this once.
    pub credential: String,
    /// When the credential was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
    /// When the credential ends, unless the host renews it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The keys that answers are signed with; the host trusts these and no others.
    pub signing_keys: Vec<PublicKey>,
    /// The audience that GitHub's OIDC tokens for this store must have.
    pub audience: String,
}

impl fmt::Debug for Enrolled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Enrolled")
            .field("host_id", &self.host_id)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// An Ed25519 key that verifies answers, as JWK (RFC 8037).
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct PublicKey {
    /// `OKP`.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// Its id: the JWK thumbprint (RFC 7638).
    pub kid: String,
    /// The key, base64url.
    pub x: String,
}

/// What a host keeps of its enrolment, in its credential file (`[store] credential-file` of `monitor.toml`).
/// `Debug` does not show the secret.
#[derive(Clone, Deserialize, PartialEq, Serialize)]
pub struct Credential {
    /// The host's id.
    pub host_id: String,
    /// The secret.
    pub credential: String,
    /// When the secret was made; absent: by a store that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
    /// When the secret ends; absent: by a store that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The keys that answers are signed with.
    pub signing_keys: Vec<PublicKey>,
    /// The audience that GitHub's OIDC tokens for this store must have.
    pub audience: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credential").field("host_id", &self.host_id).finish_non_exhaustive()
    }
}

/// An enrolled runner host.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Host {
    /// Its id.
    pub id: String,
    /// What it calls itself.
    pub name: String,
    /// The cluster it belongs to.
    pub cluster: String,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
    /// When it was heard of last, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<Timestamp>,
    /// When its credentials were revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// The version of its monitor, by the last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The release of its kernel, by the last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// `POST /host/heartbeat`: a host's monitor says that it is there, and what it is. Fields that a store does not know are
/// passed over, so that a newer monitor can speak to it.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Heartbeat {
    /// The monitor's version.
    #[schemars(length(min = 1, max = 100))]
    pub version: String,
    /// The release of the kernel, as `uname -r` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100))]
    pub kernel: Option<String>,
}

/// One change, or one attempt to become somebody.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct AuditEntry {
    /// Its number; they grow with time.
    pub id: i64,
    /// When.
    pub time: Timestamp,
    /// Who: `token:ci`, `host:…`, `system`.
    pub actor: String,
    /// What: `policy.write`.
    pub action: String,
    /// To what: `policy:node-build`.
    pub subject: String,
    /// More about it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Where the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}
