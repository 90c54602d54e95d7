//! The sockets of container engines are closed to a job whose policy disables containers.
//!
//! An entry of the socket's access control list refuses the runner's user by name: that comes before its groups (acl(5)), and
//! nobody else is concerned. Whether it is refused is tried with the Worker's own rights. An engine that makes its socket anew
//! is noticed by [`EngineSockets::renew`]. What was closed is written down first, so that a monitor that dies leaves nothing
//! closed for ever.

use crate::caller::{ProcFs, ProcessTable};
use crate::containers::facts::is_called;
use crate::sys::credentials::with_rights_of;
use procfs::process::Process;
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Where engines listen that have not been started yet, or not by a program of a known name.
const USUAL_SOCKETS: &[&str] = &[
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/buildkit/buildkitd.sock",
    "/run/snap.docker/docker.sock",
];

/// Programs that make containers for others.
const ENGINES: &[&str] = &["dockerd", "containerd", "podman", "crio", "buildkitd"];

/// Ports on which engines listen by custom (Docker, with and without TLS).
pub const USUAL_PORTS: [u16; 2] = [2375, 2376];

/// `accept` flag of `/proc/net/unix` (`__SO_ACCEPTCON`).
const LISTENING: u32 = 0x1_0000;

/// The attribute that holds an access control list, and its version (`linux/posix_acl_xattr.h`).
const ATTRIBUTE: &str = "system.posix_acl_access";
const ACL_VERSION: u32 = 2;

/// The largest list that is read: the kernel's own limit for attributes.
const LARGEST_ACL: usize = 65_536;

/// Tags of entries.
mod tag {
    pub(super) const USER_OBJECT: u16 = 0x01;
    pub(super) const USER: u16 = 0x02;
    pub(super) const GROUP_OBJECT: u16 = 0x04;
    pub(super) const GROUP: u16 = 0x08;
    pub(super) const MASK: u16 = 0x10;
    pub(super) const OTHER: u16 = 0x20;
}

/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// Why an engine's socket could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The job runs as root.
    #[error("the job runs as root, whom no access control list refuses")]
    Root,
    /// The Worker's rights can't be read.
    #[error("the Worker's groups can't be read")]
    Worker,
    /// What is about to be closed can't be written down.
    #[error("what is closed can't be written down")]
    Record(#[source] io::Error),
    /// The list can't be changed.
    #[error("the access control list of {} can't be changed", .path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It was changed, and the job can connect all the same.
    #[error("the job can still connect to {}", .path.display())]
    StillOpen {
        /// The socket.
        path: PathBuf,
    },
    /// An engine listens on an abstract address, which has no permissions.
    #[error(
        "a container engine listens on the abstract address {0:?}, which can't be closed to a user"
    )]
    Abstract(String),
}

/// What is closed for a job, as it is written down.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Record {
    uid: u32,
    sockets: BTreeSet<PathBuf>,
}

/// The sockets that are closed for one job.
#[derive(Debug)]
pub struct EngineSockets {
    file: PathBuf,
    root: PathBuf,
    worker: u32,
    record: Record,
}

