//! The containers that a job has started by a daemon, outside of the job's own cgroup. (Those of a rootless engine are in
//! it.)
//!
//! In scope `host` every container that was started since the job was bound, by an engine in the Worker's own network
//! namespace, is the job's: the machine has one runner. A cgroup's id grows with each one that is made, so that a group with
//! a higher id than the job's was made later; this needs no memory and holds over a restart of the monitor. In scope `job` a container's cgroup does not say who asked for it;
//! whoever knows (an engine's events, a sensor of container starts) adds it with [`KnownContainers::add`].

use crate::caller::table::NetworkNamespaceId;
use crate::caller::{ProcFs, ProcessTable};
use crate::cgroup::{Cgroup, CgroupIdentity, Hierarchy};
use portcullis_common::event::EnforcementScope;
use portcullis_common::hook::with_causes;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Digits of a container's id as engines write it into the name of its group.
const ID_DIGITS: usize = 64;

/// How deep container groups lie at most: `system.slice/docker-<id>.scope` is two.
const DEPTH: u32 = 8;

/// The most groups that are walked.
const GROUP_LIMIT: usize = 65_536;

/// The most containers that are remembered for a job.
const KNOWN_LIMIT: usize = 4_096;

/// The containers of a job.
pub trait JobContainers: fmt::Debug + Send + Sync {
    /// Kills them and waits for at most `patience`. How many there were, and what did not work, in words.
    fn kill(&self, patience: Duration) -> (usize, Vec<String>);
}

/// Containers by their cgroups.
#[derive(Debug)]
pub struct KnownContainers {
    hierarchy: Option<Hierarchy>,
    job: Option<CgroupIdentity>,
    /// In scope `job`.
    is_narrow: AtomicBool,
    network_namespace: NetworkNamespaceId,
    added: Mutex<Vec<CgroupIdentity>>,
}

impl KnownContainers {
    /// Of the job with the group `job`, whose Worker lives in `network_namespace`.
    pub fn new(
        hierarchy: Option<Hierarchy>,
        job: Option<CgroupIdentity>,
        scope: EnforcementScope,
        network_namespace: NetworkNamespaceId,
    ) -> Self {
        let is_narrow = AtomicBool::new(scope == EnforcementScope::Job);
        Self { hierarchy, job, is_narrow, network_namespace, added: Mutex::default() }
    }

    /// Adds a container that the job has started.
    pub fn add(&self, container: CgroupIdentity) {
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        if added.len() < KNOWN_LIMIT && !added.contains(&container) {
            added.push(container);
        }
    }

    /// Which groups are the job's containers now.
    pub fn identities(&self) -> Vec<CgroupIdentity> {
        self.groups().iter().map(|group| group.identity().clone()).collect()
    }

    /// Only containers that are added are the job's, from now on: another runner of this host has started a job.
    pub fn narrow(&self) {
        self.is_narrow.store(true, Ordering::Relaxed);
    }

    /// Kills the containers of these groups and waits for at most `patience`. How many there were, and what did not work, in
    /// words.
    pub fn kill_groups(
        &self,
        wanted: &[CgroupIdentity],
        patience: Duration,
    ) -> (usize, Vec<String>) {
        let Some(hierarchy) = &self.hierarchy else { return (0, Vec::new()) };
        let groups: Vec<Cgroup> =
            wanted.iter().filter_map(|identity| still(hierarchy, identity)).collect();
        kill_all(&groups, patience)
    }

    /// The groups of the job's containers that are there now.
    fn groups(&self) -> Vec<Cgroup> {
        let Some(hierarchy) = &self.hierarchy else { return Vec::new() };
        let added = self.added.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut groups: Vec<Cgroup> =
            added.iter().filter_map(|known| still(hierarchy, known)).collect();
        if let (false, Some(job)) = (self.is_narrow.load(Ordering::Relaxed), &self.job) {
            let is_ours = |group: &Cgroup| started_from(group) == Some(self.network_namespace);
            groups.extend(
                started_since(hierarchy, job)
                    .into_iter()
                    .filter(|group| !added.contains(group.identity()) && is_ours(group)),
            );
        }
        groups
    }
}

impl JobContainers for KnownContainers {
    fn kill(&self, patience: Duration) -> (usize, Vec<String>) {
        kill_all(&self.groups(), patience)
    }
}

