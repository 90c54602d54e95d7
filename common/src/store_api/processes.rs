//! The processes of a job as a tree.

use crate::event::Verdict;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A program that a process executed.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Execution {
    /// The event's number.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// The executable, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// How many executions this stands for.
    pub count: u64,
}

/// Where a process called.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct ProcessCall {
    /// As an endpoint of the policy grammar.
    pub endpoint: String,
    /// What became of the calls.
    pub verdict: Verdict,
    /// How many.
    pub calls: u64,
}

/// What the events of a job say of one process.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ProcessNode {
    /// The process id; absent for what is known by its user only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Start time in clock ticks since boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// The executable, the last that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The command line, the last that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// The real user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// When an event first named it; absent when it is known as an ancestor only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Timestamp>,
    /// The programs that it executed, where that was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub executions: Vec<Execution>,
    /// Where it called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<ProcessCall>,
    /// Files that it changed, where that was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Detections that name it, by their type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detections: Vec<String>,
    /// What it started, in the order in which it was seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Self>,
}

/// `GET /jobs/{id}/process-tree`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ProcessTree {
    /// The job.
    pub job_id: String,
    /// Processes in the tree.
    pub processes: u64,
    /// Processes whose parent is not known: usually the Worker alone.
    pub roots: Vec<ProcessNode>,
    /// Whether every event of the job went into it; a job can have more than one answer holds.
    pub complete: bool,
}
