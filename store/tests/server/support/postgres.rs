//! A PostgreSQL server that a test has for itself: in a directory of its own, on a Unix socket only, as a user without
//! privileges, gone with the test.

use super::small_disk::SmallDisk;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running server.
pub struct Postgres {
    directory: TempDir,
    child: Child,
    /// Its data lies there, when it is to be bounded.
    disk: Option<SmallDisk>,
    settings: &'static [&'static str],
}

/// What makes a server cheap whose data nobody needs after the test.
const SMALL: &[&str] =
    &["fsync=off", "shared_buffers=16MB", "min_wal_size=2MB", "max_wal_size=8MB"];

/// The directory of the newest version that is installed.
fn programs() -> PathBuf {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is not installed; scripts/test installs what tests need")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|path| path.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect("PostgreSQL is not installed; scripts/test installs what tests need")
}

/// The size of a file of its log of changes, in MiB: a sixteenth of the usual, which makes a new server cheaper.
const LOG_SEGMENT_MIB: &str = "1";

/// A command as the user `postgres`, which the package makes; PostgreSQL refuses to run as root. It dies with this test.
fn as_postgres(program: &str, disk: Option<&SmallDisk>) -> Command {
    let mut command = match disk {
        Some(disk) => disk.command("setpriv"),
        None => Command::new("setpriv"),
    };
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL"])
        .arg(programs().join(program))
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

impl Postgres {
    pub fn start() -> Self {
        Self::start_with(SMALL)
    }

    /// One with these settings; with none, data is on disk when it says so: for measuring.
    pub fn start_with(settings: &'static [&'static str]) -> Self {
        Self::start_on(None, settings)
    }

    /// One whose data has a disk of this many bytes.
    pub fn start_on_small_disk(bytes: u64) -> Self {
        Self::start_on(Some(bytes), SMALL)
    }

    /// Its disk, if it has one of its own.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    fn start_on(bytes: Option<u64>, settings: &'static [&'static str]) -> Self {
        let directory = tempfile::Builder::new().prefix("portcullis-pg-").tempdir().unwrap();
        let user = nix::unistd::User::from_name("postgres").unwrap().expect("no user postgres");
        chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
        let data = directory.path().join("data");
        let disk = bytes.map(|bytes| {
            fs::create_dir(&data).unwrap();
            SmallDisk::at(&data, bytes, user.uid.as_raw())
        });
        let made = as_postgres("initdb", disk.as_ref())
            .arg("-D")
            .arg(&data)
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--locale=C",
                "--encoding=UTF8",
            ])
            .args(settings.first().map(|_| format!("--wal-segsize={LOG_SEGMENT_MIB}")))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let child = Self::run(&directory, disk.as_ref(), settings);
        let postgres = Self { directory, child, disk, settings };
        postgres.wait();
        postgres
    }

    fn run(directory: &TempDir, disk: Option<&SmallDisk>, settings: &[&str]) -> Child {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(directory.path().join("log"))
            .unwrap();
        as_postgres("postgres", disk)
            .arg("-D")
            .arg(directory.path().join("data"))
            .arg("-k")
            .arg(directory.path())
            .args(["-c", "listen_addresses="])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Waits until it answers.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while !self.has_come() {
            assert!(Instant::now() < deadline, "PostgreSQL does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        // The postmaster's children notice and go by themselves.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Self::kill`].
    pub fn restart(&mut self) {
        let pid_file = self.directory.path().join("data/postmaster.pid");
        match &self.disk {
            Some(disk) => drop(disk.command("rm").arg("-f").arg(pid_file).status()),
            None => drop(fs::remove_file(pid_file)),
        }
        self.child = Self::run(&self.directory, self.disk.as_ref(), self.settings);
        // It gives up while the children of the killed one are still there.
        let deadline = Instant::now() + Duration::from_mins(1);
        while !self.has_come() {
            assert!(Instant::now() < deadline, "PostgreSQL does not come again: {}", self.log());
            if self.child.try_wait().unwrap().is_some() {
                self.child = Self::run(&self.directory, self.disk.as_ref(), self.settings);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it has given up, as it does when it can't write its log of changes.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Runs SQL in the database `postgres`.
    pub fn run_sql(&self, sql: &str) {
        self.run_client("psql", &["-q", "-c", sql]);
    }

    /// All tables of the database `postgres`, as SQL.
    pub fn dump(&self) -> Vec<u8> {
        self.run_client("pg_dump", &[])
    }

    /// Runs one of its client programs on the database `postgres`. The socket is there before the server answers.
    fn run_client(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let made = as_postgres(program, None)
                .args(["-U", "postgres", "-d", "postgres", "-h"])
                .arg(self.directory.path())
                .args(arguments)
                .output()
                .unwrap();
            if made.status.success() {
                return made.stdout;
            }
            let told = String::from_utf8_lossy(&made.stderr).into_owned();
            let is_starting = told.contains("the database system is starting up");
            assert!(is_starting && Instant::now() < deadline, "{program}: {told}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes a database of its own beside `postgres`.
    pub fn make_database(&self, name: &str) -> String {
        self.run_sql(&format!("CREATE DATABASE {name}"));
        self.url().replace("/postgres?", &format!("/{name}?"))
    }

    fn has_come(&self) -> bool {
        UnixStream::connect(self.directory.path().join(".s.PGSQL.5432")).is_ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@localhost/postgres?host={}", self.directory.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
