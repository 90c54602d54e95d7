//! How many runners there are: what decides between the scopes `host` and `job`.

use super::lineage;
use super::table::{ProcessEntry, ProcessKey, ProcessTable};

/// The runners beside a Worker's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RunnerSurvey {
    /// Listeners in the Worker's network namespace, its own among them.
    pub listeners_in_network_namespace: usize,
    /// Whether another Listener, in whatever network namespace, runs as the Worker's user.
    pub user_is_shared: bool,
}

/// Counts the Listeners beside the one that started `worker`.
///
/// A Listener below any Worker is not counted: a job can start a program of that name.
pub fn survey_runners(table: &impl ProcessTable, worker: &super::WorkerCandidate) -> RunnerSurvey {
    let namespace = table.network_namespace(worker.worker.pid);
    let mut survey = RunnerSurvey { listeners_in_network_namespace: 0, user_is_shared: false };
    for listener in listeners(table) {
        let own = listener.key == worker.listener;
        if own || (namespace.is_some() && table.network_namespace(listener.key.pid) == namespace) {
            survey.listeners_in_network_namespace += 1;
        }
        survey.user_is_shared |= !own && listener.uid == worker.uid;
    }
    survey
}

/// Every Listener that is not a job's own.
fn listeners(table: &impl ProcessTable) -> Vec<ProcessEntry> {
    table
        .pids()
        .into_iter()
        .filter_map(|pid| table.process(pid))
        .filter(|entry| entry.is_named_listener() && !is_below_worker(table, entry.key))
        .collect()
}

/// Whether an ancestor of the process is named `Runner.Worker`.
fn is_below_worker(table: &impl ProcessTable, key: ProcessKey) -> bool {
    lineage(table, key)
        .is_ok_and(|lineage| lineage.chain.iter().skip(1).any(ProcessEntry::is_named_worker))
}
