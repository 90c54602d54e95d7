//! Jobs, their events and what is told of them.

use crate::event::{Event, PolicyReference, PostureLevel, Verdict};
use crate::job_context::JobContext;
use crate::policy::EgressMode;
use crate::report::Report;
use crate::resolution::Identity;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /jobs`: a job has begun. Sending it again changes nothing.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// The job's id, chosen by the host: 32 hexadecimal digits, a UUID.
    pub id: String,
    /// The job as its hook saw it.
    pub context: JobContext,
    /// The policy in force.
    pub policy: PolicyReference,
    /// The target that the policy is attached to.
    pub target: String,
    /// How sure the store was of the job's identity.
    pub identity: Identity,
    /// Audit or block.
    pub mode: EgressMode,
    /// When the policy was bound.
    pub started_at: Timestamp,
}

/// What of a job the store has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Accepted {
    /// Every event up to this number is stored; the next batch starts behind it.
    pub last_seq: u64,
}

/// A job as the store knows it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct JobRecord {
    /// The job's id.
    pub id: String,
    /// The job as its hook saw it.
    pub context: JobContext,
    /// The cluster of its host.
    pub cluster: String,
    /// Its host.
    pub host: String,
    /// The policy in force.
    pub policy: PolicyReference,
    /// The target that the policy is attached to.
    pub target: String,
    /// How sure the store was of the job's identity.
    pub identity: Identity,
    /// The workflow that holds the job, as its OIDC token says: `octo/shared/.github/workflows/build.yml@refs/tags/v1`. Another
    /// one than the context's when a reusable workflow runs; absent when the store verified no token of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_workflow_ref: Option<String>,
    /// Audit or block.
    pub mode: EgressMode,
    /// `running` or `ended`.
    pub state: String,
    /// When the policy was bound.
    pub started_at: Timestamp,
    /// When the report came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Events stored.
    pub events: u64,
    /// Calls that went through.
    pub allowed: u64,
    /// Calls that were stopped.
    pub blocked: u64,
    /// Calls that only audit mode let through.
    pub would_block: u64,
    /// Detections.
    pub detections: u64,
    /// What was in force, by the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub posture: Option<PostureLevel>,
    /// The report, when it was asked for one job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<Report>>,
}

/// One attempt of a run of a workflow.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Run {
    /// `RUN_ID-ATTEMPT`.
    pub id: String,
    /// GitHub's id of the run.
    pub run_id: u64,
    /// The attempt, from 1.
    pub run_attempt: u32,
    /// `owner/name`.
    pub repository: String,
    /// The workflow's display name.
    pub workflow: String,
    /// `running` while a job of it runs, else `ended`.
    pub state: String,
    /// When its first job began.
    pub started_at: Timestamp,
    /// Jobs.
    pub jobs: u64,
    /// Calls that were stopped.
    pub blocked: u64,
    /// Calls that only audit mode let through.
    pub would_block: u64,
    /// Detections.
    pub detections: u64,
}

/// A run with its jobs.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct RunJobs {
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// Its jobs, the oldest first.
    pub job_records: Vec<JobRecord>,
}

/// An event as it is read back.
pub type RecordedEvent = Event;

/// A detection with where it happened.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DetectionRecord {
    /// Its id.
    pub id: String,
    /// The job.
    pub job_id: String,
    /// The event's number in the job; absent for what the store found by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The type: `Reverse-Shell`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When.
    pub time: Timestamp,
    /// `owner/name`.
    pub repository: String,
    /// The workflow: `octo/hello/.github/workflows/ci.yml`.
    pub workflow: String,
    /// GitHub's id of the run.
    pub run_id: u64,
    /// What was seen.
    pub evidence: String,
    /// Whether the job was killed for it.
    pub is_lockdown: bool,
    /// The process, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// The endpoint, when it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `new`, `suppressed` or `resolved`.
    pub state: String,
    /// The rule that suppresses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suppressed_by: Option<String>,
    /// When it was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_at: Option<Timestamp>,
    /// Who resolved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_by: Option<String>,
    /// What was done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<String>,
}

/// A destination over many jobs.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DestinationSummary {
    /// As an endpoint of the policy grammar.
    pub endpoint: String,
    /// What became of the calls.
    pub verdict: Verdict,
    /// Calls.
    pub calls: u64,
    /// Runs with such a call.
    pub runs: u64,
    /// The first one.
    pub first_seen: Timestamp,
    /// The last one.
    pub last_seen: Timestamp,
}
