//! What Listener, Worker and test say to each other, one JSON object a line.

use crate::job::{Job, JobResult, StepResult};
use serde::{Deserialize, Serialize};

/// From the test to the Listener, on its standard input; the Listener hands the job, a cancellation and a shutdown on
/// to the Worker by a pipe.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
pub(crate) enum Command {
    /// Run a job.
    Run {
        /// The job.
        job: Box<Job>,
    },
    /// The job was cancelled on GitHub.
    Cancel,
    /// The service stops.
    Shutdown,
}

/// From the Worker to the Listener by a pipe, and from the Listener to the test on its standard output.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "message")]
pub(crate) enum Progress {
    /// The Listener is there.
    Listening,
    /// The Worker was started.
    WorkerStarted {
        /// Its process id.
        pid: u32,
    },
    /// A step begins.
    StepStarted {
        /// The step as it stands at its beginning.
        step: StepResult,
    },
    /// A line of the running step.
    Line {
        /// The line, secrets masked.
        text: String,
    },
    /// A step has ended.
    StepFinished {
        /// The step.
        step: StepResult,
    },
    /// The job has ended: from the Worker what it knows, from the Listener the last word.
    Finished {
        /// The result.
        result: Box<JobResult>,
    },
}
