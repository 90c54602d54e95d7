//! The embedded store: a directory of policy files.
//!
//! Read are the `*.yaml` and `*.yml` entries of the directory itself, sorted by name; entries that begin with a dot, other
//! names and subdirectories are not. A link is followed when its target lies below the directory (so that a mounted
//! Kubernetes `ConfigMap` works) and refused when it leads elsewhere. Anything that is not a regular file is refused, and is
//! opened so that a FIFO can't hold up the reader. All files are one whole: one mistake, and none is used.

mod files;
mod permissions;

#[cfg(test)]
mod tests;

use crate::policy::error::ErrorList;
use crate::policy::{Completeness, Place, PolicyError, PolicyErrors, parse_documents};
use crate::resolution::PolicySet;
use files::Snapshot;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use permissions::InsecurePath;

/// How often a directory is read again when it changes while it is read.
const MAX_READS: usize = 5;

/// The embedded store.
#[derive(Debug)]
pub struct DirectoryStore {
    path: PathBuf,
    cached: Mutex<Option<Cached>>,
}

#[derive(Debug)]
struct Cached {
    snapshot: Snapshot,
    result: Result<Arc<PolicySet>, PolicyErrors>,
}

impl DirectoryStore {
    /// Opens a directory of policy files. Mistakes in the files are what [`Self::current`] tells.
    ///
    /// # Errors
    /// When `path` is no directory that can be read.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        std::fs::read_dir(&path)?;
        Ok(Self { path, cached: Mutex::new(None) })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The policies as the files are now. Files are read again only when names, sizes, times or inodes have changed.
    ///
    /// # Errors
    /// Everything that is wrong with the files, up to a bound; then nothing of them can be used, not even what was valid
    /// before.
    pub fn current(&self) -> Result<Arc<PolicySet>, PolicyErrors> {
        // A panic while the lock was held leaves the cache as it was before, which the snapshot still describes.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = self.snapshot()?;
        if let Some(known) = cached.as_ref().filter(|known| known.snapshot.stands_for(&before)) {
            return known.result.clone();
        }
        for _ in 0..MAX_READS {
            let result = self.load(&before);
            let after = self.snapshot()?;
            if before.is_same(&after) {
                *cached = Some(Cached { snapshot: before, result: result.clone() });
                return result;
            }
            before = after;
        }
        Err(self.error(
            "the directory keeps changing while it is read",
            "write files elsewhere and rename them into it",
        ))
    }

    /// What others than `trusted_uids` can write to: the directory, the files, and the directories that lead there.
    /// The caller decides what to do about it.
    ///
    /// # Errors
    /// When a path can't be examined.
    pub fn insecure_permissions(&self, trusted_uids: &[u32]) -> io::Result<Vec<InsecurePath>> {
        let snapshot = Snapshot::take(&self.path)?;
        permissions::examine(&self.path, snapshot.entries(), trusted_uids)
    }

    fn snapshot(&self) -> Result<Snapshot, PolicyErrors> {
        Snapshot::take(&self.path).map_err(|error| {
            self.error(
                &format!("the directory can't be read: {error}"),
                "check that it exists and who may read it",
            )
        })
    }

    fn load(&self, snapshot: &Snapshot) -> Result<Arc<PolicySet>, PolicyErrors> {
        let mut errors = ErrorList::default();
        let mut documents = Vec::new();
        if snapshot.is_too_large() {
            let hint = "remove what is no policy file, or split the store";
            return Err(self.error(
                &format!("the directory holds more than {} policy files", files::MAX_FILES),
                hint,
            ));
        }
        for entry in snapshot.entries() {
            let file = self.path.join(&entry.name);
            let name = file.display().to_string();
            match files::read(&self.path, &file) {
                Ok(bytes) => match parse_documents(&name, &bytes) {
                    Ok(found) => documents.extend(found),
                    Err(found) => errors.extend(found),
                },
                Err(error) => errors.push(error),
            }
        }
        let completeness =
            if errors.len() == 0 { Completeness::Whole } else { Completeness::Partial };
        let set = match PolicySet::check(documents.into_iter().map(Arc::new), completeness) {
            Ok(set) => set,
            Err(found) => {
                errors.extend(found);
                PolicySet::default()
            }
        };
        errors.finish(Arc::new(set))
    }

    fn error(&self, message: &str, hint: &str) -> PolicyErrors {
        PolicyErrors::from(PolicyError {
            place: Place::file(self.path.display().to_string()),
            key: None,
            message: message.to_owned(),
            hint: hint.to_owned(),
        })
    }
}
