//! What a file is, without asking the server behind it: a job can be the server of a file system (FUSE) that never answers.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What is known of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileFacts {
    /// Type and permissions, as `st_mode`.
    pub(crate) mode: u32,
    /// The device that it lies on: major and minor number as one.
    pub(crate) device: u64,
    /// Its inode.
    pub(crate) inode: u64,
    /// Of a device: its major and minor number.
    pub(crate) special: (u32, u32),
    /// Hard links.
    pub(crate) links: u32,
    /// Its owner.
    pub(crate) uid: u32,
    /// Its length in bytes.
    pub(crate) size: u64,
}

/// The file that `name` below `directory` leads to.
pub(crate) fn file_facts(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<FileFacts> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is borrowed and thus open, the name ends with a zero byte, and the kernel writes at most one
    // `struct statx` to memory of that size.
    let result = unsafe {
        libc::statx(
            directory.as_raw_fd(),
            name.as_ptr(),
            libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT,
            libc::STATX_BASIC_STATS,
            found.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, is made of integers, and the kernel has filled it.
    let found = unsafe { found.assume_init() };
    Ok(FileFacts {
        mode: found.stx_mode.into(),
        device: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor),
        inode: found.stx_ino,
        special: (found.stx_rdev_major, found.stx_rdev_minor),
        links: found.stx_nlink,
        uid: found.stx_uid,
        size: found.stx_size,
    })
}
