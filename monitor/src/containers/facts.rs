//! What the kernel shows of a process in a container, gathered from `/proc`. Decides nothing.

use crate::caller::{ProcFs, ProcessKey, ProcessTable};
use crate::detect::privileged_container::{ContainerFacts, HostPath, PathKind};
use portcullis_monitor_bpf::ContainerHost;
use procfs::process::Process;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The most lines of a container's `mountinfo` that are looked at: a container that can mount makes as many as it likes.
const MOUNT_LIMIT: usize = 4_096;

/// The most nodes of a container's `/dev` that are looked at.
const DEVICE_LIMIT: usize = 4_096;

/// The most ancestors that are followed.
const ANCESTOR_LIMIT: usize = 256;

/// How often a chain of ancestors is followed that changes meanwhile.
const ATTEMPTS: usize = 5;

/// The major number of memory devices, and the minor numbers of those that show the host's memory and ports
/// (`Documentation/admin-guide/devices.txt`).
const MEMORY_MAJOR: u64 = 1;
const MEMORY_MINORS: [u64; 3] = [1, 2, 4];

/// File systems that the kernel makes up. Engines mount them anew, on kernels and settings where that gives the host's own.
const KERNEL_FILE_SYSTEMS: [&str; 6] = ["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts"];

/// The namespaces of a process, as `/proc/PID/ns` names them.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Namespaces {
    names: BTreeMap<&'static str, String>,
}

impl Namespaces {
    /// Those of the process; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let mut names = BTreeMap::new();
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
            let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
            names.insert(kind, link.to_string_lossy().into_owned());
        }
        Some(Self { names })
    }

    /// Whether the namespace of this kind is the same for both.
    pub fn shares(&self, other: &Self, kind: &str) -> bool {
        self.names.get(kind).is_some_and(|name| other.names.get(kind) == Some(name))
    }

    /// The name of the namespace of this kind: `mnt:[4026531841]`.
    pub fn name(&self, kind: &str) -> &str {
        self.names.get(kind).map_or("", String::as_str)
    }
}

