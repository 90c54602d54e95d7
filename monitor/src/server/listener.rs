//! The listening socket: from systemd, or made here; never two monitors on one.

use crate::config::Paths;
use crate::containers::authorization;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The socket and what keeps a second monitor away from it.
#[derive(Debug)]
pub struct Listener {
    /// The socket, in non-blocking mode.
    pub socket: UnixListener,
    /// The socket on which a Docker engine asks for authorization, when there is to be one; in non-blocking mode.
    pub docker_plugin: Option<UnixListener>,
    /// Held for as long as this monitor lives.
    _lock: Flock<File>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another monitor runs on the same root.
    #[error("another monitor runs on {}", .path.display())]
    AlreadyRunning {
        /// The lock that it holds.
        path: PathBuf,
    },
    /// The socket or its directory can't be made.
    #[error("{} can't be made", .path.display())]
    Failed {
        /// What could not be made.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Listener {
    /// Takes the sockets that systemd `passed`, or makes `/run/portcullis/monitor.sock`, and `/run/docker/plugins/portcullis.sock`
    /// when `is_docker_plugin`.
    ///
    /// # Errors
    /// When another monitor runs there, or the socket can't be made.
    pub fn open(
        paths: &Paths,
        is_docker_plugin: bool,
        passed: Vec<(String, UnixListener)>,
    ) -> Result<Self, ListenError> {
        let run = paths.run();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&run)
            .map_err(|source| ListenError::Failed { path: run.clone(), source })?;
        let lock = lock(run.join("monitor.lock"))?;
        let path = paths.socket();
        let failed = |source| ListenError::Failed { path: path.clone(), source };
        let (mut plugins, mut passed): (Vec<_>, Vec<_>) =
            passed.into_iter().partition(|(name, _)| name == authorization::DESCRIPTOR_NAME);
        let socket = match passed.pop() {
            Some((_, socket)) => socket,
            // Runners are ordinary users; who is calling is found out from the kernel, not by file permissions.
            None => make(&path, 0o666)?,
        };
        socket.set_nonblocking(true).map_err(failed)?;
        let docker_plugin = match plugins.pop() {
            Some((_, socket)) => Some(socket),
            None if is_docker_plugin => {
                let path = paths.at(authorization::SOCKET_PATH);
                let directory = path.parent().unwrap_or(&path);
                fs::create_dir_all(directory)
                    .map_err(|source| ListenError::Failed { path: directory.to_owned(), source })?;
                Some(make(&path, 0o600)?)
            }
            None => None,
        };
        if let Some(socket) = &docker_plugin {
            socket.set_nonblocking(true).map_err(failed)?;
        }
        Ok(Self { socket, docker_plugin, _lock: lock })
    }
}

/// Makes a socket. The monitor's lock is held, so one that is still there belongs to a monitor that is gone.
fn make(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Failed { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let socket = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    Ok(socket)
}

fn lock(path: PathBuf) -> Result<Flock<File>, ListenError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| ListenError::Failed { path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| ListenError::AlreadyRunning { path })
}
