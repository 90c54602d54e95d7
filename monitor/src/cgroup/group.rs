//! One cgroup and what can be done with it.

use super::CgroupError;
use crate::sys::pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a group is told apart from all others, also by nftables.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct CgroupIdentity {
    /// The inode of its directory: what `socket cgroupv2` compares.
    pub id: u64,
    /// Its depth: 1 for a child of the root of our cgroup namespace.
    pub level: u32,
    /// Its path as `/proc/PID/cgroup` has it.
    pub path: PathBuf,
}

/// A group that existed when it was opened.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Where its files are.
    directory: PathBuf,
    /// Which one it is.
    identity: CgroupIdentity,
}

/// How many times the members are killed one by one on a kernel without `cgroup.kill`. The group is frozen meanwhile, so
/// that a second round finds nothing in the usual case.
const KILL_ROUNDS: usize = 16;

/// The most groups of a job that are walked: it can make as many as it likes when it is root.
const SUBGROUP_LIMIT: usize = 65_536;

impl Cgroup {
    /// Opens an existing directory.
    pub(super) fn open(directory: PathBuf, path: PathBuf, level: u32) -> Result<Self, CgroupError> {
        let metadata = fs::metadata(&directory)
            .map_err(|error| CgroupError::from_io("open", &directory, error))?;
        Ok(Self { directory, identity: CgroupIdentity { id: metadata.ino(), level, path } })
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which one it is.
    pub fn identity(&self) -> &CgroupIdentity {
        &self.identity
    }

    /// Creates a child group; one that exists already is an error.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn create_child(&self, name: &str) -> Result<Self, CgroupError> {
        let directory = self.directory.join(name);
        fs::create_dir(&directory)
            .map_err(|error| CgroupError::from_io("create", &directory, error))?;
        self.child(name)
    }

