//! What of recorded jobs is kept on this host, so that one that runs for years does not fill its disk.
//!
//! What the store does not have yet is worth more than what can be looked at there: of that, the oldest is kept, and only the
//! space that it leaves goes to jobs that are over with.

use crate::store::UPLOAD_FILE;
use std::fs;
use std::path::{Path, PathBuf};

/// Jobs that are kept beside those that wait for the store: enough to look back.
const KEPT_JOBS: usize = 500;

/// Bytes of all jobs that are kept. A job in block mode takes some 100 KB: a day without the store fits in many times.
const KEPT_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
struct Limits {
    jobs: usize,
    bytes: u64,
}

/// A recorded job that has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Recorded {
    /// Its directory, whose name, the job's id, sorts by time.
    path: PathBuf,
    bytes: u64,
    /// Whether the store does not have all of it yet.
    is_waiting: bool,
}

/// Removes what is too much, and says so where the store does not have it.
pub(super) fn prune(spool: &Path) {
    for job in surplus(read(spool), Limits { jobs: KEPT_JOBS, bytes: KEPT_BYTES }) {
        let path = job.path.display();
        if let Err(error) = fs::remove_dir_all(&job.path) {
            tracing::warn!(path = %path, error = %error, "an old job could not be removed");
        } else if job.is_waiting {
            tracing::error!(path = %path, bytes = job.bytes, "the record of a job is lost: the spool is full of jobs that the policy store does not have yet");
        }
    }
}

fn read(spool: &Path) -> Vec<Recorded> {
    let Ok(entries) = fs::read_dir(spool) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        // A job without a report still runs, or waits to be taken over.
        .filter(|path| path.join("report.json").exists())
        .map(|path| {
            let files = fs::read_dir(&path).into_iter().flatten().flatten();
            let bytes = files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
            let is_waiting = path.join(UPLOAD_FILE).exists();
            Recorded { path, bytes, is_waiting }
        })
        .collect()
}

/// The jobs to be removed: of those that wait the newest that no longer fit, of the others the oldest.
fn surplus(mut jobs: Vec<Recorded>, limits: Limits) -> Vec<Recorded> {
    jobs.sort_by(|one, other| one.path.cmp(&other.path));
    let (waiting, over): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.is_waiting);
    let mut surplus = Vec::new();
    let mut bytes = 0_u64;
    for job in waiting {
        if bytes.saturating_add(job.bytes) > limits.bytes {
            surplus.push(job);
        } else {
            bytes += job.bytes;
        }
    }
    for (newer, job) in over.into_iter().rev().enumerate() {
        bytes = bytes.saturating_add(job.bytes);
        if newer >= limits.jobs || bytes > limits.bytes {
            surplus.push(job);
        }
    }
    surplus
}

#[cfg(test)]
mod tests {
    use super::{Limits, Recorded, prune, read, surplus};
    use crate::store::UPLOAD_FILE;
    use std::fs;

    /// Names of what is left of jobs, each of 1000 bytes, of which those with a `w` wait.
    fn left(names: &[&str], jobs: usize, bytes: u64) -> Vec<String> {
        let recorded = |name: &&str| Recorded {
            path: name.into(),
            bytes: 1000,
            is_waiting: name.ends_with('w'),
        };
        let gone = surplus(names.iter().map(recorded).collect(), Limits { jobs, bytes });
        let is_left = |name: &&&str| !gone.iter().any(|job| job.path.as_os_str() == **name);
        names.iter().filter(is_left).map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_oldest_that_are_over_with_go_first() {
        assert_eq!(left(&["3", "1", "2"], 10, 10_000), ["3", "1", "2"]);
        assert_eq!(left(&["3", "1", "2"], 2, 10_000), ["3", "2"]);
        assert_eq!(left(&["3", "1", "2"], 10, 1500), ["3"]);
        assert!(left(&["1"], 10, 999).is_empty());
    }

    #[test]
    fn what_the_store_does_not_have_stays_and_of_it_the_oldest() {
        // However many they are, and whatever is newer.
        assert_eq!(left(&["1w", "2w", "3w", "4", "5"], 1, 10_000), ["1w", "2w", "3w", "5"]);
        assert_eq!(left(&["1w", "2w", "3w", "4", "5"], 9, 4000), ["1w", "2w", "3w", "5"]);
        assert_eq!(left(&["1w", "2w", "3w", "4", "5"], 9, 2000), ["1w", "2w"]);
        let day: Vec<String> = (0..5000).map(|number| format!("{number:04}w")).collect();
        let day: Vec<&str> = day.iter().map(String::as_str).collect();
        assert_eq!(left(&day, 500, 10_000_000).len(), 5000);
    }

    #[test]
    fn running_jobs_stay_and_those_that_wait_are_known() {
        let spool = tempfile::tempdir().unwrap();
        for (name, files) in [
            ("0-running", &["events.ndjson", UPLOAD_FILE][..]),
            ("1", &["events.ndjson", "report.json"]),
            ("2-waits", &["events.ndjson", "report.json", UPLOAD_FILE]),
        ] {
            fs::create_dir(spool.path().join(name)).unwrap();
            for file in files {
                fs::write(spool.path().join(name).join(file), "12345").unwrap();
            }
        }
        let mut found = read(spool.path());
        found.sort_by(|one, other| one.path.cmp(&other.path));
        let expected = [("1", 10, false), ("2-waits", 15, true)];
        assert_eq!(
            found,
            expected.map(|(name, bytes, is_waiting)| Recorded {
                path: spool.path().join(name),
                bytes,
                is_waiting
            })
        );
        prune(spool.path());
        assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 3);
    }
}
