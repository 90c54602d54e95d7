//! Starting a monitor where the hook runs as root and nobody listens: a container image, a first job after boot.

use nix::unistd::Uid;
use portcullis_common::wire::SOCKET_PATH;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Permission bits that let somebody other than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A monitor that can be started.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct StartMonitor {
    executable: PathBuf,
    root: PathBuf,
}

/// Why no monitor was started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The executable, or a directory above it, can be changed by somebody other than root.
    NotRootOnly(PathBuf),
    /// The executable can't be looked at or run.
    Failed(PathBuf, io::Error),
}

impl StartMonitor {
    /// The monitor to start when nobody listens on `socket`; `None` unless this process is root.
    pub(crate) fn plan(socket: &Path) -> Option<Self> {
        if !Uid::effective().is_root() {
            return None;
        }
        // The monitor beside this executable: `PATH` can be set by whoever writes the runner's files.
        let own = std::env::current_exe().ok()?;
        let executable = own.parent()?.join("monitor");
        Some(Self { executable, root: root_of(socket)? })
    }

    /// Starts it, detached: no inherited standard streams, no environment of the job, working directory `/`.
    pub(crate) fn start(&self) -> Result<(), StartError> {
        refuse_what_others_can_change(&self.executable)?;
        let failed = |error| StartError::Failed(self.executable.clone(), error);
        // The runner kills what keeps a hook's streams open, and what carries its RUNNER_TRACKING_ID (actions/runner,
        // ProcessInvoker.cs and JobExtension.cs): the monitor must have neither.
        Command::new(&self.executable)
            .arg("--root")
            .arg(&self.root)
            .args(["serve", "--detach"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(drop)
            .map_err(failed)
    }
}

/// The root directory below which `socket` is the monitor's usual socket; `None` when it lies elsewhere.
fn root_of(socket: &Path) -> Option<PathBuf> {
    let usual = Path::new(SOCKET_PATH).strip_prefix("/").ok()?;
    let mut root = socket.to_owned();
    for component in usual.components().rev() {
        if root.file_name() != Some(component.as_os_str()) {
            return None;
        }
        root.pop();
    }
    Some(root)
}

/// Root must not run what a job can change: the file and every directory above it belong to root alone.
fn refuse_what_others_can_change(executable: &Path) -> Result<(), StartError> {
    let failed = |error| StartError::Failed(executable.to_owned(), error);
    let real = fs::canonicalize(executable).map_err(failed)?;
    for place in real.ancestors() {
        let metadata = fs::metadata(place).map_err(failed)?;
        let sticky_directory = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        let writable = metadata.mode() & WRITABLE_BY_OTHERS != 0 && !sticky_directory;
        if metadata.uid() != 0 || writable {
            return Err(StartError::NotRootOnly(place.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{StartError, refuse_what_others_can_change, root_of};
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::path::{Path, PathBuf};

    #[test]
    fn the_root_is_what_stands_before_the_usual_path() {
        let root = |socket: &str| root_of(Path::new(socket));
        assert_eq!(root("/run/portcullis/monitor.sock"), Some(PathBuf::from("/")));
        assert_eq!(root("/srv/a/run/portcullis/monitor.sock"), Some(PathBuf::from("/srv/a")));
        assert_eq!(root("/tmp/monitor.sock"), None);
        assert_eq!(root("monitor.sock"), None);
    }

    #[test]
    fn only_what_root_alone_can_change_is_started() {
        let directory = tempfile::tempdir().unwrap();
        let executable = directory.path().join("monitor");
        fs::write(&executable, "").unwrap();
        fs::set_permissions(&executable, Permissions::from_mode(0o755)).unwrap();
        refuse_what_others_can_change(&executable).unwrap();

        fs::set_permissions(&executable, Permissions::from_mode(0o775)).unwrap();
        let error = refuse_what_others_can_change(&executable).unwrap_err();
        assert!(matches!(error, StartError::NotRootOnly(place) if place == executable));

        fs::set_permissions(&executable, Permissions::from_mode(0o755)).unwrap();
        chown(directory.path(), Some(12_345), None).unwrap();
        let error = refuse_what_others_can_change(&executable).unwrap_err();
        assert!(matches!(error, StartError::NotRootOnly(place) if place == directory.path()));
    }

    #[test]
    fn a_missing_monitor_is_an_error() {
        let error = refuse_what_others_can_change(Path::new("/nowhere/monitor")).unwrap_err();
        assert!(matches!(error, StartError::Failed(..)));
    }
}