    /// Opens a child group.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn child(&self, name: &str) -> Result<Self, CgroupError> {
        Self::open(
            self.directory.join(name),
            self.identity.path.join(name),
            self.identity.level + 1,
        )
    }

    /// Whether the directory is still there and still this group, not a new one of the same name.
    pub fn exists(&self) -> bool {
        fs::metadata(&self.directory).is_ok_and(|metadata| metadata.ino() == self.identity.id)
    }

    /// The names of its child groups.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn child_names(&self) -> Result<Vec<String>, CgroupError> {
        let entries = fs::read_dir(&self.directory)
            .map_err(|error| CgroupError::from_io("list", &self.directory, error))?;
        Ok(entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    /// The processes in this group itself.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        read_processes(&self.directory)
            .map_err(|error| CgroupError::from_io("read the processes of", &self.directory, error))
    }

    /// The processes in this group and in every group below it.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn processes_recursive(&self) -> Result<Vec<u32>, CgroupError> {
        let mut processes = self.processes()?;
        for directory in self.directories_below() {
            // A group below that went away meanwhile has no processes.
            processes.extend(read_processes(&directory).unwrap_or_default());
        }
        processes.sort_unstable();
        processes.dedup();
        Ok(processes)
    }

    /// Whether the process is in this group or in one below it.
    pub fn contains(&self, pid: u32) -> bool {
        let Ok(text) = fs::read(format!("/proc/{pid}/cgroup")) else { return false };
        parse_proc_cgroup(&text).is_some_and(|path| path.starts_with(&self.identity.path))
            && self.exists()
    }

    /// Moves a process with all its threads into this group; `false` when it was gone.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn add(&self, pid: u32) -> Result<bool, CgroupError> {
        match write(&self.directory.join("cgroup.procs"), &pid.to_string()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(CgroupError::from_io("move a process into", &self.directory, error)),
        }
    }

    /// Stops every process of the group and below it, or lets them go on. The kernel does the stopping afterwards.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let file = self.directory.join("cgroup.freeze");
        write(&file, if frozen { "1" } else { "0" })
            .map_err(|error| CgroupError::from_io("write", &file, error))
    }

    /// Kills every process of the group and below it: `cgroup.kill` (5.14 and newer), or freezing and killing one by one.
    /// Wait for the end with [`Cgroup::wait_empty`].
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        let file = self.directory.join("cgroup.kill");
        match write(&file, "1") {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.exists() => {
                self.kill_one_by_one()
            }
            Err(error) => Err(CgroupError::from_io("kill", &file, error)),
        }
    }

    /// Killing without `cgroup.kill`: a frozen group can't fork, and a fatal signal ends a frozen process.
    pub(super) fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)?;
        for _ in 0..KILL_ROUNDS {
            let processes = self.processes_recursive()?;
            if processes.is_empty() {
                break;
            }
            for pid in processes {
                self.kill_member(pid);
            }
        }
        Ok(())
    }

    /// Kills `pid` if it is a member. The pidfd is opened before the membership is checked, so that a recycled pid is
    /// not killed.
    fn kill_member(&self, pid: u32) {
        let Ok(descriptor) = pidfd::open(pid) else { return };
        if self.contains(pid) {
            // A process that is gone by now needs no signal; any other failure shows as a group that is not empty.
            let _ = pidfd::send_signal(descriptor.as_fd(), Signal::SIGKILL);
        }
    }

    /// Whether a process lives in the group or below it.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        let file = self.directory.join("cgroup.events");
        let text = fs::read_to_string(&file)
            .map_err(|error| CgroupError::from_io("read", &file, error))?;
        Ok(is_populated(&text))
    }

    /// Waits until no process lives in the group or below it; blocks the thread, without polling. `false` when
    /// `timeout` ran out. A group that was removed is empty.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool, CgroupError> {
        let path = self.directory.join("cgroup.events");
        let failed = |error| CgroupError::from_io("watch", &path, error);
        let deadline = Instant::now() + timeout;
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(failed(error)),
        };
        loop {
            let mut text = String::new();
            match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
                Ok(_) if is_populated(&text) => {}
                Ok(_) => return Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(true),
                Err(error) => return Err(failed(error)),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // kernfs reports a change since the last read as POLLPRI.
            let mut descriptors = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            let patience =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut descriptors, patience) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// Removes the group and every group below it; they must be empty. A group that is gone is no error.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut directories = self.directories_below();
        // The deepest first.
        directories.sort_by_key(|directory| std::cmp::Reverse(directory.components().count()));
        directories.push(self.directory.clone());
        for directory in directories {
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CgroupError::from_io("remove", &directory, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Every directory below this one.
    fn directories_below(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = Vec::new();
        let mut next = 0;
        let mut current = self.directory.clone();
        loop {
            if let Ok(entries) = fs::read_dir(&current) {
                found.extend(
                    entries
                        .flatten()
                        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                        .map(|entry| entry.path()),
                );
            }
            match found.get(next) {
                Some(directory) if found.len() < SUBGROUP_LIMIT => current.clone_from(directory),
                _ => return found,
            }
            next += 1;
        }
    }
}

/// `populated` of `cgroup.events`.
fn is_populated(events: &str) -> bool {
    !events.lines().any(|line| line == "populated 0")
}

/// The pids in `cgroup.procs`; of a threaded group, which refuses that, those in `cgroup.threads`.
fn read_processes(directory: &Path) -> io::Result<Vec<u32>> {
    let text = match fs::read_to_string(directory.join("cgroup.procs")) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            fs::read_to_string(directory.join("cgroup.threads"))?
        }
        text => text?,
    };
    // 0 stands for a process that our pid namespace can't see.
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
}

/// Writes a control file in one call; the files exist or the kernel has no such feature.
fn write(path: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}

/// The v2 group in the text of `/proc/PID/cgroup`: the line `0::PATH`.
pub(crate) fn parse_proc_cgroup(text: &[u8]) -> Option<PathBuf> {
    text.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))
        .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
}
