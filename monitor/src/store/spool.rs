//! What of a job waits to be uploaded: its events and report lie in the spool anyway; beside them stands what the job was, and
//! how far the upload has come.

use crate::job::last_known_good::write_atomically;
use jiff::Timestamp;
use portcullis_common::event::PolicyReference;
use portcullis_common::job_context::JobContext;
use portcullis_common::report::Report;
use portcullis_common::resolution::Resolution;
use portcullis_common::store_api::NewJob;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// What a job was. A directory with this file waits to be uploaded.
pub const UPLOAD_FILE: &str = "upload.json";

/// How far the upload has come.
const PROGRESS_FILE: &str = "uploaded.json";

/// The most events of one batch, and the most bytes, whichever comes first.
const BATCH_EVENTS: usize = 1000;
const BATCH_BYTES: usize = 2 * 1024 * 1024;

/// The longest line; our own events are far shorter.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// Notes what a job is, so that it is uploaded, also by a later monitor. A policy with `disable-telemetry` keeps everything on
/// this host.
///
/// # Errors
/// When it can't be written.
pub fn keep_header(
    spool: &Path,
    id: &str,
    context: &JobContext,
    resolution: &Resolution,
    started_at: Timestamp,
) -> io::Result<()> {
    if resolution.policy.disable_telemetry {
        return Ok(());
    }
    let job = NewJob {
        id: id.to_owned(),
        context: context.clone(),
        policy: PolicyReference {
            name: resolution.policy.name.clone(),
            version: resolution.policy.version.clone(),
            scope: resolution.scope,
        },
        target: resolution.target.clone(),
        identity: resolution.identity,
        mode: resolution.policy.egress,
        started_at,
    };
    let directory = spool.join(id);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let bytes = serde_json::to_vec(&job).map_err(io::Error::other)?;
    write_atomically(&directory.join(UPLOAD_FILE), &bytes)
}

/// How far the upload of a job has come.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Progress {
    /// The last event that the store has.
    pub(super) last_seq: u64,
    /// Where the next one begins in the file.
    pub(super) offset: u64,
    /// Whether the store knows the job.
    pub(super) is_begun: bool,
}

/// A job in the spool.
#[derive(Clone, Debug)]
pub(super) struct Spooled {
    directory: PathBuf,
    pub(super) job: NewJob,
}

/// Events that are sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Whole lines.
    pub(super) lines: Vec<u8>,
    /// How many.
    pub(super) events: u64,
    /// Where the next one begins.
    pub(super) end: u64,
}

/// All jobs that wait, the oldest first. What can't be read is told and passed over.
pub(super) fn waiting(spool: &Path) -> Vec<Spooled> {
    let Ok(entries) = fs::read_dir(spool) else { return Vec::new() };
    let mut directories: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    directories.sort();
    let read = |directory: PathBuf| {
        let bytes = fs::read(directory.join(UPLOAD_FILE)).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(job) => Some(Spooled { directory, job }),
            Err(error) => {
                tracing::error!(error = %error, path = %directory.display(), "a job can't be uploaded");
                None
            }
        }
    };
    directories.into_iter().filter_map(read).collect()
}

impl Spooled {
    /// How far it has come; from the start when that can't be read, for the store leaves out what it has.
    pub(super) fn progress(&self) -> Progress {
        fs::read(self.directory.join(PROGRESS_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    pub(super) fn keep_progress(&self, progress: Progress) -> io::Result<()> {
        let bytes = serde_json::to_vec(&progress).map_err(io::Error::other)?;
        write_atomically(&self.directory.join(PROGRESS_FILE), &bytes)
    }

    /// The next events behind `offset`, whole lines only: the recorder may be writing the last one.
    pub(super) fn batch(&self, offset: u64) -> io::Result<Batch> {
        let mut batch = Batch { end: offset, ..Batch::default() };
        let mut file = match File::open(self.directory.join("events.ndjson")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(batch),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        while batch.events < BATCH_EVENTS as u64 && batch.lines.len() < BATCH_BYTES {
            line.clear();
            let length = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            if length == 0 || line.last() != Some(&b'\n') {
                break;
            }
            batch.lines.extend_from_slice(&line);
            batch.events += 1;
            batch.end += length as u64;
        }
        Ok(batch)
    }

    /// Where event `seq` begins: the numbers have no gaps.
    pub(super) fn offset_of(&self, seq: u64) -> io::Result<u64> {
        let mut reader = BufReader::new(File::open(self.directory.join("events.ndjson"))?);
        let mut offset = 0;
        let mut line = Vec::new();
        for _ in 1..seq {
            line.clear();
            let length = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            if length == 0 || line.last() != Some(&b'\n') {
                return Err(io::Error::other("the store expects an event that was never recorded"));
            }
            offset += length as u64;
        }
        Ok(offset)
    }

    /// The report, once the job has ended.
    pub(super) fn report(&self) -> io::Result<Option<Report>> {
        match fs::read(self.directory.join("report.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The store has everything.
    pub(super) fn done(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join(UPLOAD_FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::{Progress, keep_header, waiting};
    use jiff::Timestamp;
    use portcullis_common::job_context::JobContext;
    use portcullis_common::policy::{EffectivePolicy, EgressMode};
    use portcullis_common::resolution::{Identity, Resolution, ScopeKind};
    use std::fs;

    fn resolution() -> Resolution {
        Resolution {
            policy: EffectivePolicy::built_in(EgressMode::Block),
            scope: ScopeKind::Default,
            target: "default".to_owned(),
            identity: Identity::Asserted,
            considered: Vec::new(),
        }
    }

    #[test]
    fn whole_lines_are_sent_from_where_it_stopped() {
        let spool = tempfile::tempdir().unwrap();
        keep_header(spool.path(), "j", &JobContext::default(), &resolution(), Timestamp::now())
            .unwrap();
        let jobs = waiting(spool.path());
        let [job] = jobs.as_slice() else { panic!("{jobs:?}") };
        assert_eq!(job.progress(), Progress::default());
        assert_eq!(job.batch(0).unwrap().events, 0, "nothing was recorded yet");
        fs::write(spool.path().join("j/events.ndjson"), "1\n22\n333").unwrap();
        let batch = job.batch(0).unwrap();
        assert_eq!((batch.lines.as_slice(), batch.events, batch.end), (&b"1\n22\n"[..], 2, 5));
        assert_eq!(job.batch(batch.end).unwrap().events, 0, "the last line is not whole yet");
        assert_eq!(
            (job.offset_of(1).unwrap(), job.offset_of(2).unwrap(), job.offset_of(3).unwrap()),
            (0, 2, 5)
        );
        assert!(job.offset_of(5).is_err());
        let progress = Progress { last_seq: 2, offset: 5, is_begun: true };
        job.keep_progress(progress).unwrap();
        assert_eq!(job.progress(), progress);
        job.done().unwrap();
        assert!(waiting(spool.path()).is_empty());
    }

    #[test]
    fn what_must_stay_on_the_host_does() {
        let spool = tempfile::tempdir().unwrap();
        let mut quiet = resolution();
        quiet.policy.disable_telemetry = true;
        keep_header(spool.path(), "j", &JobContext::default(), &quiet, Timestamp::now()).unwrap();
        assert!(waiting(spool.path()).is_empty());
    }
}
