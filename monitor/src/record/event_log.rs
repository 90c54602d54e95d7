//! The file of events: NDJSON, `seq` without gaps, bounded, whole lines only.

use jiff::Timestamp;
use portcullis_common::event::{Event, EventKind};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The most bytes that one job's events take on disk. A job of ordinary size writes some hundred kilobytes; a job that
/// floods the log must not fill the disk for the next one.
pub const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// The longest line that is read back. Our own events are far shorter: argv is cut at 4 KiB.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// The events of one job.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    job_id: String,
    last_seq: u64,
    bytes: u64,
    max_bytes: u64,
    lost: u64,
}

impl EventLog {
    /// Opens the log at `path`, making it when there is none, and hands every event already in it to `seen`.
    ///
    /// A line that a crash left unfinished is cut off, so that the next event starts on a line of its own; an event
    /// that can't be read back ends the reading there, for nothing after it can be trusted to be ours.
    ///
    /// # Errors
    /// When the file can't be opened, read or cut.
    pub fn open(
        path: &Path,
        job_id: &str,
        max_bytes: u64,
        mut seen: impl FnMut(Event),
    ) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        let (mut last_seq, mut bytes) = (0, 0);
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            if length == 0 || line.last() != Some(&b'\n') {
                break;
            }
            let Ok(event) = serde_json::from_slice::<Event>(&line) else { break };
            if event.seq != last_seq + 1 {
                break;
            }
            last_seq = event.seq;
            bytes += length as u64;
            seen(event);
        }
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        let (path, job_id) = (path.to_owned(), job_id.to_owned());
        Ok(Self { path, file, job_id, last_seq, bytes, max_bytes, lost: 0 })
    }

    /// Appends one event and returns it; `None` when it was lost because the log or the disk is full.
    ///
    /// A lost event takes no sequence number: the numbers on disk stay without gaps, and [`Self::lost`] says how many
    /// there would have been.
    pub fn append(&mut self, time: Timestamp, kind: EventKind) -> Option<Event> {
        let event =
            Event { job_id: self.job_id.clone(), seq: self.last_seq + 1, time: micros(time), kind };
        let mut line = match serde_json::to_vec(&event) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!(error = %error, job.id = self.job_id, "an event can't be written as JSON");
                self.lost += 1;
                return None;
            }
        };
        line.push(b'\n');
        let length = line.len() as u64;
        if self.bytes + length > self.max_bytes {
            self.lost += 1;
            return None;
        }
        if let Err(error) = self.file.write_all(&line) {
            if self.lost == 0 {
                tracing::error!(error = %error, path = %self.path.display(), "an event can't be written");
            }
            self.lost += 1;
            // Half a line must not stay: the next event would be glued to it.
            if let Err(error) = self
                .file
                .set_len(self.bytes)
                .and_then(|()| self.file.seek(SeekFrom::Start(self.bytes)))
            {
                tracing::error!(error = %error, path = %self.path.display(), "the log of events can't be repaired");
            }
            return None;
        }
        self.bytes += length;
        self.last_seq = event.seq;
        Some(event)
    }

    /// The number of events in the log.
    pub fn len(&self) -> u64 {
        self.last_seq
    }

    /// Whether no event was written yet.
    pub fn is_empty(&self) -> bool {
        self.last_seq == 0
    }

    /// How many events could not be written since this log was opened.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// When the disk says so.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Events carry microseconds; more digits would only differ between what was written and what was meant.
fn micros(time: Timestamp) -> Timestamp {
    time.round(jiff::Unit::Microsecond).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::{EventLog, MAX_BYTES};
    use jiff::Timestamp;
    use portcullis_common::event::{EventKind, JobEvent, JobStage};
    use std::fs;
    use std::io::Write;

    fn started() -> EventKind {
        EventKind::Job(JobEvent {
            stage: JobStage::Started,
            reason: "bound".to_owned(),
            counters: Vec::new(),
        })
    }

    /// Appends 100 events and counts those that were written.
    fn fill(log: &mut EventLog) -> u64 {
        (0..100).map(|_| u64::from(log.append(Timestamp::now(), started()).is_some())).sum()
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_an_unfinished_line_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.ndjson");
        let mut log =
            EventLog::open(&path, "j", MAX_BYTES, |_| panic!("nothing is there")).unwrap();
        let first = log.append(Timestamp::now(), started()).unwrap();
        let second = log.append(Timestamp::now(), started()).unwrap();
        assert_eq!((first.seq, second.seq), (1, 2));
        drop(log);
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"job_id\":")
            .unwrap();

        let mut seen = Vec::new();
        let mut log = EventLog::open(&path, "j", MAX_BYTES, |event| seen.push(event)).unwrap();
        assert_eq!(seen, [first, second], "what was written is what is read back");
        assert_eq!(log.append(Timestamp::now(), started()).unwrap().seq, 3);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn a_full_log_loses_events_but_no_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.ndjson");
        let mut log = EventLog::open(&path, "j", 1_000, |_| ()).unwrap();
        let written = fill(&mut log);
        assert!((1..100).contains(&written));
        assert_eq!(log.lost(), 100 - written);
        assert_eq!(log.len(), written);
        assert!(fs::metadata(&path).unwrap().len() <= 1_000);
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        // A disk of one page, in a mount namespace of this thread alone.
        std::thread::spawn(|| {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            let directory = tempfile::tempdir().unwrap();
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_PRIVATE | MsFlags::MS_REC,
                None::<&str>,
            )
            .unwrap();
            let disk = directory.path();
            mount(Some("tmpfs"), disk, Some("tmpfs"), MsFlags::empty(), Some("size=4k")).unwrap();

            let path = disk.join("events.ndjson");
            let mut log = EventLog::open(&path, "j", MAX_BYTES, |_| ()).unwrap();
            let written = fill(&mut log);
            assert!((1..100).contains(&written));
            assert_eq!(log.lost(), 100 - written);
            let mut read_back = 0_u64;
            EventLog::open(&path, "j", MAX_BYTES, |_| read_back += 1).unwrap();
            assert_eq!(read_back, written);
            assert!(fs::read_to_string(&path).unwrap().ends_with("}\n"));
            drop(log);
            nix::mount::umount(disk).unwrap();
        })
        .join()
        .unwrap();
    }
}
