//! The listening socket: from systemd, or made here; never two monitors on one.

use crate::config::Paths;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// The socket and what keeps a second monitor away from it.
#[derive(Debug)]
pub struct Listener {
    /// The socket, in non-blocking mode.
    pub socket: UnixListener,
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
    /// Takes the socket that systemd `passed`, or makes `/run/portcullis/monitor.sock`.
    ///
    /// # Errors
    /// When another monitor runs there, or the socket can't be made.
    pub fn open(paths: &Paths, passed: Option<UnixListener>) -> Result<Self, ListenError> {
        let run = paths.run();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&run)
            .map_err(|source| ListenError::Failed { path: run.clone(), source })?;
        let lock = lock(run.join("monitor.lock"))?;
        let path = paths.socket();
        let failed = |source| ListenError::Failed { path: path.clone(), source };
        let socket = if let Some(socket) = passed {
            socket
        } else {
            // The lock is ours, so a socket that is still there belongs to a monitor that is gone.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
            let socket = UnixListener::bind(&path).map_err(failed)?;
            // Runners are ordinary users; who is calling is found out from the kernel, not by file permissions.
            fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(failed)?;
            socket
        };
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { socket, _lock: lock })
    }
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
