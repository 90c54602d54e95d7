//! What lies in the directory, and reading it without being held up or led elsewhere.

use crate::policy::{MAX_FILE_BYTES, Place, PolicyError, too_large};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most policy files that a directory may hold.
pub(super) const MAX_FILES: usize = 10_000;

/// A file that changed less than this before it was looked at may change again without its times telling: the kernel stamps
/// files with the time of the last tick, up to 10 ms old.
const SETTLED_AFTER: Duration = Duration::from_millis(50);

/// What tells whether a file is the same: its name, where it is, its size and its times.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// The name within the directory.
    pub(super) name: OsString,
    /// Device, inode, size, and modification and change time in seconds and nanoseconds; `None` for a dangling link.
    state: Option<[i128; 5]>,
}

/// The policy files of a directory at one time.
#[derive(Debug)]
pub(super) struct Snapshot {
    entries: Vec<Entry>,
    is_settled: bool,
}

impl Snapshot {
    /// Looks at the directory.
    pub(super) fn take(directory: &Path) -> io::Result<Self> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            if !is_policy_file(&name) {
                continue;
            }
            // Through links: the file is what is read.
            let state = fs::metadata(directory.join(&name)).ok().map(|file| {
                let time = |seconds: i64, nanoseconds: i64| {
                    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
                };
                [
                    i128::from(file.dev()),
                    i128::from(file.ino()),
                    i128::from(file.size()),
                    time(file.mtime(), file.mtime_nsec()),
                    time(file.ctime(), file.ctime_nsec()),
                ]
            });
            entries.push(Entry { name, state });
            if entries.len() > MAX_FILES {
                break;
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let newest = entries.iter().filter_map(|entry| entry.state).map(|state| state[4]).max();
        let limit =
            i128::try_from(now.saturating_sub(SETTLED_AFTER).as_nanos()).unwrap_or(i128::MAX);
        Ok(Self { entries, is_settled: newest.is_none_or(|newest| newest < limit) })
    }

    /// The files by name.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether there are more files than a store may have.
    pub(super) fn is_too_large(&self) -> bool {
        self.entries.len() > MAX_FILES
    }

    /// Whether `other` sees the same files.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// Whether what was read after this snapshot is what `now` would read.
    pub(super) fn stands_for(&self, now: &Self) -> bool {
        self.is_settled && self.is_same(now)
    }
}

/// `*.yaml` and `*.yml`, unless hidden.
fn is_policy_file(name: &OsString) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".") && (name.ends_with(b".yaml") || name.ends_with(b".yml"))
}

/// The content of a regular file below `directory`.
pub(super) fn read(directory: &Path, file: &Path) -> Result<Vec<u8>, PolicyError> {
    let fail = |message: String, hint: &str| PolicyError {
        place: Place::file(file.display().to_string()),
        key: None,
        message,
        hint: hint.to_owned(),
    };
    let unreadable = |error: io::Error| {
        fail(format!("the file can't be read: {error}"), "check that it exists and who may read it")
    };
    let root = directory.canonicalize().map_err(unreadable)?;
    let real = file.canonicalize().map_err(unreadable)?;
    if !real.starts_with(&root) {
        let message = format!("the link leads out of the policy directory, to {}", real.display());
        return Err(fail(message, "put the file itself into the directory"));
    }
    // O_NONBLOCK: opening a FIFO returns at once. O_NOFOLLOW: the path has no links left unless it was changed just now.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(&real)
        .map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(fail(
            "this is not a regular file".to_owned(),
            "remove it, or give it a name that does not end in .yaml or .yml",
        ));
    }
    if metadata.len() > MAX_FILE_BYTES as u64 {
        return Err(too_large(&file.display().to_string(), metadata.len()));
    }
    read_bounded(&opened).map_err(unreadable)
}

/// The file's content, one byte beyond the limit at most, so that a file that grows is refused and not cut.
fn read_bounded(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
