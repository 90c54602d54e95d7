//! Killing a job: the reason to its runner, SIGKILL to its Worker, its cgroup, its containers; then it is looked whether
//! they are dead.
//!
//! The Worker goes first, for it holds the secrets and would start the next step; the reason before it, because nobody
//! reads a dead Worker's standard error. The rest follows within the same millisecond. The rules stay until all is gone.

use super::containers::JobContainers;
use super::notice::tell_runner;
use crate::caller::Worker;
use crate::cgroup::JobCgroup;
use crate::detect::Finding;
use portcullis_common::event::{DetectionType, PolicyReference};
use portcullis_common::hook::with_causes;
use std::fmt;
use std::time::{Duration, Instant};

/// How long what was killed may take to be gone before it is told that it is not. 500 processes take 25 ms.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a lockdown did, as it was verified.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// From the finding to the Worker's death; `None` when it did not die.
    pub worker_dead_after: Option<Duration>,
    /// Containers that were killed.
    pub containers: usize,
    /// From the finding to the death of everything else.
    pub all_dead_after: Option<Duration>,
    /// What did not work, in words.
    pub problems: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        match self.worker_dead_after {
            Some(after) => {
                write!(
                    formatter,
                    "the job was killed: Worker dead after {:.1} ms",
                    milliseconds(after)
                )?;
            }
            None => formatter.write_str("the job could not be killed")?,
        }
        if let Some(after) = self.all_dead_after {
            write!(formatter, ", everything else after {:.1} ms", milliseconds(after))?;
        }
        if self.containers > 0 {
            write!(formatter, ", {} containers among it", self.containers)?;
        }
        for problem in &self.problems {
            write!(formatter, "; {problem}")?;
        }
        Ok(())
    }
}

/// The reason as the job's page on GitHub shows it.
pub fn reason(policy: &PolicyReference, finding: &Finding) -> String {
    format!(
        "lockdown: {} was detected, and policy {} version {} kills the job for it. {}",
        type_name(finding.detection),
        policy.name,
        policy.version,
        finding.evidence
    )
}

/// The detection's name as policies write it.
pub fn type_name(detection: DetectionType) -> String {
    match serde_json::to_value(detection) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{detection:?}"),
    }
}

/// Kills the job. Every step is tried whatever became of the one before.
pub(super) fn lock_down(
    policy: &PolicyReference,
    worker: &Worker,
    group: Option<&JobCgroup>,
    containers: &dyn JobContainers,
    finding: &Finding,
) -> Outcome {
    let begin = Instant::now();
    let mut outcome = Outcome::default();
    if let Err(error) = tell_runner(worker, &reason(policy, finding)) {
        outcome.problems.push(format!("the runner could not be told why: {error}"));
    }
    if let Err(error) = worker.kill() {
        outcome.problems.push(format!("the Worker could not be killed: {error}"));
    }
    if let Some(Err(error)) = group.map(JobCgroup::kill) {
        outcome
            .problems
            .push(format!("the job's cgroup could not be killed: {}", with_causes(&error)));
    }
    match worker.wait_exit(PATIENCE) {
        Ok(true) => outcome.worker_dead_after = Some(begin.elapsed()),
        Ok(false) => outcome
            .problems
            .push(format!("the Worker was still there {} s after SIGKILL", PATIENCE.as_secs())),
        Err(error) => {
            outcome.problems.push(format!("the Worker's death could not be waited for: {error}"));
        }
    }
    // Looking for containers takes longer than everything before.
    let (killed, problems) = containers.kill(PATIENCE);
    outcome.containers = killed;
    outcome.problems.extend(problems);
    match group.map(|group| group.wait_empty(PATIENCE)) {
        Some(Ok(true)) => outcome.all_dead_after = Some(begin.elapsed()),
        Some(Ok(false)) => outcome.problems.push(format!(
            "processes of the job were still there {} s after they were killed",
            PATIENCE.as_secs()
        )),
        Some(Err(error)) => outcome
            .problems
            .push(format!("the job's cgroup could not be looked at: {}", with_causes(&error))),
        None => outcome.problems.push(
            "the job has no cgroup of its own, so that only its Worker could be killed".to_owned(),
        ),
    }
    outcome
}
