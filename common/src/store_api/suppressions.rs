//! Suppression rules, and the states of detections.

use super::DetectionRecord;
use crate::policy::Attachment;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /suppressions`: which detections are known and accepted. What is not said is anything; `*` in `endpoint` and
/// `process` stands for any characters.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WriteSuppression {
    /// The type of detection: `Reverse-Shell`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Only in this cluster, organization, repository or workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Attachment>,
    /// Only about this endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Only by this executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// After how many seconds it suppresses nothing more; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u32>,
    /// Why; people read it later.
    #[serde(default)]
    pub reason: String,
}

/// A suppression rule.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Suppression {
    /// Its id.
    pub id: String,
    /// The type of detection.
    #[serde(rename = "type")]
    pub kind: String,
    /// Only in this cluster, organization, repository or workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Attachment>,
    /// Only about this endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Only by this executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Why.
    pub reason: String,
    /// When it ends. What it suppressed until then stays suppressed as long as the rule is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// `active` or `expired`.
    pub state: String,
    /// Detections that it suppresses.
    pub suppressed: u64,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

/// What a rule would suppress of what is there.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct SuppressionPreview {
    /// How many detections.
    pub count: u64,
    /// The newest of them.
    pub examples: Vec<DetectionRecord>,
}

/// `PUT /detections/{id}/state`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WriteDetectionState {
    /// `resolved`, or `new` to open it again.
    pub state: String,
    /// What was done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}