/// The group of this identity, unless it is gone.
fn still(hierarchy: &Hierarchy, identity: &CgroupIdentity) -> Option<Cgroup> {
    hierarchy.group(&identity.path).ok().filter(|group| group.identity() == identity)
}

fn kill_all(groups: &[Cgroup], patience: Duration) -> (usize, Vec<String>) {
    let mut problems = Vec::new();
    for group in groups {
        if let Err(error) = group.kill() {
            problems.push(format!(
                "the container {} could not be killed: {}",
                group.identity().path.display(),
                with_causes(&error)
            ));
        }
    }
    for group in groups {
        if !group.wait_empty(patience).unwrap_or(false) {
            problems.push(format!(
                "the container {} was still there {} s after it was killed",
                group.identity().path.display(),
                patience.as_secs()
            ));
        }
    }
    (groups.len(), problems)
}

/// The network namespace of the engine that started a container: that of the parent of its first process, which is the
/// engine's shim or monitor. `None` when nobody lives in the container.
fn started_from(group: &Cgroup) -> Option<NetworkNamespaceId> {
    let members = group.processes_recursive().ok()?;
    let parents = members.iter().filter_map(|pid| ProcFs.process(*pid)).map(|entry| entry.parent);
    let outside = parents.into_iter().find(|parent| !members.contains(parent))?;
    ProcFs.network_namespace(outside)
}

/// The groups of containers that were made after the job's group.
fn started_since(hierarchy: &Hierarchy, job: &CgroupIdentity) -> Vec<Cgroup> {
    let Ok(root) = hierarchy.group(Path::new("/")) else { return Vec::new() };
    let (mut found, mut open, mut walked) = (Vec::new(), vec![root], 0);
    while let Some(group) = open.pop() {
        for name in group.child_names().unwrap_or_default() {
            walked += 1;
            if walked > GROUP_LIMIT {
                return found;
            }
            let Ok(child) = group.child(&name) else { continue };
            if is_job_container(child.identity(), job) {
                found.push(child);
            } else if child.identity().level < DEPTH {
                open.push(child);
            }
        }
    }
    found
}

/// Whether the group is that of a container which was started after the job.
fn is_job_container(group: &CgroupIdentity, job: &CgroupIdentity) -> bool {
    let is_pod = group
        .path
        .iter()
        .any(|part| part.to_str().is_some_and(|part| part.starts_with("kubepods")));
    group.path.file_name().is_some_and(is_container_name)
        && group.id > job.id
        // Pods are started by the cluster, and what a job starts in its own group dies with that.
        && !is_pod
        && !group.path.starts_with(&job.path)
}

/// `<id>`, `docker-<id>.scope`, `libpod-<id>.scope`, `libpod-<id>`, …: 64 hexadecimal digits and what engines put around
/// them.
fn is_container_name(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit_once(['-', ':']).map_or(name, |(_, id)| id);
    id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c";

    fn group(path: &str, id: u64) -> CgroupIdentity {
        CgroupIdentity { id, level: 2, path: path.into() }
    }

    #[test]
    fn containers_that_came_after_the_job_are_its_own() {
        let job = group("/system.slice/runner.service/portcullis-1", 100);
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/machine.slice/libpod-{ID}.scope"),
            format!("/user.slice/libpod-conmon-{ID}.scope"),
            format!("/system.slice/containerd.service/system.slice:nerdctl:{ID}"),
        ] {
            assert!(is_job_container(&group(&path, 101), &job), "{path}");
            assert!(!is_job_container(&group(&path, 99), &job), "{path} was there before");
        }
    }

    #[test]
    fn services_pods_and_the_job_s_own_groups_are_not() {
        let job = group("/system.slice/runner.service/portcullis-1", 100);
        for path in [
            "/system.slice/ssh.service".to_owned(),
            "/docker".to_owned(),
            format!("/kubepods.slice/kubepods-besteffort.slice/cri-containerd-{ID}.scope"),
            format!("/system.slice/runner.service/portcullis-1/libpod-{ID}"),
            format!("/docker/{}", &ID[1..]),
        ] {
            assert!(!is_job_container(&group(&path, 101), &job), "{path}");
        }
    }
}
