//! `portcullis serve` in a directory of its own.

use super::client::{Caller, Connection, Request};
use crate::statistics::Samples;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How the tests of the store start a PostgreSQL of their own; it is not part of a library.
#[path = "../../../store/tests/server/support/postgres.rs"]
#[expect(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "written for tests, which use all of it and fail by panicking"
)]
mod postgres;

#[path = "../../../store/tests/server/support/small_disk.rs"]
#[expect(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "written for tests, which use all of it and fail by panicking"
)]
mod small_disk;

/// Names a database with the events already, for looking at one thing again and again: a file of SQLite, or a URL of PostgreSQL.
const EVENTS: &str = "PORTCULLIS_BENCH_EVENTS";

/// The token of the admin.
pub(super) const TOKEN: &str = "measured-measured-measured-measured";

/// Which database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Backend {
    /// A file.
    Sqlite,
    /// A server of its own on this machine.
    Postgres,
}

/// A database that [`EVENTS`] names.
pub(super) struct Kept {
    /// Its kind.
    pub(super) backend: Backend,
    url: String,
}

impl Kept {
    /// The database, if one is named.
    pub(super) fn from_environment() -> Result<Option<Self>> {
        let Some(text) = std::env::var_os(EVENTS) else { return Ok(None) };
        let text = text.into_string().ok().context("a database's name that is not UTF-8")?;
        Ok(Some(if text.starts_with("postgres") {
            Self { backend: Backend::Postgres, url: text }
        } else {
            Self { backend: Backend::Sqlite, url: format!("sqlite:{text}") }
        }))
    }
}

/// A running server.
pub(super) struct Server {
    child: Child,
    address: SocketAddr,
    // Held so that they go after the server.
    _postgres: Option<postgres::Postgres>,
    directory: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is lost then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The admin.
pub(super) fn admin() -> Caller {
    Caller::Token(TOKEN.to_owned())
}

fn program() -> Result<PathBuf> {
    let directory = match std::env::var_os("PORTCULLIS_TEST_BINARIES") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_exe()?.parent().context("no directory")?.to_owned(),
    };
    Ok(directory.join("portcullis"))
}

impl Server {
    /// An empty store.
    pub(super) fn start(backend: Backend) -> Result<Self> {
        let (directory, postgres, database) = Self::database(backend)?;
        Self::serve(directory, postgres, &database)
    }

    /// A store with so many jobs of so many calls.
    pub(super) fn start_with_events(backend: Backend, jobs: usize, calls: usize) -> Result<Self> {
        if let Some(Kept { backend: kept, url }) = Kept::from_environment()?
            && kept == backend
        {
            return Self::serve(tempfile::tempdir()?, None, &url);
        }
        let (directory, postgres, database) = Self::database(backend)?;
        let status = Command::new(program()?)
            .args(["generate-events", "--database", &database])
            .args(["--jobs", &jobs.to_string(), "--events-of-job", &calls.to_string()])
            .status()?;
        if !status.success() {
            bail!("no events were generated: {status}");
        }
        if let Some(postgres) = &postgres {
            // Events of a real installation come over weeks, and autovacuum with them; after ten million within minutes it would
            // be what is measured.
            postgres.run_sql("VACUUM (ANALYZE)");
            postgres.run_sql("CHECKPOINT");
        }
        Self::serve(directory, postgres, &database)
    }

    /// An empty database, and where it is.
    fn database(backend: Backend) -> Result<(TempDir, Option<postgres::Postgres>, String)> {
        let directory = tempfile::tempdir()?;
        let postgres = (backend == Backend::Postgres).then(|| postgres::Postgres::start_with(&[]));
        let database = match &postgres {
            Some(postgres) => postgres.url(),
            None => format!("sqlite:{}", directory.path().join("store.db").display()),
        };
        Ok((directory, postgres, database))
    }

    fn serve(
        directory: TempDir,
        postgres: Option<postgres::Postgres>,
        database: &str,
    ) -> Result<Self> {
        let path = |name: &str| directory.path().join(name);
        fs::write(path("token"), TOKEN)?;
        // Limits protect a server from its callers; here they would be what is measured.
        fs::write(
            path("store.toml"),
            "[limits]\nrequests-per-second = 1000000\nburst = 1000000\n",
        )?;
        let child = Command::new(program()?)
            .args(["serve", "--listen", "127.0.0.1:0", "--database", database])
            .arg("--config")
            .arg(path("store.toml"))
            .arg("--admin-token-file")
            .arg(path("token"))
            .arg("--address-file")
            .arg(path("address"))
            .env("PORTCULLIS_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("the server can't be started")?;
        let mut server = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            _postgres: postgres,
            directory,
        };
        let file = server.directory.path().join("address");
        let deadline = Instant::now() + Duration::from_mins(1);
        while !file.exists() {
            if Instant::now() > deadline || server.child.try_wait()?.is_some() {
                bail!("the server does not listen");
            }
            thread::sleep(Duration::from_millis(20));
        }
        server.address = fs::read_to_string(file)?.parse()?;
        Ok(server)
    }

