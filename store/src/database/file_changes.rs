//! Whether anything can have changed in a file of SQLite, without asking SQLite.
//!
//! A look at the database is a way to a connection's thread and back. It is not needed while nobody else has the file open and
//! this process has committed nothing since the last one. Both are known:
//!
//! * Every process that opens the file holds a shared lock on a file beside it, `store.users`, for as long, and has made
//!   that one longer by a byte. Who found nobody there, and sees its length unchanged, is alone, and was since.
//! * All that this process writes goes by one connection; commits are counted before they are sent and after they are done.
//!
//! What another program than ours does to the file, `sqlite3` for instance, is seen after [`MAXIMUM_AGE`], and so is the
//! removal of the users' file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing is assumed to have changed: what people do to the file by hand counts after that.
const MAXIMUM_AGE: Duration = Duration::from_secs(1);

/// Pause between two attempts to find out whether others are gone.
const RETURN_PAUSE: Duration = Duration::from_secs(10);

/// What is known of the changes of one file.
#[derive(Debug)]
pub(super) struct FileChanges {
    path: PathBuf,
    users: File,
    /// The length of the users' file that was seen while nobody else was there. 0: somebody may be.
    alone_at_length: AtomicU64,
    /// How often it was tried to be alone; marks from before don't count.
    entries: AtomicU64,
    last_attempt: Mutex<Instant>,
    commits_begun: AtomicU64,
    commits_ended: AtomicU64,
}

/// A time from which on changes are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    commits: u64,
    entries: u64,
    taken: Instant,
}

