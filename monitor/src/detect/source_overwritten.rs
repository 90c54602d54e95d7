//! Source-File-Overwritten: a file that version control has checked out is written by something else.
//!
//! What is source? Not what has a certain suffix: a compiler writes `.c` and `.js` files all day. A file is source when it
//! was written before version control wrote its index (`.git/index.lock`), in the same working tree: that is what a checkout
//! does, and what makes a later write a change of what was checked out. Writes by version control itself are none. A file that
//! another is renamed over is overwritten as well: that is how `sed -i` and most editors write.

use super::{Finding, name};
use portcullis_common::event::{DetectionType, Process, RecordedDetection};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};

/// The most files that are remembered for a job: a large working tree has 100 000.
const FILE_LIMIT: usize = 100_000;

/// Programs of version control.
const VERSION_CONTROL: &[&str] = &["git", "git-lfs", "git-remote-https", "jj", "hg"];

/// A file by device and inode.
pub type FileId = (u64, u64);

/// A write that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The file.
    pub file: FileId,
    /// Its path.
    pub path: PathBuf,
    /// Who wrote it; `None` when the process is gone already.
    pub writer: Option<Process>,
}

/// What is known of the working trees of a job.
#[derive(Debug, Default)]
pub struct SourceFiles {
    /// Written since the last index, with the working tree still unknown.
    written: HashMap<FileId, PathBuf>,
    /// Checked out, and where: the number of a file that is gone is given to the next one that is made. Places are kept as a
    /// keyed hash, for the paths of a large tree would take ten times the memory.
    sources: HashMap<FileId, u64>,
    /// Where anything was checked out.
    places: HashSet<u64>,
    keys: RandomState,
    /// Told already.
    told: HashSet<FileId>,
    /// Files that there was no room for.
    not_remembered: u64,
}

impl SourceFiles {
    /// Takes in a write below the workspace. A finding for the first write to a file that was checked out, by something else
    /// than version control.
    pub fn add(&mut self, write: &Write) -> Option<Finding> {
        if let Some(tree) = indexed_tree(&write.path) {
            self.check_out(tree);
            return None;
        }
        if write.path.components().any(|part| part.as_os_str() == ".git") {
            return None;
        }
        let is_version_control = write.writer.as_ref().is_some_and(is_version_control);
        if self.sources.get(&write.file) == Some(&self.keys.hash_one(&write.path)) {
            if is_version_control || !self.told.insert(write.file) {
                return None;
            }
            return Some(finding(write, "wrote to"));
        }
        // Who has ended before it could be looked at may be version control: its index follows, or does not.
        if write.writer.is_none() || is_version_control {
            if self.written.len() + self.sources.len() < FILE_LIMIT {
                self.written.insert(write.file, write.path.clone());
            } else {
                self.not_remembered += 1;
            }
        }
        None
    }

    /// Takes in that a file was renamed to `write.path` by `write.writer`. A finding for the first time that something else than
    /// version control puts another file where one was checked out.
    pub fn add_rename(&mut self, write: &Write) -> Option<Finding> {
        if indexed_tree(&write.path).is_some() {
            // The index itself comes by a rename: it was written before.
            return None;
        }
        let place = self.keys.hash_one(&write.path);
        if !self.places.contains(&place) {
            return None;
        }
        self.sources.insert(write.file, place);
        if write.writer.as_ref().is_some_and(is_version_control) || !self.told.insert(write.file) {
            return None;
        }
        Some(finding(write, "renamed another file over"))
    }

    /// How many files there was no room for.
    pub const fn not_remembered(&self) -> u64 {
        self.not_remembered
    }

    /// Version control has written its index: what was written below that tree is what it has checked out.
    fn check_out(&mut self, tree: &Path) {
        for (file, path) in self.written.extract_if(|_, path| path.starts_with(tree)) {
            let place = self.keys.hash_one(&path);
            self.places.insert(place);
            self.sources.insert(file, place);
        }
    }
}

/// The working tree whose index this is: `TREE/.git/index.lock`, `TREE/.git/modules/NAME/index.lock`.
fn indexed_tree(path: &Path) -> Option<&Path> {
    if !matches!(path.file_name()?.to_str()?, "index.lock" | "index") {
        return None;
    }
    let git =
        path.ancestors().find(|above| above.file_name().is_some_and(|name| name == ".git"))?;
    git.parent()
}

