//! Paths of the host in a container: which of them give the job something that it has not.

use super::Privilege;
use std::path::{Path, PathBuf};

/// Names of sockets by which containers are made.
const ENGINE_SOCKETS: &[&str] = &[
    "docker.sock",
    "containerd.sock",
    "containerd.sock.ttrpc",
    "podman.sock",
    "crio.sock",
    "dockershim.sock",
    "cri-dockerd.sock",
    "buildkitd.sock",
    "docker-containerd.sock",
];

/// Directories that everybody can read, and that hold no secrets, on the systems that have them: read-only they give nothing.
const PUBLIC_DIRECTORIES: &[&str] = &[
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/sys/fs/cgroup",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
];

/// Directories that everybody can write to.
const SHARED_DIRECTORIES: &[&str] = &["/tmp", "/var/tmp", "/dev/shm"];

/// What a path is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PathKind {
    /// A directory, or what is not known.
    #[default]
    Directory,
    /// A file.
    File,
    /// A socket.
    Socket,
    /// A device node or a FIFO.
    Other,
}

/// A path of the host that is, or is to be, mounted in a container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostPath {
    /// Where it is on the host, without symbolic links.
    pub path: PathBuf,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// What it is.
    pub kind: PathKind,
    /// Whose it is; `None` when that could not be found out.
    pub owner: Option<u32>,
    /// Its permission bits.
    pub mode: u32,
}

/// What a job has by itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct JobOwn {
    /// The runner's user.
    pub uid: u32,
    /// Directories that are the runner's: its root with the workspace, and its user's home.
    pub directories: Vec<PathBuf>,
}

impl HostPath {
    /// What the job gains by the mount.
    pub(super) fn privilege(&self, own: &JobOwn) -> Option<Privilege> {
        let gained =
            Some(Privilege::HostPath { path: self.path.clone(), read_only: self.read_only });
        if self.kind == PathKind::Socket {
            // An engine's is told apart; another one's owner lets in whom it lets in.
            return None;
        }
        let below = |directories: &[&str]| {
            directories.iter().any(|directory| self.path.starts_with(directory))
        };
        let is_runners = own.directories.iter().any(|directory| self.path.starts_with(directory));
        // Root owns the whole system, so that of a job that runs as root only the runner's directories are its own.
        let is_own = is_runners || (own.uid != 0 && self.owner == Some(own.uid));
        if is_own || SHARED_DIRECTORIES.iter().any(|shared| self.path == Path::new(shared)) {
            return None;
        }
        if below(SHARED_DIRECTORIES) && self.mode & 0o002 != 0 {
            return None;
        }
        let everybody_reads = self.mode & 0o004 != 0;
        match self.kind {
            PathKind::File if self.read_only && everybody_reads => None,
            PathKind::File if self.mode & 0o002 != 0 => None,
            PathKind::Directory if self.read_only && below(PUBLIC_DIRECTORIES) => None,
            _ => gained,
        }
    }

    /// Whether it is an engine's socket, or a directory that has nothing but one.
    pub(super) fn is_engine_socket(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        self.kind == PathKind::Socket && name.is_some_and(|name| ENGINE_SOCKETS.contains(&name))
    }

    /// Whether it is the socket that `actions/runner` mounts by itself.
    pub(super) fn is_docker_socket(&self) -> bool {
        self.path.file_name().is_some_and(|name| name == "docker.sock")
    }
}
