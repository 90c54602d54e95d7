//! Integrations: who is told what happened, and what became of telling them.

use crate::event::{PolicyReference, Process, Verdict};
use crate::policy::Attachment;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Text that is taken and never given back. `Debug` does not show it.
#[derive(Clone, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[hidden]")
    }
}

/// How what happened is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageFormat {
    /// `{"type", "timestamp", "data"}`, where `data` is a `Notification`.
    #[default]
    Portcullis,
    /// A Detection Finding of the Open Cybersecurity Schema Framework, 1.3.0.
    Ocsf,
}

/// What an integration is told. What is not said is not asked for: by default every detection, from everywhere.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question that people answer by itself"
)]
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Whether detections are told.
    pub detections: bool,
    /// Only detections of these types; empty: of every type.
    #[serde(alias = "detection-types")]
    pub detection_types: Vec<String>,
    /// Only detections for which the job was killed.
    #[serde(alias = "lockdown-only")]
    pub lockdown_only: bool,
    /// Whether destinations that a job was kept from are told, each once a job.
    #[serde(alias = "blocked-calls")]
    pub blocked_calls: bool,
    /// Whether destinations that only audit mode let through are told, each once a job.
    #[serde(alias = "would-block-calls")]
    pub would_block_calls: bool,
    /// Only of these clusters, organizations, repositories and workflows; empty: from everywhere.
    pub scopes: Vec<Attachment>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            detections: true,
            detection_types: Vec::new(),
            lockdown_only: false,
            blocked_calls: false,
            would_block_calls: false,
            scopes: Vec::new(),
        }
    }
}

/// Where an integration tells, as it is written. Secrets that are left out of a change stay as they are.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "kind")]
pub enum WriteTarget {
    /// A request to an address, signed after the Standard Webhooks text.
    Webhook {
        /// The address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<Secret>,
        /// The key of signatures: `whsec_` and 24 to 64 bytes in base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secret: Option<Secret>,
        /// Headers of every request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        headers: Option<BTreeMap<String, Secret>>,
        /// How messages are written.
        #[serde(default)]
        format: MessageFormat,
    },
    /// An incoming webhook of Slack.
    Slack {
        /// The address that Slack gave, which is a secret.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<Secret>,
    },
    /// A bucket of an S3-compatible object store.
    S3 {
        /// The bucket.
        bucket: String,
        /// Its region: `eu-central-1`.
        region: String,
        /// Another server than AWS: `https://minio.example.com`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// What names of objects begin with.
        #[serde(default)]
        prefix: String,
        /// The id of the access key.
        #[serde(alias = "access-key-id")]
        access_key_id: String,
        /// The access key.
        #[serde(alias = "secret-access-key", default, skip_serializing_if = "Option::is_none")]
        secret_access_key: Option<Secret>,
        /// Whether every batch of raw events becomes an object as well.
        #[serde(default)]
        events: bool,
        /// How messages are written.
        #[serde(default)]
        format: MessageFormat,
    },
    /// A collector of OpenTelemetry logs, OTLP over HTTP with JSON.
    Otlp {
        /// The address: `https://collector.example.com/v1/logs`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<Secret>,
        /// Headers of every request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        headers: Option<BTreeMap<String, Secret>>,
    },
}

/// Where an integration tells, without what is secret. Of an address only the host is shown: tokens stand in paths.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Target {
    /// A request to an address, signed after the Standard Webhooks text.
    Webhook {
        /// Scheme, host and port.
        origin: String,
        /// The names of the headers that requests have.
        header_names: Vec<String>,
        /// How messages are written.
        format: MessageFormat,
    },
    /// An incoming webhook of Slack.
    Slack {
        /// Scheme, host and port.
        origin: String,
    },
    /// A bucket of an S3-compatible object store.
    S3 {
        /// The bucket.
        bucket: String,
        /// Its region.
        region: String,
        /// Another server than AWS.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// What names of objects begin with.
        prefix: String,
        /// The id of the access key.
        access_key_id: String,
        /// Whether every batch of raw events becomes an object as well.
        events: bool,
        /// How messages are written.
        format: MessageFormat,
    },
    /// A collector of OpenTelemetry logs.
    Otlp {
        /// Scheme, host and port.
        origin: String,
        /// The names of the headers that requests have.
        header_names: Vec<String>,
    },
}

/// `POST /integrations` and `PUT /integrations/{id}`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WriteIntegration {
    /// What people call it.
    pub name: String,
    /// Where it tells.
    pub target: WriteTarget,
    /// What it is told.
    #[serde(default)]
    pub selection: Selection,
    /// Whether it is told anything now; what it was not told in time waits.
    #[serde(default = "yes")]
    pub enabled: bool,
}

const fn yes() -> bool {
    true
}

/// An integration as it is shown.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Integration {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it tells.
    pub target: Target,
    /// What it is told.
    pub selection: Selection,
    /// Whether it is told anything now.
    pub enabled: bool,
    /// Deliveries that wait.
    pub pending: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// It waits for its first or next attempt.
    Pending,
    /// The target has taken it.
    Delivered,
    /// It was given up; it can be tried again by hand.
    Dead,
}

/// One thing that an integration is told, or was.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Delivery {
    /// Its id; receivers see it as `webhook-id`, the same with each attempt.
    pub id: String,
    /// The integration.
    pub integration: String,
    /// What it tells: `detection.created`, `calls.blocked`, `events`, `test`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What became of it.
    pub state: DeliveryState,
    /// When it happened.
    pub created_at: Timestamp,
    /// Attempts so far.
    pub attempts: u32,
    /// The next attempt, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// The last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Timestamp>,
    /// The status of the target's last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What a notification is about.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum NotificationKind {
    /// A detection.
    #[serde(rename = "detection.created")]
    Detection,
    /// Calls that were stopped, or would have been.
    #[serde(rename = "calls.blocked")]
    Calls,
    /// Somebody tries whether the integration works.
    #[serde(rename = "test")]
    Test,
}

impl NotificationKind {
    /// The kind as a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Detection => "detection.created",
            Self::Calls => "calls.blocked",
            Self::Test => "test",
        }
    }
}

/// Calls to one destination, by one program.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct ToldCall {
    /// As an endpoint of the policy grammar.
    pub endpoint: String,
    /// `blocked` or `would-block`.
    pub verdict: Verdict,
    /// The executable, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// How often, as far as it is known now.
    pub calls: u64,
}

/// What an integration is told.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Notification {
    /// The id of what happened: the detection's, for one.
    pub id: String,
    /// What it is about.
    pub kind: NotificationKind,
    /// When it happened.
    pub time: Timestamp,
    /// The type of detection: `Reverse-Shell`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<String>,
    /// What was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Whether the job was killed for it.
    pub is_lockdown: bool,
    /// The endpoint, when the detection is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Calls, when it is about them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<ToldCall>,
    /// Calls beyond those that are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_calls: u64,
    /// The policy in force.
    pub policy: PolicyReference,
    /// The cluster of the host.
    pub cluster: String,
    /// The organization.
    pub organization: String,
    /// `owner/name`.
    pub repository: String,
    /// `octo/hello/.github/workflows/ci.yml`.
    pub workflow: String,
    /// GitHub's id of the run.
    pub run_id: u64,
    /// The attempt, from 1.
    pub run_attempt: u32,
    /// The job's key in its workflow.
    pub job: String,
    /// The job's id in the store.
    pub job_id: String,
    /// Where a person sees more.
    #[serde(default)]
    pub link: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}
