//! The report of a job: what `post-job` prints and what is written into the job summary.

mod endpoint;
mod markdown;
mod started;

#[cfg(test)]
pub(crate) mod tests;

pub use endpoint::{FRAME_RULE, endpoint};
pub use markdown::{MAX_MARKDOWN_BYTES, markdown};
pub use started::first_line;

use crate::event::{DetectionEvent, PolicyReference, Posture, Verdict};
use crate::policy::EgressMode;
use crate::resolution::Identity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One row of the table of destinations.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Destination {
    /// As an endpoint of the policy grammar, so that it can be pasted: `registry.npmjs.org:443`, `udp://192.0.2.7:53`.
    pub endpoint: String,
    /// What became of the calls.
    pub verdict: Verdict,
    /// The executable, or `-` when it is not known.
    pub process: String,
    /// The step, or `-` when it is not known.
    pub step: String,
    /// The rule responsible.
    pub rule: String,
    /// How many calls.
    pub count: u64,
}

/// What a job did, and what was in force while it did it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Report {
    /// The job.
    pub job_id: String,
    /// The policy in force.
    pub policy: PolicyReference,
    /// The target the policy is attached to.
    pub target: String,
    /// How sure the store was of the job's identity.
    pub identity: Identity,
    /// Audit or block.
    pub mode: EgressMode,
    /// What was really in force.
    pub posture: Posture,
    /// Calls that went through.
    pub allowed: u64,
    /// Calls that were stopped.
    pub blocked: u64,
    /// Calls that only audit mode let through.
    pub would_block: u64,
    /// Destinations, sorted: blocked first, then by endpoint.
    pub destinations: Vec<Destination>,
    /// How many destinations were left out of `destinations` because there were too many.
    #[serde(default)]
    pub destinations_left_out: u64,
    /// Detections.
    pub detections: Vec<DetectionEvent>,
    /// Whether the policy says that the job fails: a blocked call with `fail-on-block`, a lockdown.
    pub fail_job: bool,
}
