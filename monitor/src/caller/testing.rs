//! Made-up process tables and real runner look-alikes for tests.

use super::table::{NetworkNamespaceId, ProcFs, ProcessEntry, ProcessKey, ProcessTable};
use nix::sched::{CloneFlags, unshare};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// A table that is a value.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeTable {
    pub(crate) entries: HashMap<u32, ProcessEntry>,
    pub(crate) namespaces: HashMap<u32, u64>,
    pub(crate) tracked: HashSet<u32>,
}

impl FakeTable {
    /// Adds a process that started at tick `pid`.
    pub(crate) fn with(mut self, pid: u32, parent: u32, uid: u32, executable: &str) -> Self {
        let key = ProcessKey { pid, start_time: u64::from(pid) };
        let executable = (!executable.is_empty()).then(|| PathBuf::from(executable));
        self.entries.insert(pid, ProcessEntry { key, parent, uid, executable });
        self
    }

    pub(crate) fn in_namespace(mut self, pid: u32, namespace: u64) -> Self {
        self.namespaces.insert(pid, namespace);
        self
    }

    pub(crate) fn tracked(mut self, pid: u32) -> Self {
        self.tracked.insert(pid);
        self
    }
}

impl ProcessTable for FakeTable {
    fn process(&self, pid: u32) -> Option<ProcessEntry> {
        self.entries.get(&pid).cloned()
    }

    fn pids(&self) -> Vec<u32> {
        self.entries.keys().copied().collect()
    }

    fn network_namespace(&self, pid: u32) -> Option<NetworkNamespaceId> {
        self.entries.get(&pid)?;
        let inode = self.namespaces.get(&pid).copied().unwrap_or(1);
        Some(NetworkNamespaceId { device: 4, inode })
    }

    fn has_tracking_id(&self, pid: u32) -> bool {
        self.tracked.contains(&pid)
    }
}

/// Waits for a condition.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A new network namespace with its loopback up; it lives as long as the file or a process in it.
pub(crate) fn scratch_network_namespace() -> File {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(status.success());
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

/// `Runner.Listener` → `Runner.Worker`, two shells under those names. The Worker runs what is written to it.
#[derive(Debug)]
pub(crate) struct FakeRunner {
    child: Child,
    worker_input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
    pub(crate) listener: ProcessKey,
    pub(crate) worker: ProcessKey,
    directory: tempfile::TempDir,
}

impl FakeRunner {
    /// Starts one in this thread's network namespace.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more environment.
    pub(crate) fn start_with(environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = directory.path().join("Runner.Listener");
        let worker = directory.path().join("Runner.Worker");
        std::fs::copy("/bin/bash", &listener).unwrap();
        std::fs::copy("/bin/bash", &worker).unwrap();
        let mut child = Command::new(&listener)
            .args(["-c", "\"$0\" --norc; exit $?", worker.to_str().unwrap()])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let worker_input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let listener = ProcFs.key(child.id()).unwrap();
        let mut runner =
            Self { child, worker_input, output, listener, worker: listener, directory };
        let pid = runner.ask("echo $$").parse().unwrap();
        runner.worker = ProcFs.key(pid).unwrap();
        runner
    }

    /// Makes the Worker run a command.
    pub(crate) fn tell(&mut self, command: &str) {
        use std::io::Write;
        writeln!(self.worker_input.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Makes the Worker run a command and returns the line that it prints.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Starts `command` in the background below the Worker and returns its key.
    pub(crate) fn start_child(&mut self, command: &str) -> ProcessKey {
        let pid = self.ask(&format!("{command} >/dev/null 2>&1 & echo $!")).parse().unwrap();
        ProcFs.key(pid).unwrap()
    }

    /// The directory of the two programs.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for FakeRunner {
    fn drop(&mut self) {
        let tree: Vec<ProcessEntry> =
            ProcFs.pids().into_iter().filter_map(|pid| ProcFs.process(pid)).collect();
        for key in crate::cgroup::job::descendants(&tree, self.listener) {
            let _ = super::left_over::kill(key);
        }
        drop(self.worker_input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
