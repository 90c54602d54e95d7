//! The sockets of container engines are closed to a job whose policy disables containers.
//!
//! An entry of the socket's access control list refuses the runner's user by name: that comes before its groups (acl(5)), and
//! nobody else is concerned. Whether it is refused is tried with the Worker's own rights. An engine that makes its socket anew
//! is noticed by [`EngineSockets::renew`]. What was closed is written down first, so that a monitor that dies leaves nothing
//! closed for ever.

mod access_list;
mod listeners;

use crate::sys::credentials::with_rights_of;
use access_list::{allow, change, refuse};
use listeners::{USUAL_SOCKETS, listening};
use procfs::process::Process;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

pub use listeners::{USUAL_PORTS, engine_ports};

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

#[cfg(test)]
mod tests {
    use super::access_list::ATTRIBUTE;
    use super::*;
    use rustix::fs::getxattr;
    use std::os::unix::net::UnixListener;

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
}
