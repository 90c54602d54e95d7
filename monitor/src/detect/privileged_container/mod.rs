//! Privileged-Container: a container that has of the host what its job has not.
//!
//! One predicate for two lines of defence: what an engine is asked for ([`request`]: the authorization plugin, the engine's
//! description of a container) and what a container is once it runs ([`privileges_of_process`]: capabilities, namespaces,
//! mounts and devices as the kernel shows them, whatever engine made it).
//!
//! What a user namespace of its own holds has no privileges over the host: rootless engines are never found here, save that
//! an engine's socket was mounted. A mount is no privilege when the job's own user could read, or write, the same.

pub mod host_path;
pub mod json;
pub mod request;
#[cfg(test)]
mod tests;

use super::Finding;
pub use host_path::{HostPath, JobOwn, PathKind};
use portcullis_common::event::{DetectionType, Process};
use portcullis_common::policy::LockdownDetection;
use std::fmt;
use std::path::PathBuf;

/// Privileges that evidence lists.
const SHOWN: usize = 12;

/// Something of the host that a container has.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Privilege {
    /// `--privileged`.
    Flag,
    /// A capability by which a process gets out of its container.
    Capability(String),
    /// A namespace of the host: `pid`, `network`, `ipc`, `user`, `cgroup`.
    HostNamespace(&'static str),
    /// A part of the host's file system that the job's own user can't use in the same way.
    HostPath {
        /// The path on the host.
        path: PathBuf,
        /// Whether it can't be written.
        read_only: bool,
    },
    /// The socket of a container engine: whoever has it makes privileged containers.
    EngineSocket(PathBuf),
    /// A device of the host: a disk, its memory.
    Device(String),
    /// A confinement that was switched off: `seccomp=unconfined`.
    Unconfined(String),
    /// The container was put into a cgroup of the host's services, which are not judged.
    Cgroup(String),
    /// The engine was asked for something that runs with the host's privileges and is not described by the request.
    EngineFeature(String),
}

impl fmt::Display for Privilege {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => formatter.write_str("the privileged flag"),
            Self::Capability(name) => write!(formatter, "capability {name}"),
            Self::HostNamespace(name) => write!(formatter, "the host's {name} namespace"),
            Self::HostPath { path, read_only } => {
                let how = if *read_only { "read-only" } else { "writable" };
                write!(formatter, "the host's {} mounted {how}", path.display())
            }
            Self::EngineSocket(path) => write!(formatter, "the engine's socket {}", path.display()),
            Self::Device(name) => write!(formatter, "the host's device {name}"),
            Self::Unconfined(what) => write!(formatter, "{what}"),
            Self::Cgroup(path) => write!(formatter, "the cgroup {path}"),
            Self::EngineFeature(what) => formatter.write_str(what),
        }
    }
}

/// Capabilities that are the host's whatever namespaces a container has, when it has no user namespace of its own. The
/// number is the bit (`linux/capability.h`).
const DANGEROUS: &[(u32, &str)] = &[
    // open_by_handle_at: any file of a mounted file system, by number.
    (2, "DAC_READ_SEARCH"),
    (16, "SYS_MODULE"),
    (17, "SYS_RAWIO"),
    // mount, and most of what there is beside it.
    (21, "SYS_ADMIN"),
    (22, "SYS_BOOT"),
    (32, "MAC_OVERRIDE"),
    (33, "MAC_ADMIN"),
    // Reads kernel memory; the environment of processes (since Linux 6.15).
    (38, "PERFMON"),
    (39, "BPF"),
];

/// Capabilities that reach the host only through one of its namespaces, which the last word names.
const DANGEROUS_WITH: &[(u32, &str, &str)] = &[
    (12, "NET_ADMIN", "network"),
    (13, "NET_RAW", "network"),
    (19, "SYS_PTRACE", "pid"),
    (40, "CHECKPOINT_RESTORE", "pid"),
];

/// Whether a capability of this name, as an engine takes it, is dangerous by itself.
fn is_dangerous_name(name: &str) -> bool {
    name == "ALL" || DANGEROUS.iter().any(|(_, dangerous)| *dangerous == name)
}

