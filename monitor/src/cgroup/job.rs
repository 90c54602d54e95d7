//! The group of one job, from its creation to its removal.

use super::CgroupError;
use super::group::{Cgroup, CgroupIdentity};
use super::mount::Hierarchy;
use crate::caller::{Parentage, ProcFs, ProcessKey};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

/// What the names of our groups begin with.
const PREFIX: &str = "portcullis-";

/// What the names of the monitors' own groups begin with.
pub(super) const MONITOR_PREFIX: &str = "portcullis-monitor-";

/// How often the tree below the Worker is looked through. When the Worker is inside, everything it starts is inside; only
/// children of processes that were outside can be missed, one generation a round.
const ROUNDS: usize = 64;

/// The most known descendants that are moved before the tree is looked through: a hook's shell, and what that has started.
const KNOWN_LIMIT: usize = 16;

/// A group that holds one job. Dropping it does nothing: the group outlives the monitor.
#[derive(Clone, Debug)]
pub struct JobCgroup {
    /// The group.
    group: Cgroup,
}

impl JobCgroup {
    /// Creates `<the Worker's group>/portcullis-<id>`, with nothing in it yet.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn create_empty(
        hierarchy: &Hierarchy,
        worker: ProcessKey,
        job_id: &str,
    ) -> Result<Self, CgroupError> {
        let name = group_name(job_id)?;
        let parent = hierarchy.group_of(worker.pid)?;
        Ok(Self { group: parent.create_child(&name)? })
    }

    /// Creates `<the Worker's group>/portcullis-<id>` and moves the Worker and everything below it there.
    ///
    /// # Errors
    /// See [`CgroupError`]; an error leaves no group behind when nothing was moved.
    pub fn create(
        hierarchy: &Hierarchy,
        worker: ProcessKey,
        job_id: &str,
    ) -> Result<Self, CgroupError> {
        let job = Self::create_empty(hierarchy, worker, job_id)?;
        match job.adopt(worker, &[]) {
            Ok(()) => Ok(job),
            Err(error) => {
                // It stays when processes are in it already, and is then found as a stale group.
                let _ = job.group.remove();
                Err(error)
            }
        }
    }

    /// Opens the group of a job that ran before the monitor was started again.
    ///
    /// # Errors
    /// See [`CgroupError`]; also when the group of that path is not the one that `identity` names.
    pub fn open_existing(
        hierarchy: &Hierarchy,
        identity: &CgroupIdentity,
    ) -> Result<Self, CgroupError> {
        let group = hierarchy.group(&identity.path)?;
        if group.identity() == identity {
            Ok(Self { group })
        } else {
            Err(CgroupError::NotVisible { path: identity.path.display().to_string() })
        }
    }

    /// The group.
    pub fn group(&self) -> &Cgroup {
        &self.group
    }

    /// Which group it is, for nftables and for [`JobCgroup::open_existing`].
    pub fn identity(&self) -> &CgroupIdentity {
        self.group.identity()
    }

    /// Moves the Worker and all its descendants into the group, until none is outside. This process stays where it is: a
    /// started hook that runs as root may just have started it, and then it still is a descendant. `known` are descendants that
    /// need not be looked for.
    ///
    /// # Errors
    /// [`CgroupError::Gone`] when the Worker has exited, [`CgroupError::Unstable`], and others.
    pub fn adopt(&self, worker: ProcessKey, known: &[ProcessKey]) -> Result<(), CgroupError> {
        // The Worker first: what it starts from then on is inside. Each move makes the kernel wait for all processors
        // (cgroup_threadgroup_rwsem), but moves that follow at once share that wait; so nothing is looked at before.
        if ProcFs.key(worker.pid) != Some(worker) || !self.group.add(worker.pid)? {
            return Err(CgroupError::Gone { pid: worker.pid });
        }
        let known = known.iter().filter(|key| key.pid != std::process::id());
        for key in known.take(KNOWN_LIMIT).filter(|key| ProcFs.is_alive(**key)) {
            self.group.add(key.pid)?;
        }
        for _ in 0..ROUNDS {
            let processes = ProcFs.parents();
            if !processes.iter().any(|process| process.key == worker) {
                return Err(CgroupError::Gone { pid: worker.pid });
            }
            let inside: HashSet<u32> = self.group.processes_recursive()?.into_iter().collect();
            let outside: Vec<ProcessKey> = descendants(&processes, worker)
                .into_iter()
                .filter(|key| key.pid != std::process::id())
                .filter(|key| !inside.contains(&key.pid) && !self.group.contains(key.pid))
                .filter(|key| ProcFs.is_alive(*key))
                .collect();
            if outside.is_empty() {
                return Ok(());
            }
            for key in outside {
                self.group.add(key.pid)?;
            }
        }
        Err(CgroupError::Unstable { rounds: ROUNDS })
    }

    /// Whether the process is in the job's group.
    pub fn contains(&self, pid: u32) -> bool {
        self.group.contains(pid)
    }

    /// The processes of the job, in groups of its own making too.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        self.group.processes_recursive()
    }

    /// Stops every process of the job.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.group.set_frozen(true)
    }

    /// Kills every process of the job.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.group.kill()
    }

    /// Waits until the group is empty, blocking; `false` when `timeout` ran out.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool, CgroupError> {
        self.group.wait_empty(timeout)
    }

    /// Removes the group and those that the job made below it.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.group.remove()
    }

    /// Gives everything in the group back to the group above, and removes it.
    ///
    /// # Errors
    /// [`CgroupError::Unstable`] when processes are started faster than they are moved, and others.
    pub fn dissolve(&self, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
        let Some(above) = self.identity().path.parent() else { return Ok(()) };
        let above = hierarchy.group(above)?;
        for _ in 0..ROUNDS {
            let inside = self.processes()?;
            if inside.is_empty() {
                return self.remove();
            }
            for pid in inside {
                above.add(pid)?;
            }
        }
        Err(CgroupError::Unstable { rounds: ROUNDS })
    }

    /// Kills what is left, waits for its end, and removes the group. Returns the processes that were killed.
    ///
    /// # Errors
    /// [`CgroupError::StillPopulated`] after `timeout`, and others.
    pub fn end(&self, timeout: Duration) -> Result<Vec<u32>, CgroupError> {
        if !self.group.exists() {
            return Ok(Vec::new());
        }
        let killed = self.processes()?;
        self.kill()?;
        if !self.wait_empty(timeout)? {
            return Err(CgroupError::StillPopulated {
                path: self.group.directory().to_owned(),
                seconds: timeout.as_secs(),
            });
        }
        self.remove()?;
        Ok(killed)
    }
}

