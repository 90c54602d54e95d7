//! What is shown at a glance: the last day, a job over time, what has been seen, what is in force on hosts.

use super::DestinationSummary;
use crate::event::{Posture, PostureLevel};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /summary`: what happened since a time.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Summary {
    /// Since when.
    pub since: Timestamp,
    /// Runs that began.
    pub runs: u64,
    /// Jobs that began.
    pub jobs: u64,
    /// Jobs of these that go on.
    pub running: u64,
    /// Calls that were stopped.
    pub blocked: u64,
    /// Calls that only audit mode let through.
    pub would_block: u64,
    /// Detections.
    pub detections: u64,
    /// Jobs that were killed for one.
    pub lockdowns: u64,
    /// Jobs that ended with less in force than their policy asks for.
    pub weak_jobs: u64,
    /// Destinations that no earlier job called.
    pub new_destinations: u64,
    /// The most called of them.
    pub newest: Vec<DestinationSummary>,
    /// By hour of the jobs' beginning, the oldest first; hours without jobs as well.
    pub hours: Vec<SummaryHour>,
}

/// One hour.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct SummaryHour {
    /// When it begins.
    pub time: Timestamp,
    /// Jobs that began.
    pub jobs: u64,
    /// Calls that went through because a rule allows them.
    pub allowed: u64,
    /// Calls that were stopped.
    pub blocked: u64,
    /// Calls that only audit mode let through.
    pub would_block: u64,
}

/// `GET /jobs/{id}/timeline`: a job's calls over time.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Timeline {
    /// How long each part is, in seconds.
    pub seconds: u64,
    /// The parts, the oldest first; those without calls as well.
    pub parts: Vec<TimelinePart>,
}

/// Events of calls within one part of the time.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct TimelinePart {
    /// When it begins.
    pub time: Timestamp,
    /// Calls that went through because a rule allows them.
    pub allowed: u64,
    /// Calls that were stopped.
    pub blocked: u64,
    /// Calls that only audit mode let through.
    pub would_block: u64,
}

/// What was in force on a host, by the last report of a job on it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct HostState {
    /// The host.
    pub host_id: String,
    /// The job.
    pub job_id: String,
    /// When the job began.
    pub time: Timestamp,
    /// The summary.
    pub level: PostureLevel,
    /// What is less than it should be, in few words: the mechanism that is missed most, or the first warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The mechanisms and warnings, when one host was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub posture: Option<Posture>,
}