/// A process of a container, as the kernel shows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that the kernel tells"
)]
pub struct ContainerFacts {
    /// Whether its user namespace is the host's.
    pub in_host_user_namespace: bool,
    /// Whether its pid namespace is the host's.
    pub in_host_pid_namespace: bool,
    /// Whether its network namespace is the Worker's.
    pub in_host_network_namespace: bool,
    /// Whether its IPC namespace is the host's.
    pub in_host_ipc_namespace: bool,
    /// What it has, or can get by executing a file: its capabilities, with the bounding set unless `no_new_privs` is set.
    pub capabilities: u64,
    /// Whether system calls are filtered (`Seccomp` of `/proc/PID/status` is not 0).
    pub is_filtered: bool,
    /// Parts of the host's file system that are mounted in it.
    pub host_paths: Vec<HostPath>,
    /// Disks and memory devices of the host that it has nodes for.
    pub devices: Vec<String>,
    /// The cgroup of the service of this host that it lies in, when there is one.
    pub service_cgroup: Option<String>,
    /// Whether it bears the label that `actions/runner` gives the containers that it makes itself. A job can give its own
    /// the same label, and gains by that only a socket which it had before.
    pub is_made_by_runner: bool,
}

/// What the process has of the host. Empty: an ordinary container.
pub fn privileges_of_process(facts: &ContainerFacts, own: &JobOwn) -> Vec<Privilege> {
    let mut found = Vec::new();
    found.extend(engine_sockets(&facts.host_paths, facts.is_made_by_runner));
    if !facts.in_host_user_namespace {
        return found;
    }
    let has = |bit: u32| facts.capabilities & (1 << bit) != 0;
    found.extend(
        DANGEROUS
            .iter()
            .filter(|(bit, _)| has(*bit))
            .map(|(_, name)| Privilege::Capability((*name).to_owned())),
    );
    let namespaces = [
        ("pid", facts.in_host_pid_namespace),
        ("network", facts.in_host_network_namespace),
        ("ipc", facts.in_host_ipc_namespace),
    ];
    for (name, is_hosts) in namespaces {
        if is_hosts {
            found.push(Privilege::HostNamespace(name));
            found.extend(
                DANGEROUS_WITH
                    .iter()
                    .filter(|(bit, _, with)| *with == name && has(*bit))
                    .map(|(_, name, _)| Privilege::Capability((*name).to_owned())),
            );
        }
    }
    found.extend(facts.host_paths.iter().filter_map(|path| path.privilege(own)));
    found.extend(facts.devices.iter().cloned().map(Privilege::Device));
    found.extend(facts.service_cgroup.iter().cloned().map(Privilege::Cgroup));
    // By itself it is what debuggers need in a container, and takes nothing from the host.
    if !found.is_empty() && !facts.is_filtered {
        found.push(Privilege::Unconfined("no seccomp filter".to_owned()));
    }
    found.sort();
    found.dedup();
    found
}

/// The engine's sockets among what is mounted. The runner itself mounts `docker.sock` into job containers and container
/// actions (actions/runner, ContainerInfo.cs and ContainerActionHandler.cs).
fn engine_sockets(
    paths: &[HostPath],
    is_made_by_runner: bool,
) -> impl Iterator<Item = Privilege> + use<'_> {
    paths
        .iter()
        .filter(move |path| {
            path.is_engine_socket() && !(is_made_by_runner && path.is_docker_socket())
        })
        .map(|path| Privilege::EngineSocket(path.path.clone()))
}

/// A container that privileges were found of, for a finding.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Subject {
    /// What stands for it: `busy_bell (3b5f0c…, image alpine:3)`, or the request.
    pub container: String,
    /// A process of it, or the one that asked for it.
    pub process: Option<Process>,
    /// What was seen: `was started`, `was asked for and refused`.
    pub what: String,
}

/// The finding, when there are privileges.
pub fn finding(subject: Subject, privileges: &[Privilege]) -> Option<Finding> {
    if privileges.is_empty() {
        return None;
    }
    let mut words: Vec<String> = privileges.iter().take(SHOWN).map(ToString::to_string).collect();
    if privileges.len() > SHOWN {
        words.push(format!("{} more", privileges.len() - SHOWN));
    }
    let evidence =
        format!("the container {} {} with {}", subject.container, subject.what, words.join(", "));
    let detection = DetectionType::Lockdown(LockdownDetection::PrivilegedContainer);
    Some(Finding::new(detection, &evidence, subject.process))
}

/// Whether labels of a container have the one that `actions/runner` gives what it makes: six hexadecimal digits that stand
/// for its root directory, without a value (DockerCommandManager.cs).
pub fn has_runner_label<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> bool {
    labels.into_iter().any(|(name, value)| {
        value.is_empty() && name.len() == 6 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}
