//! What is kept of a running job on disk, so that a monitor that was restarted takes it over.

use super::last_known_good::write_until_reboot;
use crate::caller::ProcessKey;
use crate::caller::table::NetworkNamespaceId;
use crate::cgroup::CgroupIdentity;
use jiff::Timestamp;
use portcullis_common::event::EnforcementScope;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::FailureMode;
use portcullis_common::resolution::Resolution;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A bound job, as it is on disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct JobState {
    /// The version of the file's format; a file of another one is not taken over.
    pub format: u32,
    /// The job's id.
    pub id: String,
    /// What the hook said of the job.
    pub context: JobContext,
    /// Its Worker.
    pub worker: ProcessKey,
    /// The Worker's user.
    pub uid: u32,
    /// The job's cgroup.
    pub cgroup: Option<CgroupIdentity>,
    /// The policy and why it is this one.
    pub resolution: Resolution,
    /// What to do when the policy can't be put in force.
    pub on_failure: FailureMode,
    /// Whether the policy is the audit fallback.
    pub is_audit_fallback: bool,
    /// What a person must be told for as long as the job runs.
    pub warnings: Vec<String>,
    /// Whose traffic is the job's.
    pub scope: EnforcementScope,
    /// Whether the runner's user is this runner's alone.
    pub has_own_user: bool,
    /// The Worker's network namespace.
    pub network_namespace: NetworkNamespaceId,
    /// Groups of other runners' jobs that are younger than this job's group.
    #[serde(default)]
    pub other_jobs: Vec<CgroupIdentity>,
    /// Interfaces that existed before the job: name and index.
    pub known_interfaces: Vec<(String, u32)>,
    /// The runner's own connections at binding: local and remote side.
    pub adopted_flows: Vec<(std::net::SocketAddr, std::net::SocketAddr)>,
    /// Gaps found since: what was not in force, or not seen, for a while.
    #[serde(default)]
    pub gaps: Vec<String>,
    /// When the policy was bound.
    pub started: Timestamp,
}

/// The file of a job that runs although nothing is in force; it lies in the place of `job.json`.
pub const UNENFORCED_FILE: &str = "unenforced.json";

/// A job that runs although nothing is in force, as it is on disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct UnenforcedState {
    /// The job's id.
    pub id: String,
    /// Its Worker.
    pub worker: ProcessKey,
    /// The policy that is not in force, and why it is this one.
    pub resolution: Resolution,
    /// What a person must be told for as long as the job runs.
    pub warning: String,
}

impl UnenforcedState {
    /// Writes the state below `jobs` (`/run/portcullis/jobs`).
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self, jobs: &Path) -> io::Result<()> {
        let directory = jobs.join(&self.id);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        write_until_reboot(&directory.join(UNENFORCED_FILE), &bytes)
    }

    /// Reads the states that an earlier monitor left below `jobs`; those that can't be understood come back as errors with
    /// their path.
    pub fn load_all(jobs: &Path) -> Vec<Result<Self, (PathBuf, io::Error)>> {
        let Ok(entries) = fs::read_dir(jobs) else { return Vec::new() };
        let files = entries.flatten().map(|entry| entry.path().join(UNENFORCED_FILE));
        let read = |path: &PathBuf| -> io::Result<Self> {
            serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
        };
        files
            .filter(|path| path.exists())
            .map(|path| read(&path).map_err(|error| (path, error)))
            .collect()
    }
}

impl JobState {
    /// The format that this version writes.
    pub const FORMAT: u32 = 1;

    /// Writes the state below `jobs` (`/run/portcullis/jobs`) and returns the job's directory there.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self, jobs: &Path) -> io::Result<PathBuf> {
        let directory = jobs.join(&self.id);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        // A job, its rules and its processes end with the machine.
        write_until_reboot(&directory.join("job.json"), &bytes)?;
        Ok(directory)
    }

    /// Reads the states of all jobs that an earlier monitor left below `jobs`; directories that can't be understood
    /// come back as errors with their path.
    pub fn load_all(jobs: &Path) -> Vec<Result<Self, (PathBuf, io::Error)>> {
        let Ok(entries) = fs::read_dir(jobs) else { return Vec::new() };
        let mut directories: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        directories.retain(|directory| !directory.join(UNENFORCED_FILE).exists());
        directories.sort();
        directories
            .into_iter()
            .map(|directory| load(&directory).map_err(|error| (directory, error)))
            .collect()
    }
}

fn load(directory: &Path) -> io::Result<JobState> {
    let bytes = fs::read(directory.join("job.json"))?;
    let state: JobState = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    if state.format != JobState::FORMAT {
        let reason =
            format!("it has format {}, this monitor knows {}", state.format, JobState::FORMAT);
        return Err(io::Error::other(reason));
    }
    Ok(state)
}