/// The number in the name of a namespace: that of `mnt:[4026531841]`.
pub fn number_of(namespace: &str) -> Option<u32> {
    namespace.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// The mount namespace of a process alone, which is looked at first.
pub fn mount_namespace(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// The network namespace of a process, as `/proc/PID/ns/net` names it.
pub fn network_namespace(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// The host as a job sees it: what a container's facts are compared with.
#[derive(Clone, Debug)]
pub struct Reference {
    namespaces: Namespaces,
    root: (u64, u64),
    mounts: Vec<Mount>,
}

impl Reference {
    /// The surroundings of the Worker; `None` when it is gone.
    pub fn of(worker: u32) -> Option<Self> {
        Some(Self {
            namespaces: Namespaces::of(worker)?,
            root: root_of(worker)?,
            mounts: mounts(worker),
        })
    }

    /// Its namespaces.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The host as the sensors in the kernel are told it.
    pub fn container_host(&self) -> Option<ContainerHost> {
        let number = |kind| number_of(self.namespaces.name(kind));
        let (device, root) = self.root;
        let half = |number: u64| u32::try_from(number).ok();
        Some(ContainerHost {
            root,
            root_device: (
                half(nix::sys::stat::major(device))?,
                half(nix::sys::stat::minor(device))?,
            ),
            pid: number("pid")?,
            network: number("net")?,
            ipc: number("ipc")?,
            uts: number("uts")?,
            cgroup: number("cgroup")?,
        })
    }
}

/// A process in a container.
#[derive(Clone, Debug)]
pub struct Contained {
    /// Which process.
    pub key: ProcessKey,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its cgroup v2, as `/proc/PID/cgroup` has it.
    pub cgroup: PathBuf,
}

/// How far a process in foreign namespaces is.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It went away while it was looked at.
    Gone,
    /// It is in no container.
    Outside,
    /// It may be a runtime that is still making its container.
    InTheMaking(Contained),
    /// It is in one.
    Contained(Contained),
}

/// Whether the process executes a program. Kernel threads execute nothing, nor does what has ended.
pub fn executes_anything(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// Looks whether the process is in a container: it has a root directory of its own in a mount namespace of its own, and is
/// in a cgroup or a namespace that its job is not in. A program that root started by `chroot` or `unshare --mount` within
/// its job is what it was before: root.
pub fn look(pid: u32, reference: &Reference, job_group: Option<&Path>) -> Seen {
    let (Some(key), Some(namespaces)) = (ProcFs.key(pid), Namespaces::of(pid)) else {
        return Seen::Gone;
    };
    if namespaces.shares(&reference.namespaces, "mnt") {
        return Seen::Outside;
    }
    let Some(cgroup) = cgroup_of(pid) else { return Seen::Gone };
    let in_group = job_group.is_some_and(|group| cgroup.starts_with(group));
    let has_own = ["pid", "net", "ipc", "uts", "cgroup"]
        .iter()
        .any(|kind| !namespaces.shares(&reference.namespaces, kind));
    if in_group && !has_own {
        return Seen::Outside;
    }
    let Some(root) = root_of(pid).filter(|_| executes_anything(pid)) else {
        return Seen::Outside;
    };
    if root == reference.root {
        // Before a runtime has changed the root, or nothing that is called a container here.
        return Seen::Outside;
    }
    let is_inside = is_own_program(pid) || has_parent_inside(pid, &namespaces);
    let contained = Contained { key, namespaces, cgroup };
    if is_inside {
        Seen::Contained(contained)
    } else if has_own {
        Seen::InTheMaking(contained)
    } else {
        // A part of an engine that unpacks an image within its root directory.
        Seen::Outside
    }
}

/// The facts about a process that was found in a container. `id` is the container's, as far as its cgroup tells.
pub fn gather(
    contained: &Contained,
    reference: &Reference,
    id: Option<&str>,
) -> Option<ContainerFacts> {
    let pid = contained.key.pid;
    let status = Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()?;
    let held = status.capprm | status.capeff | status.capinh | status.capamb.unwrap_or(0);
    let may_gain = if status.nonewprivs == Some(1) { 0 } else { status.capbnd.unwrap_or(0) };
    let host = &reference.namespaces;
    let shares = |kind| contained.namespaces.shares(host, kind);
    Some(ContainerFacts {
        in_host_user_namespace: shares("user"),
        in_host_pid_namespace: shares("pid"),
        in_host_network_namespace: shares("net"),
        in_host_ipc_namespace: shares("ipc"),
        capabilities: held | may_gain,
        is_filtered: status.seccomp != Some(0),
        host_paths: host_paths(pid, reference, id),
        devices: devices(pid),
        service_cgroup: None,
        is_made_by_runner: false,
    })
}

/// What tells one process's privileges from another's of the same container, cheaply.
pub fn fingerprint(contained: &Contained) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/status", contained.key.pid)).ok()?;
    let of_interest = text.lines().filter(|line| {
        line.starts_with("Cap") || line.starts_with("NoNew") || line.starts_with("Seccomp:")
    });
    Some(
        of_interest.fold(
            format!("{:?} {}", contained.namespaces, contained.cgroup.display()),
            |all, line| all + line,
        ),
    )
}

/// Whoever made the container that the process is in: its first ancestor in another mount namespace, a runtime's shim.
fn maker(pid: u32) -> Option<u32> {
    // An ancestor that ends just now is found at the second attempt to have handed its children on.
    (0..ATTEMPTS).find_map(|_| maker_now(pid))
}

fn maker_now(pid: u32) -> Option<u32> {
    let inside = mount_namespace(pid)?;
    let mut current = pid;
    for _ in 0..ANCESTOR_LIMIT {
        current = ProcFs.process(current)?.parent;
        if mount_namespace(current)? != inside {
            return Some(current);
        }
    }
    None
}

/// The network namespace of whoever made the container that the process is in. Engines of another network than the Worker's,
/// in other pods of the same node, work for others.
pub fn maker_network(pid: u32) -> Option<String> {
    network_namespace(maker(pid)?)
}

/// The id of the container that the process is in, from the command line of whoever made it: where containers have no
/// cgroups of their own in version 2.
pub fn id_by_maker(pid: u32) -> Option<String> {
    let words = fs::read(format!("/proc/{}/cmdline", maker(pid)?)).ok()?;
    let mut words =
        words.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    words.find(|word| super::identity::is_id(word)).map(str::to_owned)
}

/// Whether the process calls itself one of these names, which is quickly told: what else it takes is looked at only then.
pub fn is_called(pid: u32, names: &[&str]) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| names.contains(&name.trim_end()))
}

/// The process's cgroup v2.
pub fn cgroup_of(pid: u32) -> Option<PathBuf> {
    crate::cgroup::group::parse_proc_cgroup(&fs::read(format!("/proc/{pid}/cgroup")).ok()?)
}

