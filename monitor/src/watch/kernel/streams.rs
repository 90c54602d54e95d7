//! The shells of one job that are stopped until they are judged.

use super::{WatchedJob, wake};
use crate::caller::{ProcFs, ProcessKey};
use crate::detect::reverse_shell::{Lead, Object};
use portcullis_monitor_bpf::event::ticks;
use portcullis_monitor_bpf::streams::{Passed, Received, Relayed, RelayedTo};
use portcullis_monitor_bpf::{SensorError, StreamGate};
use std::sync::Arc;

/// The shortest command has a letter and ends its line.
const LEAST_COMMAND: u64 = 2;

/// How far up it is looked for parents that stopped because their child did.
const HIGHEST_PARENT: usize = 16;

/// Stops shells while it exists, between [`JobStreams::begin`] and its end.
#[derive(Debug)]
pub struct JobStreams {
    watched: Arc<WatchedJob>,
}

impl JobStreams {
    pub(super) fn new(watched: Arc<WatchedJob>) -> Self {
        Self { watched }
    }

    /// From now on shells are stopped; the caller answers for each one.
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn begin(&self) -> Result<(), SensorError> {
        // A monitor before this one may have died while it judged.
        for pid in self.watched.pids() {
            if is_stopped(pid) {
                wake(pid);
            }
        }
        self.gate().map_or(Ok(()), |gate| gate.add_job(self.watched.token))
    }

    /// How many connections the job has made; asked before its connections are looked at, for [`JobStreams::set_idle`].
    pub fn made(&self) -> u64 {
        self.gate().and_then(|gate| gate.made(self.watched.token)).unwrap_or_default()
    }

    /// The job was seen to have no connection left after it had made so many.
    pub fn set_idle(&self, made: u64) {
        if let Some(gate) = self.gate() {
            gate.set_idle(self.watched.token, made);
        }
    }

    /// The stopped processes among these.
    pub fn held_of(&self, pids: &[u32]) -> Vec<ProcessKey> {
        let held = self.gate().map(StreamGate::held).unwrap_or_default();
        held.into_iter()
            .filter(|pid| pids.contains(pid))
            .filter_map(|pid| ProcFs.key(pid))
            .collect()
    }

    /// Lets a stopped process go on.
    pub fn release(&self, process: ProcessKey) {
        if let Some(gate) = self.gate() {
            gate.release(process.pid);
        }
        // What was killed meanwhile needs no waking, and its number may be another's.
        if ProcFs.is_alive(process) {
            wake(process.pid);
        }
    }

    /// Wakes parents of a process that have stopped themselves because it was stopped, as `sudo` does.
    pub fn wake_parents(&self, process: ProcessKey) {
        let mut pid = process.pid;
        for _ in 0..HIGHEST_PARENT {
            let Some(parent) = ProcFs.parentage(pid).map(|entry| entry.parent) else { return };
            if parent == self.watched.worker.pid || parent <= 1 {
                return;
            }
            if is_stopped(parent) {
                wake(parent);
            }
            pid = parent;
        }
    }

    /// Whether the shell of a lead was given the very bytes that its connection received.
    pub fn is_fed(&self, lead: &Lead) -> bool {
        self.relayed(lead).is_some_and(|relayed| is_of(lead, relayed.plain))
    }

    /// Whether it was given as many bytes as the connection received before they were encrypted, and nothing else so far.
    pub fn is_fed_sealed(&self, lead: &Lead) -> bool {
        let relayed = self.relayed(lead);
        relayed.is_some_and(|relayed| relayed.others == 0 && is_of(lead, relayed.sealed))
    }

    /// What the process itself has read last of what came from another machine.
    pub fn received(&self, process: ProcessKey) -> Option<Received> {
        self.gate()?.received(process.pid)
    }

    fn relayed(&self, lead: &Lead) -> Option<Relayed> {
        let to = match lead.fed_by {
            Some(Object::Pipe(_, inode) | Object::Socket(inode)) => RelayedTo::Inode(inode),
            Some(Object::TerminalMaster(number)) => RelayedTo::Terminal(number),
            Some(Object::Terminal(_)) | None => return None,
        };
        self.gate()?.relayed(lead.socket, to)
    }

    fn gate(&self) -> Option<&StreamGate> {
        self.watched.sensors.guard().ok().map(super::Guarded::streams)
    }
}

impl Drop for JobStreams {
    fn drop(&mut self) {
        let Some(gate) = self.gate() else { return };
        gate.remove_job(self.watched.token);
        for held in self.held_of(&self.watched.pids()) {
            self.release(held);
        }
    }
}

/// Whether that was given to the shell of the lead, and can be a command.
fn is_of(lead: &Lead, passed: Passed) -> bool {
    passed.bytes >= LEAST_COMMAND && ticks(passed.time) >= lead.shell.start_time
}

/// Whether a process is stopped by a signal, and not by a tracer.
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = procfs::process::Process::new(pid.cast_signed()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.state == 'T')
}
