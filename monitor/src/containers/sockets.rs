//! Tells when an engine makes its socket anew, so that it can be closed to a job at once.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// The watched directories.
#[derive(Debug)]
pub(super) struct Sockets {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

impl Sockets {
    /// Watches these directories; those that are not there yet are watched by the next call.
    pub(super) fn watch(directories: &BTreeSet<PathBuf>) -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        let add = |path: &PathBuf| Some((inotify.add_watch(path, flags).ok()?, path.clone()));
        let watched = directories.iter().filter_map(add).collect();
        Ok(Self { inotify, watched })
    }

    /// Becomes readable when something has happened.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Takes what has happened; whether it concerns a socket, or a directory that may hold one.
    pub(super) fn take(&mut self) -> bool {
        let mut concerns = false;
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                let path =
                    self.watched.get(&event.wd).zip(event.name).map(|(at, name)| at.join(name));
                concerns |= path.is_none_or(|path| {
                    fs::symlink_metadata(path)
                        .is_ok_and(|metadata| metadata.file_type().is_socket() || metadata.is_dir())
                });
            }
        }
        concerns
    }
}
