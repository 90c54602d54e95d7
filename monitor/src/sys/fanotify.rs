//! Files that were written or opened, by fanotify(7): an event for each descriptor that was open for writing and is closed, or
//! for each that is opened.

use nix::errno::Errno;
use nix::unistd::read;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes that are read at once: some 170 events, each of which is an open descriptor of ours until it is dropped.
const BATCH: usize = 4096;

/// A group that is told of writes, or of opened files.
#[derive(Debug)]
pub(crate) struct FileEvents {
    group: OwnedFd,
}

/// What was told.
#[derive(Debug)]
pub(crate) enum FileEvent {
    /// A file that somebody had written to was closed, or a file was opened.
    File {
        /// The file, open for reading.
        file: OwnedFd,
        /// The process that closed or opened it.
        pid: u32,
    },
    /// There were more events than the kernel keeps.
    Lost,
}

impl FileEvents {
    /// Is told of every file that is written on the file system of `directory`, by whatever mount. Needs `CAP_SYS_ADMIN`.
    pub(crate) fn written(directory: BorrowedFd<'_>) -> io::Result<Self> {
        Self::new(directory, libc::FAN_CLOSE_WRITE)
    }

    /// Is told of every file that is opened on the file system of `directory`, likewise.
    pub(crate) fn opened(directory: BorrowedFd<'_>) -> io::Result<Self> {
        Self::new(directory, libc::FAN_OPEN)
    }

    fn new(directory: BorrowedFd<'_>, mask: u64) -> io::Result<Self> {
        let event_flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE | libc::O_NOATIME;
        Ok(Self { group: watch_file_system(directory, 0, event_flags, mask)? })
    }

    /// What waits, at most a batch; nothing when nothing waits.
    pub(crate) fn take(&self) -> io::Result<Vec<FileEvent>> {
        let mut buffer = [0; BATCH];
        match read(&self.group, &mut buffer) {
            Ok(length) => Ok(parse(buffer.get(..length).unwrap_or_default())),
            // Of the group itself, and nothing that passes.
            Err(errno @ (Errno::EBADF | Errno::EFAULT | Errno::EMFILE | Errno::ENFILE)) => {
                Err(errno.into())
            }
            // Nothing waits; or the file of an event could not be opened for us, because its process has ended, or because
            // it refuses to be opened like this (EINVAL), and the kernel has let the event go.
            Err(_) => Ok(Vec::new()),
        }
    }
}

/// A group that is told of events of `mask` on the file system of `directory`. `group_flags` say what is told beside the usual,
/// `event_flags` how files of events are opened.
pub(super) fn watch_file_system(
    directory: BorrowedFd<'_>,
    group_flags: u32,
    event_flags: i32,
    mask: u64,
) -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | group_flags;
    // SAFETY: fanotify_init takes two integers and touches no memory of ours.
    let group = unsafe { libc::fanotify_init(flags, event_flags.unsigned_abs()) };
    if group < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    let group = unsafe { OwnedFd::from_raw_fd(group) };
    // SAFETY: both descriptors are open, and the path ends with a zero byte.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM,
            mask,
            directory.as_raw_fd(),
            c".".as_ptr(),
        )
    };
    if marked < 0 { Err(io::Error::last_os_error()) } else { Ok(group) }
}

/// Is told of every file that is opened in the procfs at `/proc`.
pub(crate) fn opened_on_procfs() -> io::Result<FileEvents> {
    FileEvents::opened(std::fs::File::open("/proc")?.as_fd())
}

impl AsFd for FileEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

/// Reads `struct fanotify_event_metadata`, one after the other, and takes over their descriptors.
fn parse(mut bytes: &[u8]) -> Vec<FileEvent> {
    let mut events = Vec::new();
    while let Some(event) = bytes.get(..size_of::<libc::fanotify_event_metadata>()) {
        let word = |at: usize| event.get(at..at + 4).and_then(|word| word.first_chunk::<4>());
        let number = |at: usize| word(at).map(|word| i32::from_ne_bytes(*word)).unwrap_or_default();
        // event_len, vers, reserved, metadata_len, mask, fd, pid
        let (length, mask) = (number(0).unsigned_abs() as usize, number(8).unsigned_abs());
        let (descriptor, pid) = (number(16), number(20));
        if u64::from(mask) & libc::FAN_Q_OVERFLOW != 0 {
            events.push(FileEvent::Lost);
        } else if descriptor >= 0 {
            // SAFETY: the kernel has opened this descriptor for us with this event; nobody else owns it.
            let file = unsafe { OwnedFd::from_raw_fd(descriptor) };
            events.push(FileEvent::File { file, pid: pid.unsigned_abs() });
        }
        match bytes.get(length..) {
            Some(rest) if length > 0 => bytes = rest,
            _ => break,
        }
    }
    events
}
