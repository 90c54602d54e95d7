//! cgroup v2 wherever it is mounted: a job's own group, moving, freezing, killing, identity for nftables.
//!
//! [`mount`] finds the hierarchy, [`group`] is one group with its operations, [`job`] the life of a job's group,
//! [`infrastructure`] the groups of others: systemd units and the monitor itself.

pub mod group;
pub mod infrastructure;
pub mod job;
mod mount;

#[cfg(test)]
mod tests;

pub use group::{Cgroup, CgroupIdentity};
pub use infrastructure::{MonitorGroup, Slices, enter_monitor_group};
pub use job::{JobCgroup, stale_job_groups};
pub use mount::Hierarchy;

use std::io;
use std::path::{Path, PathBuf};

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup v2 mount.
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    NoHierarchy,
    /// There is one, but only read-only.
    #[error(
        "cgroup v2 is mounted read-only at {}; the monitor needs it writable (in a container: mount the host's /sys/fs/cgroup read-write)",
        mount_point.display()
    )]
    ReadOnly {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// `/proc/PID/cgroup` names a group that no mount shows.
    #[error(
        "the cgroup {path} is outside of every cgroup v2 mount that the monitor sees; run the monitor in the host's cgroup namespace"
    )]
    NotVisible {
        /// The group as `/proc/PID/cgroup` has it.
        path: String,
    },
    /// The process has exited.
    #[error("process {pid} has exited")]
    Gone {
        /// The pid.
        pid: u32,
    },
    /// A group refuses processes because controllers are enabled for its children.
    #[error(
        "the cgroup {} can't hold processes of its own: controllers are enabled in its cgroup.subtree_control; the runner must live in a leaf",
        path.display()
    )]
    InternalProcesses {
        /// The group's directory.
        path: PathBuf,
    },
    /// Not allowed.
    #[error(
        "the monitor may not change the cgroup {}; it must run as root in the host's user namespace",
        path.display()
    )]
    Denied {
        /// The group's directory or file.
        path: PathBuf,
    },
    /// A job id that is no file name.
    #[error("{id:?} can't be a cgroup's name")]
    BadName {
        /// The id.
        id: String,
    },
    /// New processes kept appearing outside of the job's group.
    #[error("after {rounds} rounds there still were processes of the job outside of its cgroup")]
    Unstable {
        /// How often was looked.
        rounds: usize,
    },
    /// Processes that did not die in time.
    #[error("the cgroup {} still holds processes {seconds} s after it was killed", path.display())]
    StillPopulated {
        /// The group's directory.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Anything else.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `create`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    /// Gives an error of the kernel its meaning.
    pub(crate) fn from_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::EROFS) => Self::ReadOnly { mount_point: path },
            Some(libc::EACCES | libc::EPERM) => Self::Denied { path },
            Some(libc::EBUSY) if action == "move a process into" => {
                Self::InternalProcesses { path }
            }
            _ => Self::Io { action, path, source },
        }
    }
}
