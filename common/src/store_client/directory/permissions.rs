//! Who could change the policies.

use super::files::Entry;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Write permission of the group and of everybody else.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The sticky bit of a directory: entries can be replaced by their owners only, as in `/tmp`.
const STICKY: u32 = 0o1000;

/// A path that somebody else can change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InsecurePath {
    /// The path.
    pub path: PathBuf,
    /// Its owner.
    pub uid: u32,
    /// Its permission bits.
    pub mode: u32,
    /// Whether it is the owner who is not trusted; else it is the permission bits.
    pub is_foreign: bool,
}

impl fmt::Display for InsecurePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.is_foreign {
            write!(formatter, "{path} belongs to the user {}, who could change it", self.uid)
        } else {
            write!(
                formatter,
                "{path} can be written by others than its owner (mode {:04o})",
                self.mode
            )
        }
    }
}

/// Examines the directory, its files, and the directories above.
pub(super) fn examine(
    directory: &Path,
    entries: &[Entry],
    trusted_uids: &[u32],
) -> io::Result<Vec<InsecurePath>> {
    let root = directory.canonicalize()?;
    let mut insecure = Vec::new();
    for above in root.ancestors().skip(1) {
        insecure.extend(insecurity(above.to_owned(), trusted_uids, true)?);
    }
    insecure.extend(insecurity(root.clone(), trusted_uids, false)?);
    for entry in entries {
        let path = root.join(&entry.name);
        match path.canonicalize() {
            Ok(real) => insecure.extend(insecurity(real, trusted_uids, false)?),
            // A dangling link is refused when it is read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(insecure)
}

fn insecurity(
    path: PathBuf,
    trusted: &[u32],
    allow_sticky: bool,
) -> io::Result<Option<InsecurePath>> {
    let metadata = fs::symlink_metadata(&path)?;
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let is_foreign = !trusted.contains(&uid);
    let is_open = mode & WRITABLE_BY_OTHERS != 0 && !(allow_sticky && mode & STICKY != 0);
    Ok((is_foreign || is_open).then_some(InsecurePath { path, uid, mode, is_foreign }))
}
