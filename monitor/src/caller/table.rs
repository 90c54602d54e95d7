//! The processes of this machine as a table that can be asked, real or made up.

use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstat, stat};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
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

impl NetworkNamespaceId {
    /// The one that an open `/proc/PID/ns/net` refers to.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(namespace: impl AsFd) -> io::Result<Self> {
        let facts = fstat(namespace)?;
        Ok(Self { device: facts.st_dev, inode: facts.st_ino })
    }

    /// The one at a path, like `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn at(path: impl AsRef<Path>) -> io::Result<Self> {
        let facts = stat(path.as_ref())?;
        Ok(Self { device: facts.st_dev, inode: facts.st_ino })
    }
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

impl From<&ProcessEntry> for Parentage {
    fn from(entry: &ProcessEntry) -> Self {
        Self { key: entry.key, parent: entry.parent }
    }
}

impl From<&Self> for Parentage {
    fn from(parentage: &Self) -> Self {
        *parentage
    }
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

/// A process and its parent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parentage {
    /// Which process.
    pub key: ProcessKey,
    /// Its parent's pid; 0 for the first process of a pid namespace.
    pub parent: u32,
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
        Some(ProcessKey { pid, start_time: stat.start_time })
    }

    /// The process that holds `pid` now, and its parent.
    pub fn parentage(self, pid: u32) -> Option<Parentage> {
        let stat = read_stat(pid)?;
        let key = ProcessKey { pid, start_time: stat.start_time };
        Some(Parentage { key, parent: stat.parent })
    }

    /// Whether the process is there and not a zombie.
    pub fn is_alive(self, key: ProcessKey) -> bool {
        read_stat(key.pid).is_some_and(|stat| {
            stat.start_time == key.start_time && !matches!(stat.state, b'Z' | b'X')
        })
    }

    /// Every process with its parent: all that a search for descendants needs, at a third of the price of a [`Snapshot`].
    pub fn parents(self) -> Vec<Parentage> {
        self.pids().into_iter().filter_map(|pid| self.parentage(pid)).collect()
    }
}

impl ProcessTable for ProcFs {
    fn process(&self, pid: u32) -> Option<ProcessEntry> {
        // Holding /proc/PID open, every read below is of the same process or fails.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let process = open(format!("/proc/{pid}").as_str(), flags, Mode::empty()).ok()?;
        let stat = parse_stat(&read_at(&process, "stat", STAT_LIMIT)?)?;
        // Kernel threads and zombies have no executable; whose they are makes no difference, and most processes of an idle
        // host are kernel threads.
        let is_kernel_thread = stat.flags & PF_KTHREAD != 0;
        let executable = (!is_kernel_thread).then(|| readlinkat(&process, "exe").ok()).flatten();
        let uid = if executable.is_some() { real_uid(&process)? } else { 0 };
        Some(ProcessEntry {
            key: ProcessKey { pid, start_time: stat.start_time },
            parent: stat.parent,
            uid,
            executable: executable.map(PathBuf::from),
        })
    }

    fn pids(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn network_namespace(&self, pid: u32) -> Option<NetworkNamespaceId> {
        NetworkNamespaceId::at(format!("/proc/{pid}/ns/net")).ok()
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
fn real_uid(process: &impl AsFd) -> Option<u32> {
    let status = read_at(process, "status", STATUS_LIMIT)?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:\t"))?;
    let number = line.split(|byte| *byte == b'\t').next()?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The most of `/proc/PID/status` that is read; the line wanted is the ninth.
const STATUS_LIMIT: usize = 4096;

/// `PF_KTHREAD` of `linux/sched.h`, in the flags of `/proc/PID/stat`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// The most of `/proc/PID/stat` that is read: a name of at most 64 bytes and 50 numbers of at most 20 digits.
const STAT_LIMIT: usize = 2048;

/// What is needed of `/proc/PID/stat` (`proc_pid_stat(5)`). A start reads hundreds of these lines while a person waits, so
/// it is one `read` for each and no more fields than these.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    /// Field 3: `R`, `S`, `Z`, …
    state: u8,
    /// Field 4.
    parent: u32,
    /// Field 9.
    flags: u32,
    /// Field 22, in clock ticks since boot.
    start_time: u64,
}

fn parse_stat(line: &[u8]) -> Option<Stat> {
    // The name, in parentheses, is the process's own choice: only the last parenthesis ends it.
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(line.get(end + 1..)?).ok()?.split_ascii_whitespace();
    Some(Stat {
        state: *fields.next()?.as_bytes().first()?,
        parent: fields.next()?.parse().ok()?,
        flags: fields.nth(4)?.parse().ok()?,
        start_time: fields.nth(12)?.parse().ok()?,
    })
}

/// Reads a file below an open `/proc/PID`, in one call.
fn read_at(process: &impl AsFd, name: &str, limit: usize) -> Option<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = File::from(openat(process, name, flags, Mode::empty()).ok()?);
    read_once(&file, limit).ok()
}

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
    parse_stat(&read_bounded(&format!("/proc/{pid}/stat"), STAT_LIMIT).ok()?)
}

#[cfg(test)]
mod tests {
    use super::{Stat, parse_stat};

    #[test]
    fn a_process_can_not_choose_its_parent_by_its_name() {
        let rest = "S 41 40 40 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 7654 1 2 3";
        let stat = Stat { state: b'S', parent: 41, flags: 4_194_560, start_time: 7654 };
        for name in ["sh", "a) R 1 1 (b", ") Z 1", "x y", "\n"] {
            assert_eq!(parse_stat(format!("42 ({name}) {rest}").as_bytes()), Some(stat), "{name}");
        }
        for broken in ["", "42 (sh", "42 (sh) S", "42 (sh) S x 40 40 0 -1 4194560"] {
            assert_eq!(parse_stat(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn the_own_process_is_read_as_procfs_reads_it() {
        let own = procfs::process::Process::myself().unwrap();
        let (expected, found) =
            (own.stat().unwrap(), super::read_stat(std::process::id()).unwrap());
        assert_eq!((found.start_time, found.flags), (expected.starttime, expected.flags));
        assert_eq!(i64::from(found.parent), i64::from(expected.ppid));
    }
}
