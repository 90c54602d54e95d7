//! Where cgroup v2 is mounted, and which directory stands for the group of a process.

use super::CgroupError;
use super::group::{Cgroup, parse_proc_cgroup};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// One mount of the v2 hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    /// The group that the mount point shows, relative to the root of our cgroup namespace; may start with `/..`.
    pub(super) root: PathBuf,
    /// Where it is mounted.
    pub(super) directory: PathBuf,
    /// Whether it can be written.
    pub(super) writable: bool,
}

/// The v2 hierarchy as this process sees it.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Writable mounts, the one that shows most first.
    mounts: Vec<Mount>,
}

impl Hierarchy {
    /// Finds the v2 mounts of this process, at `/sys/fs/cgroup`, beside v1 hierarchies, or anywhere else.
    ///
    /// # Errors
    /// [`CgroupError::NoHierarchy`], [`CgroupError::ReadOnly`].
    pub fn find() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text =
            std::fs::read(path).map_err(|error| CgroupError::from_io("read", path, error))?;
        let mut mounts = parse_mountinfo(&text);
        // A later mount may hide an earlier one.
        mounts.retain(|mount| {
            statfs(&mount.directory)
                .is_ok_and(|status| status.filesystem_type() == CGROUP2_SUPER_MAGIC)
        });
        Self::choose(mounts)
    }

    /// Keeps the writable mounts and sorts them, the one that shows most first.
    pub(super) fn choose(mounts: Vec<Mount>) -> Result<Self, CgroupError> {
        let Some(first) = mounts.first().cloned() else { return Err(CgroupError::NoHierarchy) };
        let mut mounts: Vec<Mount> = mounts.into_iter().filter(|mount| mount.writable).collect();
        if mounts.is_empty() {
            return Err(CgroupError::ReadOnly { mount_point: first.directory });
        }
        mounts.sort_by_key(|mount| (level(&mount.root), mount.directory.components().count()));
        Ok(Self { mounts })
    }

    /// The mount point that shows most of the hierarchy.
    pub fn mount_point(&self) -> &Path {
        self.mounts.first().map_or_else(|| Path::new("/"), |mount| &mount.directory)
    }

    /// The group of a process.
    ///
    /// # Errors
    /// [`CgroupError::Gone`], [`CgroupError::NotVisible`].
    pub fn group_of(&self, pid: u32) -> Result<Cgroup, CgroupError> {
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = std::fs::read(&file).map_err(|_| CgroupError::Gone { pid })?;
        let path = parse_proc_cgroup(&text).ok_or(CgroupError::NoHierarchy)?;
        // A dead process shows its last group, marked when that was removed.
        if path.as_os_str().as_bytes().ends_with(b" (deleted)") {
            return Err(CgroupError::Gone { pid });
        }
        self.group(&path)
    }

    /// The group of a path as `/proc/PID/cgroup` has it.
    ///
    /// # Errors
    /// [`CgroupError::NotVisible`].
    pub fn group(&self, path: &Path) -> Result<Cgroup, CgroupError> {
        let not_visible = || CgroupError::NotVisible { path: path.display().to_string() };
        let directory = self
            .mounts
            .iter()
            .find_map(|mount| directory_in(mount, path))
            .ok_or_else(not_visible)?;
        let level =
            level(path).and_then(|level| u32::try_from(level).ok()).ok_or_else(not_visible)?;
        Cgroup::open(directory, path.to_owned(), level)
    }

    /// The topmost group that is visible: the root of our cgroup namespace or above it.
    ///
    /// # Errors
    /// [`CgroupError::NotVisible`].
    pub fn root(&self) -> Result<Cgroup, CgroupError> {
        self.group(self.mounts.first().map_or_else(|| Path::new("/"), |mount| &mount.root))
    }
}

/// The directory that stands for `path` below a mount; `None` when the mount doesn't show it.
pub(super) fn directory_in(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(&mount.root).ok()?;
    let climbs = below.components().any(|component| !matches!(component, Component::Normal(_)));
    (!climbs).then(|| mount.directory.join(below))
}

/// How many groups lie between the root of our cgroup namespace and the group; `None` for one above that root.
///
/// nftables' `socket cgroupv2 level N` counts the same way: from the root of the namespace that adds the rule.
pub(super) fn level(path: &Path) -> Option<usize> {
    let mut level = 0_isize;
    for component in path.components() {
        match component {
            Component::ParentDir => level -= 1,
            Component::Normal(_) => level += 1,
            _ => {}
        }
    }
    usize::try_from(level).ok()
}

/// The v2 mounts in the text of `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).
pub(super) fn parse_mountinfo(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
}

/// One line: `31 23 0:28 ROOT MOUNT-POINT OPTIONS [TAG…] - TYPE SOURCE SUPER-OPTIONS`.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    if *fields.get(separator + 1)? != b"cgroup2" {
        return None;
    }
    let has_rw = |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"rw");
    Some(Mount {
        root: unescape(fields.get(3)?),
        directory: unescape(fields.get(4)?),
        writable: has_rw(fields.get(5)?) && has_rw(fields.get(separator + 3)?),
    })
}

/// Undoes the octal escapes of space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] = after
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = behind;
        } else {
            bytes.push(*first);
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}
