//! Sockets of services that are closed to a job: those of container engines, when its policy disables containers, and those of
//! services that resolve names, where what they ask is not judged.
//!
//! An entry of the socket's access control list refuses the runner's user by name: that comes before its groups (acl(5)), and
//! nobody else is concerned. Whether it is refused is tried with the Worker's own rights. A service that makes its socket anew
//! is noticed by [`ClosedSockets::renew`]. What was closed is written down first, so that a monitor that dies leaves nothing
//! closed for ever.

mod access_list;
mod engines;
mod name_services;

use crate::sys::credentials::with_rights_of;
use access_list::{allow, change, refuse};
use procfs::process::Process;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use engines::{USUAL_PORTS, engine_ports};

/// The services whose sockets are closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Service {
    /// Container engines: Docker, containerd, podman, CRI-O, `BuildKit`.
    ContainerEngine,
    /// Services that resolve names for others: systemd-resolved, nscd, Avahi.
    NameService {
        /// The system bus, too, over which systemd-resolved can be asked.
        with_system_bus: bool,
    },
}

impl Service {
    /// What the files are called in which it is written down what is closed: the job's id and this.
    const fn suffix(self) -> &'static str {
        match self {
            Self::ContainerEngine => "",
            Self::NameService { .. } => ".names",
        }
    }

    /// The paths of sockets that are closed whoever made them.
    fn usual_sockets(self) -> Vec<&'static str> {
        match self {
            Self::ContainerEngine => engines::USUAL_SOCKETS.to_vec(),
            Self::NameService { with_system_bus } => {
                let bus = with_system_bus.then_some(name_services::SYSTEM_BUS);
                name_services::SOCKETS.iter().copied().chain(bus).collect()
            }
        }
    }

    /// The sockets that are there: those with a path, and abstract ones.
    fn listening(self, root: &Path) -> (BTreeSet<PathBuf>, Vec<String>) {
        let usual = self.usual_sockets();
        let mut paths: BTreeSet<PathBuf> =
            usual.iter().map(|path| below(root, path)).filter(|path| path.exists()).collect();
        let abstracts = match self {
            Self::ContainerEngine => {
                let (found, abstracts) = engines::listening();
                paths.extend(found);
                abstracts
            }
            Self::NameService { .. } => Vec::new(),
        };
        (paths, abstracts)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ContainerEngine => "a container engine",
            Self::NameService { .. } => "a service that resolves names",
        })
    }
}

/// Whether systemd-resolved can be asked over the system bus: it is there, and so is the bus.
pub fn resolves_by_system_bus(root: &Path) -> bool {
    [name_services::SYSTEM_BUS, name_services::RESOLVED]
        .iter()
        .all(|path| below(root, path).exists())
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Why a service's socket could not be closed.
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
    /// It is an abstract address, which has no permissions.
    #[error("{service} listens on the abstract address {name:?}, which can't be closed to a user")]
    Abstract {
        /// Who listens.
        service: Service,
        /// Where.
        name: String,
    },
}

/// What is closed for a job, as it is written down.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Record {
    uid: u32,
    sockets: BTreeSet<PathBuf>,
}

/// The sockets of some services that are closed for one job.
#[derive(Debug)]
pub struct ClosedSockets {
    service: Service,
    file: PathBuf,
    root: PathBuf,
    worker: u32,
    record: Record,
}

impl ClosedSockets {
    /// Closes the sockets of all such services to the user of the job's Worker. `directory` is where it is written down; `root`
    /// leads to the host's directories.
    ///
    /// # Errors
    /// When one could not be closed; then none is.
    pub fn close(
        service: Service,
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
        let file = directory.join(format!("{job}{}", service.suffix()));
        // A monitor before this one may have closed them for the same job.
        let before = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let record = Record { uid, ..before.unwrap_or_default() };
        let mut closed = Self { service, file, root: root.to_owned(), worker, record };
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
        let (paths, abstracts) = self.service.listening(&self.root);
        let _alone = one_at_a_time();
        let others = others_of(&self.file, self.record.uid);
        let mut renewed = 0;
        for path in paths {
            if !self.can_connect(&path)? {
                // What another job of the user has closed stays closed when that one ends.
                if others.contains(&path) && self.record.sockets.insert(path) {
                    self.write_down().map_err(CloseError::Record)?;
                }
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
            Some(name) => Err(CloseError::Abstract { service: self.service, name }),
            None => Ok(renewed),
        }
    }

    /// Where such services make sockets: the usual directories, or of one that is not there what is above it, and those of the
    /// sockets that were closed.
    pub fn directories(&self) -> Vec<PathBuf> {
        let usual = self.service.usual_sockets().into_iter().map(|path| below(&self.root, path));
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
        let _alone = one_at_a_time();
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
            // A service that does not accept now may do so later.
            Ok(_) => Ok(true),
            Err(error) => Ok(!matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
            )),
        }
    }
}

/// What one job closes, and another of the same user opens, must not be decided at the same time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static CHANGING: Mutex<()> = Mutex::new(());
    // Nothing is guarded but the order.
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens what jobs left closed that do not run any more: an earlier monitor died. `is_running` says which do.
pub fn open_left_overs(directory: &Path, is_running: impl Fn(&str) -> bool) {
    let _alone = one_at_a_time();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_running(name.split('.').next().unwrap_or(&name)) {
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
                tracing::error!(path = %path.display(), %error, "a service's socket could not be opened again");
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
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    /// A directory for a root, in which nscd listens, and a process that is not root's.
    fn host_with_name_service() -> (tempfile::TempDir, UnixListener, std::process::Child) {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = root.path().join("run/nscd/socket");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let worker = Command::new("sleep").arg("1000").uid(12_346).gid(12_346).spawn().unwrap();
        (root, listener, worker)
    }

    #[test]
    fn what_two_jobs_of_a_user_have_closed_is_opened_with_the_second() {
        let (root, _listener, mut worker) = host_with_name_service();
        let records = root.path().join("closed");
        let service = Service::NameService { with_system_bus: false };
        let close = |job: &str| {
            ClosedSockets::close(service, &records, root.path(), job, worker.id(), 12_346).unwrap()
        };
        let jobs = [close("a"), close("b")];
        let path = root.path().join("run/nscd/socket");
        let is_open = || jobs[0].can_connect(&path).unwrap();
        assert!(!is_open());
        jobs[0].open();
        assert!(!is_open(), "it is open to a job that runs");
        jobs[1].open();
        assert!(is_open());
        worker.kill().unwrap();
        worker.wait().unwrap();
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
        for job in ["a", "a.names", "b.names"] {
            fs::write(records.join(job), serde_json::to_vec(&record).unwrap()).unwrap();
        }
        open_left_overs(&records, |job| job == "b");
        assert!(is_refused());
        open_left_overs(&records, |_| false);
        assert!(!is_refused());
        assert_eq!(fs::read_dir(&records).unwrap().count(), 0);
    }
}