/// The groups of earlier jobs below `parent` that are not in `active`, with whatever still lives in them.
///
/// # Errors
/// See [`CgroupError`].
pub fn stale_job_groups(
    parent: &Cgroup,
    active: &[CgroupIdentity],
) -> Result<Vec<JobCgroup>, CgroupError> {
    let names = parent.child_names()?;
    Ok(names
        .iter()
        .filter(|name| name.starts_with(PREFIX) && !name.starts_with(MONITOR_PREFIX))
        // One that is gone by now needs no ending.
        .filter_map(|name| parent.child(name).ok())
        .filter(|group| !active.iter().any(|active| active.id == group.identity().id))
        .map(|group| JobCgroup { group })
        .collect())
}

/// The name of a job's group.
fn group_name(job_id: &str) -> Result<String, CgroupError> {
    let plain = !job_id.is_empty()
        && job_id.len() <= 128
        && !job_id.starts_with("monitor-")
        && job_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && Path::new(job_id).components().count() == 1;
    if plain {
        Ok(format!("{PREFIX}{job_id}"))
    } else {
        Err(CgroupError::BadName { id: job_id.to_owned() })
    }
}

/// The processes below `root`, by parent pid. A pid whose process is younger than its child is somebody else's: the
/// snapshot is not of one moment.
pub(crate) fn descendants<'p, P>(processes: &'p [P], root: ProcessKey) -> Vec<ProcessKey>
where
    Parentage: From<&'p P>,
{
    let mut children: HashMap<u32, Vec<ProcessKey>> = HashMap::new();
    for Parentage { key, parent } in processes.iter().map(Parentage::from) {
        children.entry(parent).or_default().push(key);
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        // Removing makes a made-up circle end.
        for child in children.remove(&parent.pid).unwrap_or_default() {
            if child.start_time >= parent.start_time {
                found.push(child);
                open.push(child);
            }
        }
    }
    found
}