impl EngineSockets {
    /// Closes the sockets of all engines to the user of the job's Worker. `directory` is where it is written down; `root` leads
    /// to the host's directories.
    ///
    /// # Errors
    /// When one could not be closed; those that were are closed until [`EngineSockets::open`].
    pub fn close(
        directory: &Path,
        root: &Path,
        job: &str,
        worker: u32,
        uid: u32,
    ) -> Result<Self, CloseError> {
        if uid == 0 {
            return Err(CloseError::Root);
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(CloseError::Record)?;
        let file = directory.join(job);
        // A monitor before this one may have closed them for the same job.
        let before = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let record = Record { uid, ..before.unwrap_or_default() };
        let mut closed = Self { file, root: root.to_owned(), worker, record };
        match closed.renew() {
            Ok(_) => Ok(closed),
            Err(error) => {
                closed.open();
                Err(error)
            }
        }
    }

    /// Closes what has come since, and looks whether everything is closed. How many were closed anew.
    ///
    /// # Errors
    /// See [`CloseError`].
    pub fn renew(&mut self) -> Result<usize, CloseError> {
        let (paths, abstracts) = listening(&self.root);
        let mut renewed = 0;
        for path in paths {
            if !self.can_connect(&path)? {
                continue;
            }
            self.record.sockets.insert(path.clone());
            self.write_down().map_err(CloseError::Record)?;
            let uid = self.record.uid;
            change(&path, |entries| refuse(entries, uid))
                .map_err(|source| CloseError::Refused { path: path.clone(), source })?;
            if self.can_connect(&path)? {
                return Err(CloseError::StillOpen { path });
            }
            renewed += 1;
        }
        match abstracts.into_iter().next() {
            Some(name) => Err(CloseError::Abstract(name)),
            None => Ok(renewed),
        }
    }

    /// Where engines make sockets: the usual directories, or of one that is not there what is above it, and those of the
    /// sockets that were closed.
    pub fn directories(&self) -> Vec<PathBuf> {
        let usual = USUAL_SOCKETS.iter().map(|path| self.root.join(path.trim_start_matches('/')));
        let all = usual.chain(self.record.sockets.iter().cloned());
        all.filter_map(|path| {
            path.ancestors().skip(1).find(|above| above.is_dir()).map(PathBuf::from)
        })
        .collect()
    }

    /// The sockets that were closed.
    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.record.sockets.iter().map(PathBuf::as_path)
    }

    /// Opens everything again.
    pub fn open(&self) {
        open(&self.file, &self.record);
    }

    fn write_down(&self) -> io::Result<()> {
        let bytes = serde_json::to_vec(&self.record).map_err(io::Error::other)?;
        crate::job::last_known_good::write_atomically(&self.file, &bytes)
    }

    /// Tries it with the Worker's own rights.
    fn can_connect(&self, path: &Path) -> Result<bool, CloseError> {
        let status = i32::try_from(self.worker)
            .ok()
            .and_then(|pid| Process::new(pid).ok()?.status().ok())
            .ok_or(CloseError::Worker)?;
        let groups: Vec<u32> = status.groups.clone();
        let tried = with_rights_of(status.ruid, status.rgid, &groups, || UnixStream::connect(path));
        match tried.map_err(|_| CloseError::Worker)? {
            // An engine that does not accept now may do so later.
            Ok(_) => Ok(true),
            Err(error) => Ok(!matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
            )),
        }
    }
}

/// Opens what jobs left closed that do not run any more: an earlier monitor died. `is_running` says which do.
pub fn open_left_overs(directory: &Path, is_running: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_running(&name) {
            continue;
        }
        match fs::read(entry.path()).map(|bytes| serde_json::from_slice::<Record>(&bytes)) {
            Ok(Ok(record)) => open(&entry.path(), &record),
            Ok(Err(error)) => {
                tracing::error!(path = %entry.path().display(), %error, "what was closed can't be read");
            }
            Err(error) => {
                tracing::error!(path = %entry.path().display(), %error, "what was closed can't be read");
            }
        }
    }
}

fn open(file: &Path, record: &Record) {
    // Another job of the same user may still want it closed.
    let others = others_of(file, record.uid);
    for path in record.sockets.iter().filter(|path| !others.contains(*path)) {
        match change(path, |entries| allow(entries, record.uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %path.display(), %error, "an engine's socket could not be opened again");
            }
            _ => {}
        }
    }
    if let Err(error) = fs::remove_file(file)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(path = %file.display(), %error, "what was closed could not be forgotten");
    }
}

/// What other jobs of the same user have closed.
fn others_of(file: &Path, uid: u32) -> BTreeSet<PathBuf> {
    let directory = file.parent().unwrap_or(file);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path != file)
        .filter_map(|path| serde_json::from_slice::<Record>(&fs::read(path).ok()?).ok())
        .filter(|record| record.uid == uid)
        .flat_map(|record| record.sockets)
        .collect()
}

