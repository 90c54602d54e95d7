//! Files that were renamed, by fanotify(7): an event for each name that a file was given.

use super::fanotify::watch_file_system;
use nix::errno::Errno;
use nix::unistd::read;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Bytes that are read at once: an event takes some 80 with the name.
const BATCH: usize = 8192;

/// `sizeof(struct fanotify_event_info_header)` and the `fsid` behind it; what is before the bytes of a `struct file_handle`.
const INFO_HEADER: usize = 4;
const FILE_SYSTEM: usize = 8;
const HANDLE_HEADER: usize = 8;

/// The longest handle that the kernel makes (`MAX_HANDLE_SZ`).
const LONGEST_HANDLE: usize = 128;

/// A group that is told of renamed files.
#[derive(Debug)]
pub(crate) struct Renames {
    group: OwnedFd,
    /// A directory of the file system, by whose mount directories are found.
    mount: OwnedFd,
}

/// What was told.
#[derive(Debug)]
pub(crate) enum Rename {
    /// A file was given this name.
    To {
        /// The name.
        path: PathBuf,
        /// The process that did it.
        pid: u32,
    },
    /// There were more events than the kernel keeps.
    Lost,
}

/// A directory as an event names it, and a name within.
#[derive(Debug, Eq, PartialEq)]
struct Place {
    kind: i32,
    handle: Vec<u8>,
    name: OsString,
}

/// `struct file_handle` with room for every handle.
#[repr(C)]
struct FileHandle {
    length: u32,
    kind: i32,
    bytes: [u8; LONGEST_HANDLE],
}

impl Renames {
    /// Is told of every file that is renamed on the file system of `directory`. Needs `CAP_SYS_ADMIN`, `CAP_DAC_READ_SEARCH`
    /// to tell where, and a file system with handles for its files.
    pub(crate) fn of(directory: BorrowedFd<'_>) -> io::Result<Self> {
        let named = libc::FAN_REPORT_DIR_FID | libc::FAN_REPORT_NAME;
        let group = watch_file_system(directory, named, libc::O_RDONLY, libc::FAN_MOVED_TO)?;
        Ok(Self { group, mount: directory.try_clone_to_owned()? })
    }

    /// What waits, at most a batch; nothing when nothing waits.
    pub(crate) fn take(&self) -> io::Result<Vec<Rename>> {
        let mut buffer = [0; BATCH];
        let length = match read(&self.group, &mut buffer) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        };
        let told =
            parse(buffer.get(..length).unwrap_or_default()).into_iter().filter_map(|event| {
                match event {
                    None => Some(Rename::Lost),
                    Some((place, pid)) => Some(Rename::To { path: self.path(&place).ok()?, pid }),
                }
            });
        Ok(told.collect())
    }

    /// Where that is now; an error when the directory is gone.
    fn path(&self, place: &Place) -> io::Result<PathBuf> {
        let mut handle = FileHandle { length: 0, kind: place.kind, bytes: [0; LONGEST_HANDLE] };
        let bytes = handle.bytes.get_mut(..place.handle.len());
        bytes.ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(&place.handle);
        handle.length = u32::try_from(place.handle.len()).map_err(io::Error::other)?;
        // SAFETY: the handle lives for the call, and has as many bytes as it says; the descriptor is open.
        let directory = unsafe {
            libc::open_by_handle_at(
                self.mount.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if directory < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
        let directory = unsafe { OwnedFd::from_raw_fd(directory) };
        let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        Ok(path.join(&place.name))
    }
}

impl AsFd for Renames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

/// Reads `struct fanotify_event_metadata` with what follows each; `None` for events that were lost.
fn parse(mut bytes: &[u8]) -> Vec<Option<(Place, u32)>> {
    const METADATA: usize = size_of::<libc::fanotify_event_metadata>();
    let mut events = Vec::new();
    while bytes.len() >= METADATA {
        // event_len, vers, reserved, metadata_len, mask, fd, pid
        let length = word(bytes, 0) as usize;
        let Some(event) = bytes.get(..length).filter(|_| length >= METADATA) else { break };
        if u64::from(word(event, 8)) & libc::FAN_Q_OVERFLOW != 0 {
            events.push(None);
        } else if let Some(place) = place(&event[METADATA..]) {
            events.push(Some((place, word(event, 20))));
        }
        bytes = &bytes[length..];
    }
    events
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_ne_bytes)
}

/// Reads the first record of an event that has a directory and a name.
fn place(mut records: &[u8]) -> Option<Place> {
    loop {
        let (kind, length) = (*records.first()?, word(records, 0) >> 16);
        let length = usize::try_from(length).ok()?;
        let record = records.get(..length).filter(|_| length >= INFO_HEADER)?;
        if kind == libc::FAN_EVENT_INFO_TYPE_DFID_NAME {
            let handle = record.get(INFO_HEADER + FILE_SYSTEM..)?;
            let bytes = word(handle, 0) as usize;
            let rest = handle.get(HANDLE_HEADER..)?;
            let (bytes, name) = rest.split_at_checked(bytes)?;
            let name = name.split(|byte| *byte == 0).next()?.to_vec();
            return Some(Place {
                kind: word(handle, 4).cast_signed(),
                handle: bytes.to_vec(),
                name: OsString::from_vec(name),
            });
        }
        records = &records[length..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_file_is_told_with_its_new_name() {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::File::open(directory.path()).unwrap();
        let renames = Renames::of(open.as_fd()).unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        fs::write(directory.path().join("one"), "1").unwrap();
        let to = directory.path().join("below/two");
        fs::rename(directory.path().join("one"), &to).unwrap();
        let found = crate::caller::testing::eventually("the event", || {
            renames.take().unwrap().into_iter().find_map(|rename| match rename {
                Rename::To { path, pid } if path == to => Some(pid),
                _ => None,
            })
        });
        assert_eq!(found, std::process::id());
    }

    #[test]
    fn lengths_that_can_t_be_right_end_it() {
        for length in [0_u32, 23, 24, 40, 4096] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.resize(40, 0);
            assert!(parse(&bytes).is_empty(), "{length}");
        }
        let mut lost = 24_u32.to_ne_bytes().to_vec();
        lost.resize(24, 0);
        lost[8..12].copy_from_slice(&u32::try_from(libc::FAN_Q_OVERFLOW).unwrap().to_ne_bytes());
        assert_eq!(parse(&lost), [None]);
    }
}
