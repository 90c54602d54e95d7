//! The processes of this machine as a table that can be asked, real or made up.

use procfs::process::{Process, Stat};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names one process for good: a pid can be recycled, a pid with its start time can't.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ProcessKey {
    /// The process id in the monitor's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (started at tick {})", self.pid, self.start_time)
    }
}

/// A network namespace: device and inode of `/proc/PID/ns/net`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct NetworkNamespaceId {
    /// The device of the nsfs.
    pub device: u64,
    /// The inode of the namespace.
    pub inode: u64,
}

/// What the decisions of this module need to know of a process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessEntry {
    /// Which process.
    pub key: ProcessKey,
    /// Its parent's pid; 0 for the first process of a pid namespace.
    pub parent: u32,
    /// The real user id.
    pub uid: u32,
    /// What `/proc/PID/exe` points at, as the kernel shows it; `None` for kernel threads and zombies.
    pub executable: Option<PathBuf>,
}

impl ProcessEntry {
    /// The base name of the executable, without the ` (deleted)` that the kernel adds when the file was replaced, as the
    /// runner's self-update does.
    pub fn executable_name(&self) -> Option<&OsStr> {
        let path = self.executable.as_deref()?.as_os_str().as_bytes();
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        Path::new(OsStr::from_bytes(path)).file_name()
    }

    /// Whether this is a `Runner.Worker` by its name alone.
    pub fn is_named_worker(&self) -> bool {
        self.executable_name() == Some(OsStr::new("Runner.Worker"))
    }

    /// Whether this is a `Runner.Listener` by its name alone.
    pub fn is_named_listener(&self) -> bool {
        self.executable_name() == Some(OsStr::new("Runner.Listener"))
    }
}

/// Processes that can be looked up. Every answer may be out of date when it arrives.
pub trait ProcessTable {
    /// The process that holds `pid` now, `None` when there is none or it went away while it was read.
    fn process(&self, pid: u32) -> Option<ProcessEntry>;

    /// Every pid there is now.
    fn pids(&self) -> Vec<u32>;

    /// The network namespace that the process lives in.
    fn network_namespace(&self, pid: u32) -> Option<NetworkNamespaceId>;

    /// Whether the process was started with `RUNNER_TRACKING_ID` in its environment.
    fn has_tracking_id(&self, pid: u32) -> bool;
}

/// The real table: `/proc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcFs;

impl ProcFs {
    /// The key of the process that holds `pid` now.
    pub fn key(self, pid: u32) -> Option<ProcessKey> {
        let stat = read_stat(pid)?;
        Some(ProcessKey { pid, start_time: stat.starttime })
    }

    /// Whether the process is there and not a zombie.
    pub fn is_alive(self, key: ProcessKey) -> bool {
        read_stat(key.pid).is_some_and(|stat| {
            stat.starttime == key.start_time && !matches!(stat.state, 'Z' | 'X')
        })
    }
}

impl ProcessTable for ProcFs {
    fn process(&self, pid: u32) -> Option<ProcessEntry> {
        // `Process` holds /proc/PID open: every read below is of the same process or fails.
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        let executable = process.exe().ok();
        // Kernel threads and zombies have no executable; whose they are makes no difference, and reading it is the
        // slowest part.
        let uid = if executable.is_some() { real_uid(&process)? } else { 0 };
        Some(ProcessEntry {
            key: ProcessKey { pid, start_time: stat.starttime },
            parent: u32::try_from(stat.ppid).unwrap_or(0),
            uid,
            executable,
        })
    }

    fn pids(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn network_namespace(&self, pid: u32) -> Option<NetworkNamespaceId> {
        let metadata = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
        Some(NetworkNamespaceId { device: metadata.dev(), inode: metadata.ino() })
    }

    fn has_tracking_id(&self, pid: u32) -> bool {
        environment_value(pid, b"RUNNER_TRACKING_ID").is_some()
    }
}

/// The real table as it was when it was taken: each process is read once, however often it is asked for. What follows from
/// it must bear that a process has gone or come since.
#[derive(Clone, Debug)]
pub struct Snapshot {
    processes: HashMap<u32, ProcessEntry>,
}

impl Snapshot {
    /// Reads all of `/proc`.
    pub fn take() -> Self {
        let processes =
            ProcFs.pids().into_iter().filter_map(|pid| Some((pid, ProcFs.process(pid)?)));
        Self { processes: processes.collect() }
    }

    /// Every process.
    pub fn entries(&self) -> impl Iterator<Item = &ProcessEntry> {
        self.processes.values()
    }
}

impl ProcessTable for Snapshot {
    fn process(&self, pid: u32) -> Option<ProcessEntry> {
        self.processes.get(&pid).cloned()
    }

    fn pids(&self) -> Vec<u32> {
        self.processes.keys().copied().collect()
    }

    fn network_namespace(&self, pid: u32) -> Option<NetworkNamespaceId> {
        ProcFs.network_namespace(pid)
    }

    fn has_tracking_id(&self, pid: u32) -> bool {
        ProcFs.has_tracking_id(pid)
    }
}

/// The most of an environment that is read: the kernel lets a process have several MiB, the runner's jobs need some
/// tens of KiB.
const ENVIRONMENT_LIMIT: usize = 1 << 20;

/// The value of one variable in the *initial* environment area of a process. The process can overwrite it.
pub(crate) fn environment_value(pid: u32, name: &[u8]) -> Option<Vec<u8>> {
    let environment = read_bounded(&format!("/proc/{pid}/environ"), ENVIRONMENT_LIMIT).ok()?;
    environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(name)?.strip_prefix(b"="))
        .map(<[u8]>::to_vec)
}

/// The real user id: the first number of the line `Uid:` of `/proc/PID/status`. Reading the whole file into a structure
/// costs more than all else that is read of a process.
fn real_uid(process: &Process) -> Option<u32> {
    let mut status = Vec::new();
    process.open_relative("status").ok()?.take(STATUS_LIMIT).read_to_end(&mut status).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:\t"))?;
    let number = line.split(|byte| *byte == b'\t').next()?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The most of `/proc/PID/status` that is read; the line wanted is the ninth.
const STATUS_LIMIT: u64 = 4096;

/// Reads a file of `/proc` up to `limit` bytes.
pub(crate) fn read_bounded(path: &str, limit: usize) -> io::Result<Vec<u8>> {
    read_once(&File::open(path)?, limit)
}

/// Reads up to `limit` bytes in one call. The kernel keeps the memory of a process in place only during a call: with
/// several, `cmdline` and `environ` of a process that exits meanwhile end in the middle of a word.
pub(crate) fn read_once(mut file: &File, limit: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; limit];
    let length = file.read(&mut content)?;
    content.truncate(length);
    Ok(content)
}

/// `/proc/PID/stat`.
fn read_stat(pid: u32) -> Option<Stat> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()
}
