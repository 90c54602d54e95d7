//! Who calls: peer credentials, pidfd, and the ancestors up to `Runner.Worker`.
//!
//! What a caller *says* is never used here, only what the kernel knows of it. [`lineage()`] and [`survey_runners`] decide over a
//! [`ProcessTable`], so that races and forgeries can be tested as values; [`table::ProcFs`] is the real one.

mod flows;
mod left_over;
mod lineage;
mod peer;
mod runners;
pub mod table;
mod worker;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use flows::runner_flows;
pub(crate) use left_over::kill;
pub use left_over::{KillOutcome, kill_left_overs, left_overs};
pub use lineage::{Lineage, WorkerCandidate, lineage};
pub use peer::{Peer, identify_peer};
pub use runners::{RunnerSurvey, survey_runners};
pub use table::{Parentage, ProcFs, ProcessEntry, ProcessKey, ProcessTable, Snapshot};
pub use worker::Worker;

/// Why a caller or a Worker could not be identified.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// The socket did not tell who is at the other end.
    #[error("the kernel did not say who is at the other end of the socket")]
    Credentials(#[source] std::io::Error),
    /// The peer lives in a pid namespace that we can't see.
    #[error(
        "the caller lives in a pid namespace that the monitor can't see; run the monitor in the host's pid namespace"
    )]
    ForeignPidNamespace,
    /// The process has exited, or its pid belongs to another process by now.
    #[error("process {pid} has exited; it must stay alive until it has its answer")]
    Gone {
        /// The pid.
        pid: u32,
    },
    /// The process with the peer's pid doesn't hold the other end of the socket: a recycled pid.
    #[error("process {pid} does not hold the other end of the socket; its pid was reused")]
    Recycled {
        /// The pid.
        pid: u32,
    },
    /// No ancestor is a `Runner.Worker` started by a `Runner.Listener`.
    #[error(
        "process {pid} was not started by a job: no ancestor is a Runner.Worker below a Runner.Listener ({chain})"
    )]
    NoWorker {
        /// The caller's pid.
        pid: u32,
        /// The executables of its ancestors, nearest first.
        chain: String,
    },
    /// The chain of ancestors is longer than any honest one.
    #[error("process {pid} has more than {limit} ancestors; refused")]
    TooDeep {
        /// The caller's pid.
        pid: u32,
        /// The limit.
        limit: usize,
    },
    /// The ancestors changed each time they were read.
    #[error("the ancestors of process {pid} kept changing while they were read; try again")]
    Unstable {
        /// The caller's pid.
        pid: u32,
    },
    /// A pidfd could not be opened or used.
    #[error("process {pid} can't be held by a pidfd")]
    Pidfd {
        /// The pid.
        pid: u32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}
