//! Whose memory is guarded: the Workers and Listeners of running jobs, and the monitor.

use crate::caller::ProcessKey;
use portcullis_common::hook::with_causes;
use portcullis_monitor_bpf::guard::{Guard, MemoryGuard, ThreadName};
use portcullis_monitor_bpf::{SensorError, StreamGate};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

/// `PROC_PID_INIT_INO`: the inode of the initial pid namespace.
const INITIAL_PID_NAMESPACE: u32 = 0xEFFF_FFFC;

/// How often the threads of a process are listed: those that begin meanwhile are named by the kernel's side, so that two
/// rounds are enough but for threads that end between.
const ROUNDS: usize = 4;

/// The guard, and for which jobs.
#[derive(Debug)]
pub struct Guarded {
    guard: MemoryGuard,
    jobs: Mutex<HashMap<u64, OfJob>>,
}

/// What is guarded for one job.
#[derive(Clone, Copy, Debug)]
struct OfJob {
    worker: ProcessKey,
    listener: Option<ProcessKey>,
    is_lethal: bool,
}

impl Guarded {
    /// The monitor itself may read: it looks at processes, and changes a Worker once by ptrace.
    pub(super) fn new(guard: MemoryGuard) -> Result<Self, SensorError> {
        guard.trust(std::process::id())?;
        Ok(Self { guard, jobs: Mutex::default() })
    }

    /// What the same programs know of streams.
    pub(super) fn streams(&self) -> &StreamGate {
        self.guard.streams()
    }

    /// Guards a job's Worker and Listener, and the monitor while there is a job. Readers are ended when `is_lethal`.
    ///
    /// # Errors
    /// What the kernel refused, in words.
    pub fn add_job(
        &self,
        token: u64,
        worker: ProcessKey,
        listener: Option<ProcessKey>,
        is_lethal: bool,
    ) -> Result<(), String> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.insert(token, OfJob { worker, listener, is_lethal });
        self.guard_process(worker.pid, Guard { job: token, is_lethal, is_private: false })?;
        if let Some(listener) = listener {
            self.guard_process(listener.pid, Guard { job: token, is_lethal, is_private: false })?;
        }
        self.guard_monitor(&jobs)
    }

    /// Guards the job's processes no longer.
    pub fn remove_job(&self, token: u64) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ended) = jobs.remove(&token) else { return };
        self.guard.release(ended.worker.pid);
        if let Some(listener) = ended.listener
            // A Listener that has another job by now is guarded for that.
            && !jobs.values().any(|job| job.listener == Some(listener))
        {
            self.guard.release(listener.pid);
        }
        if let Err(problem) = self.guard_monitor(&jobs) {
            tracing::warn!(problem, "the monitor's own memory is not guarded any more");
        }
    }

    /// The monitor belongs to no job: whoever reads it is ended when any job wants that.
    fn guard_monitor(&self, jobs: &HashMap<u64, OfJob>) -> Result<(), String> {
        let pid = std::process::id();
        if jobs.is_empty() {
            self.guard.release(pid);
            return Ok(());
        }
        let is_lethal = jobs.values().any(|job| job.is_lethal);
        self.guard_process(pid, Guard { job: 0, is_lethal, is_private: true })
    }

    /// Guards a process and names the threads that it has.
    fn guard_process(&self, pid: u32, guard: Guard) -> Result<(), String> {
        // First this, so that threads that begin from now on are named by the kernel's side.
        self.guard.guard(pid, guard).map_err(|error| with_causes(&error))?;
        let inner = fs::metadata(format!("/proc/{pid}/ns/pid"))
            .ok()
            .and_then(|namespace| u32::try_from(namespace.ino()).ok());
        for _ in 0..ROUNDS {
            let mut is_complete = true;
            for name in threads(pid).iter().flat_map(|numbers| names(numbers, inner)) {
                if !self.guard.knows_thread(name) {
                    is_complete = false;
                    self.guard.name_thread(name, pid).map_err(|error| with_causes(&error))?;
                }
            }
            if is_complete {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The numbers of each thread, from the outermost pid namespace to its own.
fn threads(pid: u32) -> Vec<Vec<u32>> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok())
        .filter_map(|status| numbers(&status))
        .collect()
}

/// `NSpid:` of `/proc/PID/status`.
fn numbers(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

/// The names of a thread: its number in the initial namespace and in its own. One that lies between, in nested containers,
/// has a number for it too, but which namespace that is can't be told from here.
fn names(numbers: &[u32], inner: Option<u32>) -> Vec<ThreadName> {
    let outermost = numbers
        .first()
        .map(|number| ThreadName { namespace: INITIAL_PID_NAMESPACE, number: *number });
    let own = match (numbers, inner) {
        ([_, .., number], Some(namespace)) => Some(ThreadName { namespace, number: *number }),
        _ => None,
    };
    outermost.into_iter().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_a_number_in_each_namespace() {
        let status = "Name:\tRunner.Worker\nTgid:\t812\nNSpid:\t812\t7\nNSpgid:\t812\t7\n";
        let numbers = numbers(status).unwrap();
        assert_eq!(numbers, [812, 7]);
        let named = names(&numbers, Some(4_026_532_000));
        assert_eq!(named[0], ThreadName { namespace: INITIAL_PID_NAMESPACE, number: 812 });
        assert_eq!(named[1], ThreadName { namespace: 4_026_532_000, number: 7 });
        assert_eq!(names(&[812], Some(INITIAL_PID_NAMESPACE)).len(), 1);
        assert_eq!(super::numbers("Name:\tx\n"), None);
    }
}