impl FileChanges {
    /// Enters among the users of the database at `path`. Waits while another process does so; must not be called on a thread
    /// of the runtime.
    ///
    /// # Errors
    /// When the files beside the database can't be used.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let _turn = turn(path)?;
        let users = options().read(true).append(true).open(path.with_extension("users"))?;
        let changes = Self {
            path: path.to_owned(),
            users,
            alone_at_length: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            last_attempt: Mutex::new(Instant::now()),
            commits_begun: AtomicU64::new(0),
            commits_ended: AtomicU64::new(0),
        };
        changes.enter()?;
        Ok(changes)
    }

    /// Holds the shared lock from now on, and notes whether nobody else does. Only called by who has the turn.
    fn enter(&self) -> io::Result<()> {
        self.entries.fetch_add(1, Ordering::SeqCst);
        self.alone_at_length.store(0, Ordering::SeqCst);
        let mut users = &self.users;
        let is_alone = match users.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(error),
        };
        if is_alone {
            users.set_len(0)?;
        }
        // In vain, the attempt has ended a shared lock (flock(2)); with the turn nobody else can get ahead.
        users.lock_shared()?;
        users.write_all(b".")?;
        if is_alone {
            self.alone_at_length.store(users.metadata()?.len(), Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether nobody else has had the file open since this one was alone with it. One cheap system call: the end is sought
    /// before every answer.
    fn is_alone(&self) -> bool {
        let length = self.alone_at_length.load(Ordering::SeqCst);
        length != 0 && (&self.users).seek(SeekFrom::End(0)).is_ok_and(|end| end == length)
    }

    /// Whether the users' file is still the one that others find. Removed, it would not show who comes.
    fn is_in_place(&self) -> bool {
        self.users.metadata().is_ok_and(|metadata| metadata.nlink() == 1)
    }

    /// After somebody was there: finds out now and then whether they are gone.
    fn try_to_be_alone(&self) {
        let mut last = self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < RETURN_PAUSE {
            return;
        }
        *last = Instant::now();
        if let Ok(Some(_turn)) = try_turn(&self.path)
            && let Err(error) = self.enter()
        {
            tracing::debug!(error = %error, "whether others use the database could not be found out");
        }
    }

    /// The one connection that writes was taken: whatever was sent on it before is done, also when nobody waited for it.
    pub(super) fn writer_taken(&self) {
        self.commits_ended.store(self.commits_begun.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// A commit is about to be sent.
    pub(super) fn commit_begins(&self) {
        self.commits_begun.fetch_add(1, Ordering::SeqCst);
    }

    /// The commit is done, or has failed.
    pub(super) fn commit_ended(&self) {
        self.writer_taken();
    }

    /// A mark for a look that begins now. None while it could not be relied upon: others have the file open, or a commit is
    /// under way.
    pub(super) fn mark(&self) -> Option<Mark> {
        // First those that have ended: what begins meanwhile makes them differ.
        let ended = self.commits_ended.load(Ordering::SeqCst);
        let commits = self.commits_begun.load(Ordering::SeqCst);
        let entries = self.entries.load(Ordering::SeqCst);
        if !self.is_alone() {
            self.try_to_be_alone();
            return None;
        }
        (ended == commits && self.is_in_place()).then(|| Mark {
            commits,
            entries,
            taken: Instant::now(),
        })
    }

    /// Whether what was seen by a look that began at `mark` is what a look would see that begins now.
    pub(super) fn is_unchanged_since(&self, mark: Mark) -> bool {
        self.commits_begun.load(Ordering::SeqCst) == mark.commits
            && mark.taken.elapsed() < MAXIMUM_AGE
            && self.is_alone()
            // Last: who was there before a new attempt shows in the length, or in this.
            && self.entries.load(Ordering::SeqCst) == mark.entries
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

/// The lock under which one process at a time brings the schema up to date, or enters.
fn turn_file(path: &Path) -> io::Result<File> {
    options().truncate(false).write(true).open(path.with_extension("lock"))
}

/// Waits for one's turn, which ends when the file is dropped.
pub(super) fn turn(path: &Path) -> io::Result<File> {
    let file = turn_file(path)?;
    file.lock()?;
    Ok(file)
}

fn try_turn(path: &Path) -> io::Result<Option<File>> {
    let file = turn_file(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::{FileChanges, MAXIMUM_AGE, Mark, RETURN_PAUSE};
    use std::fs;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};
    use tempfile::TempDir;

    fn file() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        (directory, path)
    }

    fn earlier(time: Instant, by: Duration) -> Instant {
        time.checked_sub(by).unwrap()
    }

    #[test]
    fn nothing_changes_between_commits() {
        let (_directory, path) = file();
        let changes = FileChanges::open(&path).unwrap();
        let mark = changes.mark().unwrap();
        assert!(changes.is_unchanged_since(mark));
        changes.writer_taken();
        assert!(
            changes.is_unchanged_since(mark),
            "a transaction that is rolled back changes nothing"
        );
        changes.commit_begins();
        assert!(!changes.is_unchanged_since(mark));
        assert!(changes.mark().is_none(), "a look may see the state before the commit");
        changes.commit_ended();
        assert!(!changes.is_unchanged_since(mark));
        let mark = changes.mark().unwrap();
        assert!(changes.is_unchanged_since(mark));
        let old = Mark { taken: earlier(mark.taken, MAXIMUM_AGE), ..mark };
        assert!(!changes.is_unchanged_since(old), "what is done by hand counts after a while");
    }

    #[test]
    fn a_commit_that_nobody_waits_for_is_over_when_the_writer_is_taken_again() {
        let (_directory, path) = file();
        let changes = FileChanges::open(&path).unwrap();
        changes.commit_begins();
        // Given up here; the connection sends it all the same.
        assert!(changes.mark().is_none());
        changes.writer_taken();
        assert!(changes.mark().is_some());
    }

    #[test]
    fn who_comes_is_noticed_also_when_gone_again() {
        let (_directory, path) = file();
        let one = FileChanges::open(&path).unwrap();
        let mark = one.mark().unwrap();
        let two = FileChanges::open(&path).unwrap();
        assert!(!one.is_unchanged_since(mark) && one.mark().is_none());
        assert!(two.mark().is_none(), "the first is still there");
        let three = FileChanges::open(&path).unwrap();
        drop((two, three));
        assert!(!one.is_unchanged_since(mark) && one.mark().is_none());
        // After a while it finds out that they are gone.
        *one.last_attempt.lock().unwrap() = earlier(Instant::now(), RETURN_PAUSE);
        assert!(one.mark().is_none());
        assert!(!one.is_unchanged_since(mark), "the file is as long as it was then");
        let mark = one.mark().unwrap();
        assert!(one.is_unchanged_since(mark));
        let two = FileChanges::open(&path).unwrap();
        assert!(!one.is_unchanged_since(mark));
        // While somebody is there it is in vain, for both.
        for user in [&one, &two] {
            *user.last_attempt.lock().unwrap() = earlier(Instant::now(), RETURN_PAUSE);
            assert!(user.mark().is_none() && user.mark().is_none());
        }
    }

    #[test]
    fn without_the_file_of_users_nobody_is_alone() {
        let (_directory, path) = file();
        let changes = FileChanges::open(&path).unwrap();
        let mark = changes.mark().unwrap();
        fs::remove_file(path.with_extension("users")).unwrap();
        assert!(changes.mark().is_none());
        let old = Mark { taken: earlier(mark.taken, MAXIMUM_AGE), ..mark };
        assert!(!changes.is_unchanged_since(old));
    }
}
