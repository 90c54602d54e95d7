//! Answers to findings: a detection that the policy lists under Lockdown Mode kills the job, every other one is recorded.
//!
//! [`decide`] is the decision, as a value; [`lockdown`] acts, in one place, and verifies what was done. Whoever has a
//! finding hands it to [`Responder::answer`], on any thread.

pub mod containers;
pub mod lockdown;
mod notice;

pub use lockdown::type_name;
pub use notice::tell_runner;

use crate::caller::Worker;
use crate::cgroup::JobCgroup;
use crate::detect::Finding;
use crate::record::recorder::Recorder;
use containers::JobContainers;
use lockdown::{Outcome, lock_down};
use portcullis_common::event::{DetectionEvent, DetectionType, PolicyReference};
use portcullis_common::policy::LockdownMode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How many findings of one type are recorded one by one; a job can make as many as it likes. The others are counted.
const RECORDED_OF_TYPE: u64 = 500;

/// What follows from a finding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The job is killed.
    Lockdown,
    /// The finding is recorded.
    Record,
}

/// What the policy says about a detection. The policy is the one that was resolved for the job, so that a more specific one
/// without Lockdown Mode is an exemption.
pub fn decide(detection: DetectionType, lockdown: &LockdownMode) -> Decision {
    match detection {
        DetectionType::Lockdown(detection)
            if lockdown.enabled && lockdown.detections.contains(&detection) =>
        {
            Decision::Lockdown
        }
        DetectionType::Lockdown(_) | DetectionType::Recorded(_) => Decision::Record,
    }
}

/// Answers the findings of one job.
#[derive(Debug)]
pub struct Responder {
    job_id: String,
    policy: PolicyReference,
    lockdown: LockdownMode,
    worker: Arc<Worker>,
    group: Option<JobCgroup>,
    containers: Arc<dyn JobContainers>,
    recorder: Arc<Recorder>,
    state: Mutex<State>,
}

/// What was answered so far. Held during an answer, so that a job is killed once and its end waits for the record.
#[derive(Debug, Default)]
struct State {
    is_locked_down: bool,
    counts: HashMap<DetectionType, u64>,
}

/// What a [`Responder`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The job's id.
    pub job_id: String,
    /// How events name the job's policy.
    pub policy: PolicyReference,
    /// Its Lockdown Mode.
    pub lockdown: LockdownMode,
    /// The job's Worker.
    pub worker: Arc<Worker>,
    /// The job's group.
    pub group: Option<JobCgroup>,
    /// The containers that the job has started.
    pub containers: Arc<dyn JobContainers>,
    /// Where the answer is recorded.
    pub recorder: Arc<Recorder>,
}

impl Responder {
    /// Answers for the job of `parts`.
    pub fn new(parts: Parts) -> Self {
        let Parts { job_id, policy, lockdown, worker, group, containers, recorder } = parts;
        let state = Mutex::default();
        Self { job_id, policy, lockdown, worker, group, containers, recorder, state }
    }

    /// Where answers are recorded, for what is told beside a finding.
    pub const fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Records the finding, and kills the job before that when its policy says so. Returns what was decided. Blocks until
    /// the job is dead; findings of the same job that come meanwhile wait.
    pub fn answer(&self, finding: Finding) -> Decision {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let decision = decide(finding.detection, &self.lockdown);
        let count = state.counts.entry(finding.detection).or_default();
        *count += 1;
        let is_too_many = *count > RECORDED_OF_TYPE;
        if decision == Decision::Lockdown && !state.is_locked_down {
            state.is_locked_down = true;
            let outcome = lock_down(
                &self.policy,
                &self.worker,
                self.group.as_ref(),
                self.containers.as_ref(),
                &finding,
            );
            self.record(finding, Some(&outcome));
        } else if !is_too_many {
            self.record(finding, None);
        }
        decision
    }

    /// Records the finding and kills nothing, whatever the policy says: it can't be told whether it is this job's.
    pub fn record_only(&self, finding: Finding) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = state.counts.entry(finding.detection).or_default();
        *count += 1;
        if *count <= RECORDED_OF_TYPE {
            self.record(finding, None);
        }
    }

    /// Whether the policy kills the job for this detection.
    pub fn would_lock_down(&self, detection: DetectionType) -> bool {
        decide(detection, &self.lockdown) == Decision::Lockdown
    }

    /// Whether the job was killed by a lockdown. Waits for an answer that is under way.
    pub fn is_locked_down(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_locked_down
    }

    /// Findings that were counted only, because there were too many of their type.
    pub fn not_recorded(&self) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counts.values().map(|count| count.saturating_sub(RECORDED_OF_TYPE)).sum()
    }

    fn record(&self, finding: Finding, outcome: Option<&Outcome>) {
        let evidence = match outcome {
            Some(outcome) => format!("{}; {outcome}", finding.evidence),
            None => finding.evidence,
        };
        if outcome.is_some() {
            tracing::error!(
                job.id = self.job_id,
                policy = self.policy.name,
                detection = type_name(finding.detection),
                evidence,
                "lockdown: the job was killed"
            );
        } else {
            tracing::warn!(
                job.id = self.job_id,
                detection = type_name(finding.detection),
                evidence,
                "detection"
            );
        }
        self.recorder.detection(DetectionEvent {
            detection: finding.detection,
            evidence,
            is_lockdown: outcome.is_some(),
            process: finding.process,
        });
    }
}

#[cfg(test)]
mod tests;
