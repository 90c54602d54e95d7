//! One job after the other on one runner: the next one starts when the last one is over.
//!
//! A runner takes its next job as soon as the Worker of the last one has exited. What is left of that job is killed then, and
//! its rules go last; for as long as they are there, they judge the next job too, which has the same user, the same network,
//! and would have its containers killed.

use super::Registry;
use crate::caller::{ProcFs, ProcessTable, WorkerCandidate};
use crate::job::Job;
use portcullis_common::event::EnforcementScope;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long a job waits for the end of the last one. Ends take some 100 ms, and longer when a process or a container does not
/// die; the job then starts nevertheless, and the rules of the last one are told to leave it alone. Well below the time that
/// the hook waits.
const PATIENCE: Duration = Duration::from_secs(8);

impl Registry {
    /// Waits until jobs whose Worker has exited are over, if they judge what the Worker of the next one sends.
    pub(super) fn await_predecessors(&self, next: &WorkerCandidate) {
        let Some(namespace) = ProcFs.network_namespace(next.worker.pid) else { return };
        let is_predecessor = |job: &Arc<Job>| {
            job.state().network_namespace == namespace
                && (job.worker.uid() == next.uid || job.scope() == EnforcementScope::Host)
                && job.worker.has_exited().unwrap_or(false)
        };
        let jobs = self.jobs();
        let (jobs, waited) = self
            .job_ended
            .wait_timeout_while(jobs, PATIENCE, |jobs| jobs.values().any(is_predecessor))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            for job in jobs.values().filter(|job| is_predecessor(job)) {
                tracing::warn!(
                    job.id = job.id(),
                    waited_seconds = PATIENCE.as_secs(),
                    "the job is not over yet, although its Worker has exited; the next one starts beside it"
                );
            }
        }
    }
}