/// An entry of an access control list.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// Refuses the user. The mask stays what the group's permissions were, so that nobody else gains or loses.
fn refuse(entries: &mut Vec<Entry>, uid: u32) {
    entries.retain(|entry| entry.tag != tag::USER || entry.id != uid);
    if !entries.iter().any(|entry| entry.tag == tag::MASK) {
        let group = entries.iter().find(|entry| entry.tag == tag::GROUP_OBJECT);
        let permissions = group.map_or(0, |group| group.permissions);
        entries.push(Entry { tag: tag::MASK, id: NO_ID, permissions });
    }
    entries.push(Entry { tag: tag::USER, id: uid, permissions: 0 });
    entries.sort_unstable();
}

/// Takes the refusal away.
fn allow(entries: &mut Vec<Entry>, uid: u32) {
    let refusal = Entry { tag: tag::USER, id: uid, permissions: 0 };
    entries.retain(|entry| *entry != refusal);
    if !entries.iter().any(|entry| matches!(entry.tag, tag::USER | tag::GROUP)) {
        entries.retain(|entry| entry.tag != tag::MASK);
    }
}

/// Changes the list of a socket. A list that says no more than the mode is taken away.
fn change(path: &Path, how: impl FnOnce(&mut Vec<Entry>)) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.file_type().is_socket() {
        return Ok(());
    }
    let mut buffer = vec![0; LARGEST_ACL];
    let mut entries = match getxattr(path, ATTRIBUTE, buffer.as_mut_slice()) {
        Ok(length) => decode(buffer.get(..length).unwrap_or(&[])),
        Err(Errno::NODATA) => of_mode(metadata.permissions().mode()),
        Err(error) => return Err(error.into()),
    };
    how(&mut entries);
    if entries.iter().any(|entry| matches!(entry.tag, tag::USER | tag::GROUP)) {
        setxattr(path, ATTRIBUTE, &encode(&entries), XattrFlags::empty())?;
        return Ok(());
    }
    match removexattr(path, ATTRIBUTE) {
        Err(Errno::NODATA) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The list that a mode stands for.
fn of_mode(mode: u32) -> Vec<Entry> {
    let permissions = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
    vec![
        Entry { tag: tag::USER_OBJECT, id: NO_ID, permissions: permissions(6) },
        Entry { tag: tag::GROUP_OBJECT, id: NO_ID, permissions: permissions(3) },
        Entry { tag: tag::OTHER, id: NO_ID, permissions: permissions(0) },
    ]
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = ACL_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        bytes.extend(entry.tag.to_le_bytes());
        bytes.extend(entry.permissions.to_le_bytes());
        bytes.extend(entry.id.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Entry> {
    let entries = bytes.get(4..).unwrap_or(&[]);
    entries
        .chunks_exact(8)
        .filter_map(|entry| {
            Some(Entry {
                tag: u16::from_le_bytes(entry.get(..2)?.try_into().ok()?),
                permissions: u16::from_le_bytes(entry.get(2..4)?.try_into().ok()?),
                id: u32::from_le_bytes(entry.get(4..8)?.try_into().ok()?),
            })
        })
        .collect()
}

/// The sockets that engines listen on: those with a path, and abstract ones.
fn listening(root: &Path) -> (BTreeSet<PathBuf>, Vec<String>) {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    let mut paths: BTreeSet<PathBuf> =
        USUAL_SOCKETS.iter().map(|path| at(path)).filter(|path| path.exists()).collect();
    let mut abstracts = Vec::new();
    for pid in engines() {
        let listed = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
        let names: BTreeMap<u64, &str> = listed.lines().filter_map(listener).collect();
        for inode in socket_inodes(pid) {
            match names.get(&inode) {
                Some(name) if name.starts_with('@') => abstracts.push((*name).to_owned()),
                // As the engine sees it: it may live in another mount namespace.
                Some(name) => {
                    paths.extend(fs::canonicalize(name).ok().filter(|path| path.exists()));
                }
                None => {}
            }
        }
    }
    (paths, abstracts)
}

/// The TCP ports by which engines can be asked: the usual ones, and those that running engines listen on.
pub fn engine_ports() -> Vec<u16> {
    let mut ports = USUAL_PORTS.to_vec();
    for pid in engines() {
        let inodes = socket_inodes(pid);
        for table in ["tcp", "tcp6"] {
            let listed = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            let listening = listed.lines().filter_map(tcp_listener);
            ports.extend(
                listening.filter(|(inode, _)| inodes.contains(inode)).map(|(_, port)| port),
            );
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Inode and port of a listening socket in a line of `/proc/net/tcp` (proc(5)).
fn tcp_listener(line: &str) -> Option<(u64, u16)> {
    /// `TCP_LISTEN`.
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    Some((inode.parse().ok()?, port))
}

/// Root's processes that are engines by their program.
fn engines() -> Vec<u32> {
    let is_engine = |pid: &u32| {
        is_called(*pid, ENGINES)
            && ProcFs.process(*pid).is_some_and(|process| {
                let name = process.executable_name().and_then(|name| name.to_str());
                process.uid == 0 && name.is_some_and(|name| ENGINES.contains(&name))
            })
    };
    ProcFs.pids().into_iter().filter(is_engine).collect()
}

fn socket_inodes(pid: u32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

/// Inode and name of a listening socket in a line of `/proc/net/unix` (proc(5)).
fn listener(line: &str) -> Option<(u64, &str)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, _, flags, _, _, inode, name] = fields.as_slice() else { return None };
    let is_listening = u32::from_str_radix(flags, 16).ok()? & LISTENING != 0;
    let name = line.get(line.rfind(name)?..)?;
    is_listening.then_some((inode.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_refusal_comes_and_goes_and_leaves_the_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(0), Some(12_345)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let connects = |uid: u32| {
            with_rights_of(uid, uid, &[12_345], || UnixStream::connect(&path).is_ok()).unwrap()
        };
        assert!(connects(12_346));
        change(&path, |entries| refuse(entries, 12_346)).unwrap();
        // Once more changes nothing.
        change(&path, |entries| refuse(entries, 12_346)).unwrap();
        assert!(!connects(12_346));
        // Another member of the group goes on.
        assert!(connects(12_347));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        change(&path, |entries| refuse(entries, 12_347)).unwrap();
        change(&path, |entries| allow(entries, 12_346)).unwrap();
        assert!(connects(12_346) && !connects(12_347));
        change(&path, |entries| allow(entries, 12_347)).unwrap();
        assert!(connects(12_347));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let mut buffer = vec![0; 1024];
        assert_eq!(getxattr(&path, ATTRIBUTE, buffer.as_mut_slice()), Err(Errno::NODATA));
    }

    #[test]
    fn left_overs_are_opened_and_those_of_running_jobs_stay() {
        let directory = tempfile::tempdir().unwrap();
        let records = directory.path().join("closed");
        fs::create_dir(&records).unwrap();
        let path = directory.path().join("docker.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        change(&path, |entries| refuse(entries, 12_346)).unwrap();
        let is_refused = || {
            let mut buffer = vec![0; 1024];
            getxattr(&path, ATTRIBUTE, buffer.as_mut_slice()).is_ok()
        };
        let record = Record { uid: 12_346, sockets: [path.clone()].into() };
        for job in ["a", "b"] {
            fs::write(records.join(job), serde_json::to_vec(&record).unwrap()).unwrap();
        }
        open_left_overs(&records, |job| job == "b");
        assert!(is_refused());
        open_left_overs(&records, |_| false);
        assert!(!is_refused());
        assert_eq!(fs::read_dir(&records).unwrap().count(), 0);
    }

    #[test]
    fn listeners_are_read() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/docker.sock";
        assert_eq!(listener(line), Some((12345, "/run/docker.sock")));
        let connected =
            "0000000000000000: 00000003 00000000 00000000 0001 03 12345 /run/docker.sock";
        assert_eq!(listener(connected), None);
        let tcp = "   0: 0100007F:0947 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(tcp_listener(tcp), Some((4711, 2375)));
        assert_eq!(listener("Num RefCount Protocol Flags Type St Inode Path"), None);
    }
}
