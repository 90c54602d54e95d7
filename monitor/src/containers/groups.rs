//! Tells when cgroups are made: where nobody tells of programs, that is when a container is made.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The most groups that are watched.
const WATCH_LIMIT: usize = 4_096;

/// The watched groups. Descriptors are returned when it is dropped.
#[derive(Debug)]
pub(super) struct Groups {
    inotify: Inotify,
    root: PathBuf,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

impl Groups {
    /// Watches all that is below `root`.
    pub(super) fn watch(root: &Path) -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut groups = Self { inotify, root: root.to_owned(), watched: HashMap::new() };
        groups.watch_below(root);
        Ok(groups)
    }

    /// Becomes readable when something has happened.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Takes what has happened; whether it may be a container.
    pub(super) fn take(&mut self) -> bool {
        let mut happened = false;
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                happened = true;
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watched.remove(&event.wd);
                } else if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    let root = self.root.clone();
                    self.watch_below(&root);
                } else if let (Some(parent), Some(name)) = (self.watched.get(&event.wd), event.name)
                {
                    let made = parent.join(name);
                    self.watch_below(&made);
                }
            }
        }
        happened
    }

    fn watch_below(&mut self, directory: &Path) {
        let mut open = vec![directory.to_owned()];
        while let Some(directory) = open.pop() {
            if self.watched.len() >= WATCH_LIMIT {
                return;
            }
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
            // It may be gone again.
            let Ok(watch) = self.inotify.add_watch(&directory, flags) else { continue };
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            open.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
            self.watched.insert(watch, directory);
        }
    }
}