    /// Where it is.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A runner host.
    pub(super) fn enrol(&self) -> Result<Caller> {
        let enrolment = json!({ "cluster": "prod" });
        let made = self.ask(&admin().json("POST", "/api/v1/enrolments", &enrolment))?;
        let made: Value = serde_json::from_str(&made)?;
        let secret = Caller::Token(made["secret"].as_str().context("no secret")?.to_owned());
        let host = json!({ "host_name": "runner-1" });
        let enrolled: Value =
            serde_json::from_str(&self.ask(&secret.json("POST", "/api/v1/enrol", &host))?)?;
        Ok(Caller::Token(enrolled["credential"].as_str().context("no credential")?.to_owned()))
    }

    /// A person with a session of the dashboard.
    pub(super) fn sign_in(&self) -> Result<Caller> {
        let request = admin().text("POST", "/sign-in", &format!("token={TOKEN}&next=%2F"));
        let answer = Connection::open(self.address)?.exchange(&request)?;
        Ok(Caller::Session(answer.cookie.context("nobody was signed in")?))
    }

    /// Asks once.
    pub(super) fn ask(&self, request: &Request) -> Result<String> {
        Ok(String::from_utf8(Connection::open(self.address)?.ask(request)?)?)
    }

    /// How many requests a second are answered, asked one after the other by each of some connections.
    pub(super) fn rate(
        &self,
        requests: &[Request],
        connections: usize,
        time: Duration,
    ) -> Result<f64> {
        let counts = self.by_each(connections, |connection, number| {
            let (mut count, started) = (0.0, Instant::now());
            for request in requests.iter().cycle().skip(number * 101) {
                if started.elapsed() >= time {
                    break;
                }
                connection.ask(request)?;
                count += 1.0;
            }
            Ok(count / started.elapsed().as_secs_f64())
        })?;
        Ok(counts.into_iter().sum())
    }

    /// How long answers take in milliseconds while so many requests a second are asked, counted from when each was due.
    pub(super) fn paced(
        &self,
        requests: &[Request],
        connections: usize,
        rate: f64,
        time: Duration,
    ) -> Result<Samples> {
        // A count of connections is exact in a double.
        let pause = Duration::from_secs_f64(f64::from(u32::try_from(connections)?) / rate);
        let all = self.by_each(connections, |connection, number| {
            let (mut times, started) = (Vec::new(), Instant::now());
            let mut due = started
                + pause.mul_f64(
                    f64::from(u32::try_from(number)?) / f64::from(u32::try_from(connections)?),
                );
            for request in requests.iter().cycle().skip(number * 101) {
                if due - started >= time {
                    break;
                }
                thread::sleep(due.saturating_duration_since(Instant::now()));
                connection.ask(request)?;
                times.push(due.elapsed().as_secs_f64() * 1e3);
                due += pause;
            }
            Ok(times)
        })?;
        Ok(Samples::new(all.into_iter().flatten().collect()))
    }

    /// How long it takes until all lists of requests are answered, each on a connection of its own.
    pub(super) fn each(&self, lists: &[Vec<Request>]) -> Result<Duration> {
        let started = Instant::now();
        self.by_each(lists.len(), |connection, number| {
            for request in lists.get(number).into_iter().flatten() {
                connection.ask(request)?;
            }
            Ok(())
        })?;
        Ok(started.elapsed())
    }

    /// How long each answer takes in milliseconds, asked one after the other.
    pub(super) fn times(&self, requests: &[Request]) -> Result<Samples> {
        let mut connection = Connection::open(self.address)?;
        let mut times = Vec::new();
        for request in requests {
            let started = Instant::now();
            connection.ask(request)?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        Ok(Samples::new(times))
    }

    /// Does something on several connections at the same time.
    fn by_each<T: Send>(
        &self,
        connections: usize,
        work: impl Fn(&mut Connection, usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = (0..connections)
                .map(|number| {
                    scope.spawn(move || work(&mut Connection::open(self.address)?, number))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread failed"))?)
                .collect()
        })
    }

    /// The server's memory: `VmRSS` now, `VmHWM` the most so far.
    pub(super) fn resident_mebibytes(&self, key: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .context("no memory")?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes / 1024.0)
    }
}