fn is_version_control(process: &Process) -> bool {
    let name = process.exe.as_deref().and_then(|exe| Path::new(exe).file_name()?.to_str());
    name.is_some_and(|name| VERSION_CONTROL.contains(&name))
}

fn finding(write: &Write, did: &str) -> Finding {
    let who = write.writer.as_ref().map_or_else(|| "a process that has ended".to_owned(), name);
    let evidence =
        format!("{who} {did} {}, which version control had checked out", write.path.display());
    let detection = DetectionType::Recorded(RecordedDetection::SourceFileOverwritten);
    Finding::new(detection, &evidence, write.writer.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::testing::process;

    fn write(inode: u64, path: &str, writer: Option<&str>) -> Write {
        Write {
            file: (1, inode),
            path: format!("/work/hello/{path}").into(),
            writer: writer.map(|exe| process(7, exe)),
        }
    }

    /// A tree with one file from git, one whose writer was gone when it was looked at, and the index.
    fn checked_out() -> SourceFiles {
        let mut files = SourceFiles::default();
        assert_eq!(files.add(&write(10, "src/main.c", Some("/usr/bin/git"))), None);
        assert_eq!(files.add(&write(11, "Makefile", None)), None);
        assert_eq!(files.add(&write(12, ".git/index.lock", Some("/usr/bin/git"))), None);
        files
    }

    #[test]
    fn a_file_from_the_checkout_that_is_written_again_is_found_once() {
        let mut files = checked_out();
        let first = files.add(&write(10, "src/main.c", Some("/usr/bin/python3"))).unwrap();
        assert!(
            first.evidence.contains("/usr/bin/python3 (pid 7) wrote to /work/hello/src/main.c")
        );
        assert_eq!(files.add(&write(10, "src/main.c", Some("/usr/bin/python3"))), None);
        let gone = files.add(&write(11, "Makefile", None)).unwrap();
        assert!(gone.evidence.contains("a process that has ended"), "{}", gone.evidence);
    }

    #[test]
    fn a_file_that_another_is_renamed_over_is_found_once() {
        let mut files = checked_out();
        assert_eq!(files.add(&write(30, "src/sedX1b2", Some("/usr/bin/sed"))), None);
        let found = files.add_rename(&write(30, "src/main.c", Some("/usr/bin/sed"))).unwrap();
        let told = "/usr/bin/sed (pid 7) renamed another file over /work/hello/src/main.c";
        assert!(found.evidence.contains(told), "{}", found.evidence);
        // It is known now, and told once.
        assert_eq!(files.add(&write(30, "src/main.c", Some("/usr/bin/tee"))), None);
        // What version control puts there is its own; what is beside it is nobody's.
        assert_eq!(files.add_rename(&write(31, "Makefile", Some("/usr/bin/git-lfs"))), None);
        assert_eq!(files.add_rename(&write(32, "src/main.o", Some("/usr/bin/as"))), None);
        assert_eq!(files.add_rename(&write(33, ".git/index", Some("/usr/bin/git"))), None);
    }

    #[test]
    fn builds_write_what_they_like_beside_it() {
        let mut files = checked_out();
        assert_eq!(files.add(&write(20, "src/generated.c", Some("/usr/bin/bison"))), None);
        assert_eq!(files.add(&write(20, "src/generated.c", Some("/usr/bin/bison"))), None);
        assert_eq!(files.add(&write(21, "build/main.o", Some("/usr/bin/as"))), None);
        // The number of a file that was removed.
        assert_eq!(files.add(&write(10, "build/main.d", Some("/usr/bin/cc1"))), None);
        // Another commit, in a later step.
        assert_eq!(files.add(&write(10, "src/main.c", Some("/usr/bin/git"))), None);
        assert_eq!(files.add(&write(13, ".git/config", Some("/usr/bin/vi"))), None);
    }

    #[test]
    fn an_index_of_another_tree_makes_no_sources_of_this_one() {
        let mut files = SourceFiles::default();
        files.add(&write(10, "a/x.c", None));
        files.add(&write(11, "b/.git/index.lock", Some("/usr/bin/git")));
        assert_eq!(files.add(&write(10, "a/x.c", Some("/usr/bin/tee"))), None);
    }
}
