//! Processes that a job of the past left behind.

use super::table::{ProcessEntry, ProcessKey, ProcessTable};
use super::worker::open_verified;
use super::{CallerError, lineage};
use crate::sys::pidfd;
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::AsFd;

/// The processes of the user `uid` that a runner started (`RUNNER_TRACKING_ID` in their environment) and that descend
/// from no live Listener or Worker any more.
///
/// `is_protected` keeps others out: the daemons of jobs that are running now for the same user look the same, but live
/// in their job's cgroup. The monitor itself, which a hook may have started, is never in the list, nor are its
/// ancestors. What a job hides by clearing the variable is found by its cgroup, not here.
pub fn left_overs(
    table: &impl ProcessTable,
    uid: u32,
    is_protected: impl Fn(&ProcessEntry) -> bool,
) -> Vec<ProcessEntry> {
    let own: Vec<ProcessKey> = table
        .process(std::process::id())
        .and_then(|own| lineage(table, own.key).ok())
        .map(|lineage| lineage.chain.iter().map(|entry| entry.key).collect())
        .unwrap_or_default();
    table
        .pids()
        .into_iter()
        .filter_map(|pid| table.process(pid))
        .filter(|entry| entry.uid == uid && !own.contains(&entry.key))
        .filter(|entry| table.has_tracking_id(entry.key.pid))
        .filter(|entry| is_orphan(table, entry.key))
        .filter(|entry| !is_protected(entry))
        .collect()
}

/// Whether neither the process nor an ancestor is a Listener or Worker. When its ancestors can't be read it is spared:
/// it is exiting, or one of them is.
fn is_orphan(table: &impl ProcessTable, key: ProcessKey) -> bool {
    lineage(table, key).is_ok_and(|lineage| {
        !lineage.chain.iter().any(|entry| entry.is_named_listener() || entry.is_named_worker())
    })
}

/// What became of one left-over process.
#[derive(Debug)]
pub struct KillOutcome {
    /// The process.
    pub process: ProcessEntry,
    /// `Ok(true)`: killed. `Ok(false)`: it had exited by itself.
    pub result: io::Result<bool>,
}

/// Kills exactly these processes, by pidfd.
pub fn kill_left_overs(processes: Vec<ProcessEntry>) -> Vec<KillOutcome> {
    processes
        .into_iter()
        .map(|process| KillOutcome { result: kill(process.key), process })
        .collect()
}

/// Kills one process; `false` when it was gone.
pub(crate) fn kill(key: ProcessKey) -> io::Result<bool> {
    let descriptor = match open_verified(key) {
        Ok(descriptor) => descriptor,
        Err(CallerError::Pidfd { source, .. }) => return Err(source),
        Err(_) => return Ok(false),
    };
    match pidfd::send_signal(descriptor.as_fd(), Signal::SIGKILL) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}
