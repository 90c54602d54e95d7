//! Mounts over the monitor's own directories while a job runs: what it would read or write from then on is somebody else's.

use crate::caller::Worker;
use crate::detect::monitor_tampering::{Tampering, TamperingFact, monitor_tampering};
use crate::respond::Responder;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// What a watch needs of its job.
#[derive(Debug)]
pub(super) struct Watched {
    /// The job's Worker.
    pub(super) worker: Arc<Worker>,
    /// Where findings go.
    pub(super) responder: Arc<Responder>,
    /// The monitor's directories and files.
    pub(super) own: Vec<PathBuf>,
}

/// Starts the thread; it ends with the Worker.
///
/// # Errors
/// When the list of mounts can't be opened.
pub(super) fn start(watched: Watched) -> io::Result<()> {
    // The monitor's own list: a mount that does not reach its namespace changes nothing for it.
    let list = File::open("/proc/self/mountinfo")?;
    let known = mounts()?;
    thread::Builder::new()
        .name("mounts".to_owned())
        .spawn(move || {
            if let Err(error) = watch(&watched, &list, known) {
                tracing::warn!(%error, "mounts over the monitor's directories can't be noticed any more");
            }
        })
        .map(drop)
}

fn watch(watched: &Watched, list: &File, mut known: HashSet<(u64, PathBuf)>) -> io::Result<()> {
    loop {
        let mut waiting = [
            // A change of the list is an exceptional condition (proc_pid_mountinfo(5)).
            PollFd::new(list.as_fd(), PollFlags::POLLPRI),
            PollFd::new(watched.worker.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if waiting[1].any().unwrap_or(true) {
            return Ok(());
        }
        let now = mounts()?;
        let mut covered: Vec<&PathBuf> = now
            .difference(&known)
            .map(|(_, point)| point)
            .filter(|point| watched.own.iter().any(|own| covers(point, own)))
            .collect();
        covered.sort();
        covered.dedup();
        for point in covered {
            let fact = TamperingFact {
                tampering: Tampering::Mount { path: point.clone() },
                process: None,
                is_of_job: None,
            };
            if let Some(finding) = monitor_tampering(&fact) {
                watched.responder.answer(finding);
            }
        }
        known = now;
    }
}

/// Whether a mount there hides something of `own`, or a part of it.
fn covers(point: &Path, own: &Path) -> bool {
    own.starts_with(point) || point.starts_with(own)
}

/// The mounts by their number and where they are.
fn mounts() -> io::Result<HashSet<(u64, PathBuf)>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime …`: the number, its parent's, the device, what of it, where.
fn parse(text: &str) -> HashSet<(u64, PathBuf)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let number = words.next()?.parse().ok()?;
            // Blanks are written as \040; such a path is no directory of ours.
            Some((number, PathBuf::from(words.nth(3)?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_on_above_and_below_are_told_and_others_are_not() {
        let own = Path::new("/run/portcullis");
        for (point, is_told) in [
            ("/run/portcullis", true),
            ("/run", true),
            ("/run/portcullis/jobs", true),
            ("/run/user/1000", false),
            ("/run/portcullis-other", false),
            ("/var/lib/docker/overlay2/x/merged", false),
        ] {
            assert_eq!(covers(Path::new(point), own), is_told, "{point}");
        }
    }

    #[test]
    fn the_list_is_read() {
        let text = "36 35 98:0 / / rw - ext3 /dev/root rw\n37 36 0:5 /x /run/a rw - tmpfs t rw\n";
        let mounts = parse(text);
        assert!(mounts.contains(&(37, PathBuf::from("/run/a"))) && mounts.len() == 2);
    }
}
