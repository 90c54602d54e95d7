//! `portcullis serve` as a process of its own, which can be killed, and a disk of its own, which can be full.

use super::{Reply, World, send};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Client, Method, RequestBuilder};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The admin's token of every replica.
pub const TOKEN: &str = "an-admin-token-of-this-test-alone-0123456789";

/// Waits for a condition.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that is a process; killed with the handle.
pub struct Replica {
    child: Child,
    pub address: String,
    pub client: Client,
    log: PathBuf,
}

impl Replica {
    /// Starts one on the world's database and waits until it listens.
    pub fn start(world: &World, name: &str) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        Self::start_by(program, world, name, &world.database_url())
    }

    /// Starts one by a command that ends in the program, on a database.
    pub fn start_by(mut command: Command, world: &World, name: &str, database: &str) -> Self {
        let (token, address) = (world.path("admin-token"), world.path(&format!("{name}.address")));
        fs::write(&token, TOKEN).unwrap();
        let _ = fs::remove_file(&address);
        let log = world.path(&format!("{name}.log"));
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--database", database])
            .args(["--admin-token-file".as_ref(), token.as_os_str()])
            .args(["--address-file".as_ref(), address.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let address = wait_for(&format!("{name} to listen"), || {
            assert!(child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
            fs::read_to_string(&address).ok()
        });
        Self { child, address, client: Client::new(), log }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        wait_for("the server to end", || self.child.try_wait().unwrap())
    }

    /// A request below `/api/v1`.
    pub fn request(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}/api/v1{path}", self.address);
        self.client.request(method, url).bearer_auth(token)
    }

    pub async fn get(&self, path: &str) -> Reply {
        send(self.request(TOKEN, Method::GET, path)).await
    }

    /// Enrols a host and returns its credential.
    pub async fn enrol(&self) -> String {
        let body = serde_json::json!({ "cluster": "prod" });
        let made = send(self.request(TOKEN, Method::POST, "/enrolments").json(&body)).await;
        let secret = made.expect(201)["secret"].as_str().unwrap().to_owned();
        let body = serde_json::json!({ "host_name": "runner-1" });
        let enrolled = send(self.request(&secret, Method::POST, "/enrol").json(&body)).await;
        enrolled.expect(201)["credential"].as_str().unwrap().to_owned()
    }
}

#[expect(clippy::print_stderr, reason = "a test that fails shows what the server said")]
impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let told = log.lines().filter(|line| !line.contains("\"INFO\""));
            eprintln!("{}", told.collect::<Vec<_>>().join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
