//! From a caller to the Worker of its job, by its ancestors.

use super::CallerError;
use super::table::{ProcessEntry, ProcessKey, ProcessTable};
use std::path::PathBuf;

/// The most ancestors that are looked at. An honest hook has about six; a longer chain is refused, because stopping
/// early would let a job hide its true Worker behind a deep chain of its own.
const MAXIMUM_DEPTH: usize = 4096;

/// How often the chain is read again when a process in it went away meanwhile.
const ATTEMPTS: usize = 8;

/// A process named `Runner.Worker` whose parent is named `Runner.Listener`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerCandidate {
    /// The Worker.
    pub worker: ProcessKey,
    /// The Worker's real user id.
    pub uid: u32,
    /// The Worker's executable.
    pub executable: PathBuf,
    /// The Listener that started it.
    pub listener: ProcessKey,
    /// The process that asks and those between it and the Worker, nearest to the Worker first.
    pub callers: Vec<ProcessKey>,
}

/// A process and its ancestors.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lineage {
    /// The process itself, its parent, and so on up to the first process of the pid namespace.
    pub chain: Vec<ProcessEntry>,
    /// Every Worker in the chain, **the topmost first**.
    pub candidates: Vec<WorkerCandidate>,
}

impl Lineage {
    /// The Worker of the job: the topmost one. A job can start programs named `Runner.Listener` and `Runner.Worker`
    /// below itself, but not above.
    ///
    /// # Errors
    /// [`CallerError::NoWorker`].
    pub fn worker(&self) -> Result<&WorkerCandidate, CallerError> {
        self.candidates.first().ok_or_else(|| CallerError::NoWorker {
            pid: self.chain.first().map_or(0, |caller| caller.key.pid),
            chain: describe(&self.chain),
        })
    }

    /// Whether `key` is the process itself or one of its ancestors.
    pub fn contains(&self, key: ProcessKey) -> bool {
        self.chain.iter().any(|entry| entry.key == key)
    }
}

/// Walks from `caller` up to the first process of the pid namespace.
///
/// # Errors
/// [`CallerError::Gone`] when `caller` is not there any more, [`CallerError::TooDeep`], and [`CallerError::Unstable`]
/// when ancestors went away on every attempt.
pub fn lineage(table: &impl ProcessTable, caller: ProcessKey) -> Result<Lineage, CallerError> {
    for _ in 0..ATTEMPTS {
        if let Some(chain) = walk(table, caller)? {
            let candidates = find_candidates(&chain);
            return Ok(Lineage { chain, candidates });
        }
    }
    Err(CallerError::Unstable { pid: caller.pid })
}

/// One walk; `None` when the chain changed under it.
fn walk(
    table: &impl ProcessTable,
    caller: ProcessKey,
) -> Result<Option<Vec<ProcessEntry>>, CallerError> {
    let gone = CallerError::Gone { pid: caller.pid };
    let Some(first) = table.process(caller.pid).filter(|entry| entry.key == caller) else {
        return Err(gone);
    };
    let mut chain = vec![first];
    while let Some(child) = chain.last().filter(|entry| entry.parent != 0) {
        if chain.len() > MAXIMUM_DEPTH {
            return Err(CallerError::TooDeep { pid: caller.pid, limit: MAXIMUM_DEPTH });
        }
        let parent = table.process(child.parent);
        // The parent may have exited, and its pid may have been taken by a stranger, between reading the child and
        // reading it. When the child still names the same parent afterwards, that parent was alive all the time:
        // the child of a process that exits gets another parent before the pid is free.
        let unchanged = table
            .process(child.key.pid)
            .is_some_and(|again| again.key == child.key && again.parent == child.parent);
        match parent {
            Some(parent) if unchanged => chain.push(parent),
            _ => return Ok(None),
        }
    }
    Ok(Some(chain))
}

/// Every Worker below a Listener, the topmost first.
fn find_candidates(chain: &[ProcessEntry]) -> Vec<WorkerCandidate> {
    let pairs = chain.windows(2).enumerate().rev();
    pairs
        .filter_map(|(below, pair)| {
            let [worker, listener] = pair else { return None };
            if !worker.is_named_worker() || !listener.is_named_listener() {
                return None;
            }
            Some(WorkerCandidate {
                worker: worker.key,
                uid: worker.uid,
                executable: worker.executable.clone()?,
                listener: listener.key,
                callers: chain.iter().take(below).rev().map(|caller| caller.key).collect(),
            })
        })
        .collect()
}

/// The chain for an error message: bounded, and escaped because the names come from the job.
fn describe(chain: &[ProcessEntry]) -> String {
    const SHOWN: usize = 12;
    let names: Vec<String> = chain
        .iter()
        .take(SHOWN)
        .map(|entry| {
            let name =
                entry.executable_name().map_or_else(|| "?".into(), |name| name.to_string_lossy());
            format!("{} {}", entry.key.pid, name.escape_debug())
        })
        .collect();
    let more = if chain.len() > SHOWN { " < …" } else { "" };
    format!("{}{more}", names.join(" < "))
}