fn root_of(pid: u32) -> Option<(u64, u64)> {
    let metadata = fs::metadata(format!("/proc/{pid}/root/.")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Whether the program that the process executes lies in its own root: a runtime that still makes a container executes one
/// of the host's, or one in memory.
fn is_own_program(pid: u32) -> bool {
    let Ok(program) = fs::metadata(format!("/proc/{pid}/exe")) else { return false };
    let Ok(link) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let relative = link.strip_prefix("/").unwrap_or(&link);
    fs::metadata(Path::new(&format!("/proc/{pid}/root")).join(relative))
        .is_ok_and(|own| own.dev() == program.dev() && own.ino() == program.ino())
}

/// Whether its parent is in the same mount namespace: it was started in the container, not by a runtime from outside.
fn has_parent_inside(pid: u32, namespaces: &Namespaces) -> bool {
    ProcFs
        .process(pid)
        .and_then(|process| mount_namespace(process.parent))
        .is_some_and(|parent| parent == namespaces.name("mnt"))
}

/// One mount.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Mount {
    device: String,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    point: PathBuf,
    read_only: bool,
    file_system: String,
}

fn mounts(pid: u32) -> Vec<Mount> {
    let text = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().take(MOUNT_LIMIT).filter_map(parse_mount).collect()
}

/// A line of `mountinfo` (man 5 `proc_pid_mountinfo`).
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let fields: Vec<&str> = left.split(' ').collect();
    let [_, _, device, root, point, options, ..] = fields.as_slice() else { return None };
    Some(Mount {
        device: (*device).to_owned(),
        root: unescape(root),
        point: unescape(point),
        read_only: options.split(',').any(|option| option == "ro"),
        file_system: right.split(' ').next()?.to_owned(),
    })
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        rest = if value.is_some() { after.get(3..).unwrap_or(&[]) } else { after };
        out.push(value.unwrap_or(*first));
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// What of the host's file systems is mounted in the container, save what its engine puts there by itself.
fn host_paths(pid: u32, reference: &Reference, id: Option<&str>) -> Vec<HostPath> {
    let mut found: Vec<(PathBuf, HostPath)> = Vec::new();
    for mount in mounts(pid) {
        let Some(path) = path_on_host(&mount, &reference.mounts) else { continue };
        let is_below_known = found.iter().any(|(point, _)| mount.point.starts_with(point));
        if is_below_known || is_engines_own(&mount, &path, id) {
            continue;
        }
        let relative = mount.point.strip_prefix("/").unwrap_or(&mount.point);
        let inside = Path::new(&format!("/proc/{pid}/root")).join(relative);
        let metadata = fs::symlink_metadata(&inside).ok();
        found.push((mount.point, describe(path, mount.read_only, metadata.as_ref())));
    }
    found.into_iter().map(|(_, path)| path).collect()
}

/// A path with what the host's file system says of it.
pub fn describe(path: PathBuf, read_only: bool, metadata: Option<&fs::Metadata>) -> HostPath {
    let kind = metadata.map_or(PathKind::Directory, |metadata| {
        let kind = metadata.file_type();
        if kind.is_socket() {
            PathKind::Socket
        } else if kind.is_dir() {
            PathKind::Directory
        } else if kind.is_file() {
            PathKind::File
        } else {
            PathKind::Other
        }
    });
    HostPath {
        path,
        read_only,
        kind,
        owner: metadata.map(MetadataExt::uid),
        mode: metadata.map_or(0, |metadata| metadata.permissions().mode() & 0o7777),
    }
}

/// Where a mount of a container is on the host; `None` when it shows nothing of the host's.
fn path_on_host(mount: &Mount, host: &[Mount]) -> Option<PathBuf> {
    host.iter()
        .filter(|known| known.device == mount.device)
        .filter_map(|known| {
            let below = mount.root.strip_prefix(&known.root).ok()?;
            let depth = known.root.components().count();
            let path = if below.as_os_str().is_empty() {
                known.point.clone()
            } else {
                known.point.join(below)
            };
            Some((depth, std::cmp::Reverse(known.point.components().count()), path))
        })
        .max_by_key(|(depth, height, _)| (*depth, *height))
        .map(|(_, _, path)| path)
}

/// What engines mount into every container: its root, its files in `/etc`, named volumes, the kernel's file systems.
fn is_engines_own(mount: &Mount, path: &Path, id: Option<&str>) -> bool {
    if mount.point == Path::new("/") {
        // A storage driver without layers mounts a directory of its own.
        return path != Path::new("/");
    }
    if KERNEL_FILE_SYSTEMS.contains(&mount.file_system.as_str()) {
        let usual = ["/proc", "/sys", "/dev/mqueue", "/dev/pts"];
        let is_usual = usual.iter().any(|usual| mount.point.starts_with(usual));
        let is_writable_control = !mount.read_only
            && mount.root == Path::new("/")
            && matches!(mount.file_system.as_str(), "sysfs" | "cgroup" | "cgroup2");
        return is_usual && !is_writable_control;
    }
    let names_container = id.is_some_and(|id| path.components().any(|part| part.as_os_str() == id));
    let mut parts = path.components().rev();
    let is_volume = parts.next().is_some_and(|part| part.as_os_str() == "_data")
        && parts.nth(1).is_some_and(|part| part.as_os_str() == "volumes");
    names_container || is_volume
}

/// Disks and memory devices that the container has nodes for.
fn devices(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/root/dev")) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten().take(DEVICE_LIMIT) {
        let Ok(metadata) = entry.metadata() else { continue };
        let device = metadata.rdev();
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let kind = metadata.file_type();
        let is_memory =
            kind.is_char_device() && major == MEMORY_MAJOR && MEMORY_MINORS.contains(&minor);
        if kind.is_block_device() || is_memory {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push(format!("/dev/{name} ({major}:{minor})"));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Mount {
        parse_mount(line).unwrap()
    }

    #[test]
    fn mounts_are_found_on_the_host() {
        let host = [
            mount("22 1 254:0 / / rw,relatime - ext4 /dev/vda rw"),
            mount("23 22 254:0 /var/tmp/run /run rw - ext4 /dev/vda rw"),
            mount("24 22 0:6 / /dev rw - devtmpfs devtmpfs rw"),
        ];
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(path_on_host(&mount(line), &host), expected.map(PathBuf::from), "{line}");
        };
        check("147 130 254:0 / /host rw,relatime - ext4 /dev/vda rw", Some("/"));
        check("147 130 254:0 /etc /x ro,relatime - ext4 /dev/vda rw", Some("/etc"));
        check("147 130 254:0 /a\\040b /x rw - ext4 /dev/vda rw", Some("/a b"));
        check(
            "147 130 254:0 /var/tmp/run/docker.sock /s rw - ext4 /dev/vda rw",
            Some("/run/docker.sock"),
        );
        check("147 130 0:6 /vda /x rw - devtmpfs devtmpfs rw", Some("/dev/vda"));
        check("130 102 0:39 / / rw - overlay overlay rw", None);
    }

    #[test]
    fn what_engines_mount_by_themselves_is_told_apart() {
        let id = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c";
        let check = |line: &str, path: &str, own: bool| {
            assert_eq!(is_engines_own(&mount(line), Path::new(path), Some(id)), own, "{line}");
        };
        let hosts = format!("/var/lib/docker/containers/{id}/hosts");
        check(&format!("1 2 8:1 {hosts} /etc/hosts rw - ext4 /dev/sda rw"), &hosts, true);
        let volume = "/var/lib/docker/volumes/cache/_data";
        check(&format!("1 2 8:1 {volume} /cache rw - ext4 /dev/sda rw"), volume, true);
        check("1 2 8:1 /etc /x rw - ext4 /dev/sda rw", "/etc", false);
        check("1 2 0:22 / /sys ro - sysfs sysfs ro", "/sys", true);
        check("1 2 0:22 / /sys rw - sysfs sysfs rw", "/sys", false);
        check("1 2 0:21 / /host/proc rw - proc proc rw", "/proc", false);
        check(
            "1 2 0:29 /docker/x /sys/fs/cgroup/cpu ro - cgroup cgroup rw",
            "/sys/fs/cgroup/cpu/x",
            true,
        );
        check("1 2 8:1 /vfs/dir/x / rw - ext4 /dev/sda rw", "/var/lib/docker/vfs/dir/x", true);
        check("1 2 8:1 / / rw - ext4 /dev/sda rw", "/", false);
    }

    #[test]
    fn this_process_is_in_no_container_of_its_own() {
        let reference = Reference::of(std::process::id()).unwrap();
        assert!(matches!(look(std::process::id(), &reference, None), Seen::Outside));
        assert!(matches!(look(u32::MAX, &reference, None), Seen::Gone));
        let host = reference.container_host().unwrap();
        assert!(host.pid != 0 && host.pid != host.network, "{host:?}");
    }
}
