//! Decisions over made-up tables, and the same with real processes.

use super::testing::{FakeRunner, FakeTable, eventually};
use super::*;
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid, start_time: u64::from(pid) }
}

/// systemd → Listener 10 → Worker 20 → bash 30 → pre-job 40.
fn honest() -> FakeTable {
    FakeTable::default()
        .with(1, 0, 0, "/usr/lib/systemd/systemd")
        .with(10, 1, 1001, "/home/r/bin/Runner.Listener")
        .with(20, 10, 1001, "/home/r/bin/Runner.Worker")
        .with(30, 20, 1001, "/usr/bin/bash")
        .with(40, 30, 1001, "/opt/portcullis/bin/pre-job")
}

#[test]
fn finds_the_worker_of_a_hook() {
    let lineage = lineage(&honest(), key(40)).unwrap();
    let worker = lineage.worker().unwrap();
    assert_eq!((worker.worker, worker.listener, worker.uid), (key(20), key(10), 1001));
    assert_eq!(worker.callers, [key(30), key(40)]);
    assert!(lineage.contains(key(30)) && !lineage.contains(key(41)));
}

#[test]
fn a_pair_that_the_job_made_up_is_never_preferred() {
    let table = honest()
        .with(50, 30, 1001, "/tmp/Runner.Listener")
        .with(60, 50, 1001, "/tmp/Runner.Worker")
        .with(70, 60, 1001, "/opt/portcullis/bin/pre-job");
    let lineage = lineage(&table, key(70)).unwrap();
    let workers: Vec<u32> = lineage.candidates.iter().map(|found| found.worker.pid).collect();
    assert_eq!(workers, [20, 60]);
    assert_eq!(lineage.worker().unwrap().worker, key(20));
}

#[test]
fn a_runner_that_updated_itself_is_recognised() {
    let table = honest().with(10, 1, 1001, "/home/r/bin.2.1/Runner.Listener (deleted)").with(
        20,
        10,
        1001,
        "/home/r/bin.2.1/Runner.Worker (deleted)",
    );
    assert_eq!(lineage(&table, key(40)).unwrap().worker().unwrap().worker, key(20));
}

#[test]
fn only_the_exact_names_in_the_right_order_count() {
    for (listener, worker) in [
        ("/r/Runner.Worker", "/r/Runner.Listener"),
        ("/r/Runner.Listener2", "/r/Runner.Worker"),
        ("/r/Runner.Listener", "/r/Runner.Worker/bash"),
        ("/r/Runner.Listener", "/r/runner.worker"),
        ("/r/Runner.Listener", ""),
        ("/r/Runner.Listener (deleted) (deleted)", "/r/Runner.Worker"),
    ] {
        let table = honest().with(10, 1, 1001, listener).with(20, 10, 1001, worker);
        let found = lineage(&table, key(40)).unwrap();
        let error = found.worker().unwrap_err().to_string();
        assert!(error.contains("no ancestor is a Runner.Worker"), "{listener} {worker}: {error}");
    }
}

#[test]
fn names_in_errors_are_escaped() {
    let table = FakeTable::default().with(1, 0, 0, "/init").with(40, 1, 7, "/tmp/\u{1b}[31m\nx");
    let error = lineage(&table, key(40)).unwrap().worker().unwrap_err().to_string();
    assert!(!error.contains('\n') && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn a_recycled_caller_is_gone() {
    let recycled = ProcessKey { pid: 40, start_time: 39 };
    assert!(matches!(lineage(&honest(), recycled), Err(CallerError::Gone { pid: 40 })));
    assert!(matches!(lineage(&honest(), key(41)), Err(CallerError::Gone { pid: 41 })));
}

#[test]
fn a_chain_that_is_too_long_is_refused() {
    let mut table = FakeTable::default().with(1, 0, 0, "/init");
    for pid in 2..6000 {
        table = table.with(pid, pid - 1, 1001, "/bin/sh");
    }
    assert!(matches!(lineage(&table, key(5999)), Err(CallerError::TooDeep { .. })));
    assert_eq!(lineage(&table, key(3000)).unwrap().chain.len(), 3000);
}

/// A table in which the shell between hook and Worker exits, and its pid is taken by a foreign Worker's child, right
/// after the hook was read.
struct Racing {
    before: FakeTable,
    after: FakeTable,
    reads_until_change: Cell<u32>,
}

impl ProcessTable for Racing {
    fn process(&self, pid: u32) -> Option<ProcessEntry> {
        let left = self.reads_until_change.get();
        self.reads_until_change.set(left.saturating_sub(1));
        if left > 0 { self.before.process(pid) } else { self.after.process(pid) }
    }
    fn pids(&self) -> Vec<u32> {
        self.before.pids()
    }
    fn network_namespace(&self, pid: u32) -> Option<table::NetworkNamespaceId> {
        self.before.network_namespace(pid)
    }
    fn has_tracking_id(&self, pid: u32) -> bool {
        self.before.has_tracking_id(pid)
    }
}

#[test]
fn a_parent_pid_that_is_recycled_during_the_walk_fools_nobody() {
    let foreign = honest()
        .with(11, 1, 1002, "/home/s/bin/Runner.Listener")
        .with(21, 11, 1002, "/home/s/bin/Runner.Worker")
        .with(30, 21, 1002, "/usr/bin/bash")
        .with(40, 1, 1001, "/opt/portcullis/bin/pre-job");
    for reads in 0..12 {
        let table = Racing {
            before: honest(),
            after: foreign.clone(),
            reads_until_change: Cell::new(reads),
        };
        let found = lineage(&table, key(40)).unwrap();
        let worker = found.worker().ok().map(|worker| worker.worker.pid);
        assert!(worker.is_none() || worker == Some(20), "after {reads} reads: {worker:?}");
    }
}

#[test]
fn counts_the_runners_that_matter() {
    let table = honest()
        .in_namespace(99, 7)
        .with(11, 1, 1001, "/srv/Runner.Listener") // same user, same namespace
        .with(12, 1, 1002, "/srv/Runner.Listener") // a pod of its own
        .in_namespace(12, 2)
        .with(50, 30, 1001, "/tmp/Runner.Listener"); // the job's own forgery
    let worker = lineage(&table, key(40)).unwrap().worker().unwrap().clone();
    let survey = survey_runners(&table, &worker);
    assert_eq!(survey, RunnerSurvey { listeners_in_network_namespace: 2, user_is_shared: true });

    let worker = lineage(&honest(), key(40)).unwrap().worker().unwrap().clone();
    let survey = survey_runners(&honest(), &worker);
    assert_eq!(survey, RunnerSurvey { listeners_in_network_namespace: 1, user_is_shared: false });
}

#[test]
fn left_overs_are_what_no_runner_answers_for() {
    let table = honest()
        .tracked(30)
        .with(80, 1, 1001, "/tmp/miner")
        .tracked(80)
        .with(81, 80, 1001, "/bin/sh")
        .tracked(81)
        .with(82, 1, 1002, "/tmp/other-user")
        .tracked(82)
        .with(83, 1, 1001, "/usr/bin/untracked")
        .with(84, 1, 1001, "/usr/bin/daemon-of-a-running-job")
        .tracked(84)
        .with(std::process::id(), 80, 1001, "/opt/portcullis/bin/monitor")
        .tracked(std::process::id());
    let mut pids: Vec<u32> = left_overs(&table, 1001, |entry| entry.key.pid == 84)
        .into_iter()
        .map(|entry| entry.key.pid)
        .collect();
    pids.sort_unstable();
    // 80 is the monitor's own parent here.
    assert_eq!(pids, [81]);
}

#[test]
fn identifies_a_real_peer_and_its_real_worker() {
    let mut runner = FakeRunner::start();
    let path = runner.directory().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let child = runner.start_child(&format!(
        "perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Peer => \"{}\"); <$s>'",
        path.display()
    ));
    let (stream, _) = listener.accept().unwrap();

    let peer = identify_peer(&stream).unwrap();
    assert_eq!(peer.key(), child);
    assert_eq!(peer.uid(), 0);
    // The way of older kernels comes to the same result.
    let older = peer::identify_by_inode(stream.as_fd(), child.pid, 0, 0).unwrap();
    assert_eq!(older.key(), child);
    // And refuses a process that doesn't hold the other end, as one with a recycled pid would not.
    let refused = peer::identify_by_inode(stream.as_fd(), runner.worker.pid, 0, 0);
    assert!(matches!(refused, Err(CallerError::Recycled { .. })), "{refused:?}");

    let found = lineage(&ProcFs, peer.key()).unwrap();
    let candidate = found.worker().unwrap();
    assert_eq!((candidate.worker, candidate.listener), (runner.worker, runner.listener));
    let worker = Worker::open(candidate).unwrap();
    assert_eq!(worker.executable(), runner.directory().join("Runner.Worker"));
    assert!(!worker.has_exited().unwrap());
    assert_eq!(Worker::reopen(runner.worker).unwrap().listener(), Some(runner.listener));

    worker.kill().unwrap();
    eventually("the Worker's end", || worker.has_exited().unwrap().then_some(()));
    worker.kill().unwrap();
    assert!(matches!(worker.network_namespace(), Err(CallerError::Gone { .. })));
    eventually("the Worker is reaped", || {
        matches!(Worker::reopen(runner.worker), Err(CallerError::Gone { .. })).then_some(())
    });
}

#[test]
fn a_peer_that_is_gone_is_not_identified() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let status = Command::new("perl")
        .args(["-MIO::Socket::UNIX", "-e", "IO::Socket::UNIX->new(Peer => $ARGV[0])"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(status.success());
    let (stream, _) = listener.accept().unwrap();
    let result = identify_peer(&stream);
    assert!(matches!(result, Err(CallerError::Gone { .. })), "{result:?}");
}

#[test]
fn the_own_process_is_a_peer_too() {
    let (left, _right) = UnixStream::pair().unwrap();
    assert_eq!(Some(identify_peer(&left).unwrap().key()), ProcFs.key(std::process::id()));
}

#[test]
fn a_real_left_over_process_is_found_and_killed() {
    // A user id of this test's own: nobody else's processes can be meant.
    const UID: u32 = 61_234;
    let start = |tracked: bool| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=61234", "--clear-groups", "sh", "-c"]);
        // Orphaned at once: the outer shell exits.
        command.arg("sleep 1000 >/dev/null 2>&1 & echo $!");
        if tracked {
            command.env("RUNNER_TRACKING_ID", "github_4711");
        }
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        let pid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        ProcFs.key(pid).unwrap()
    };
    let (tracked, untracked) = (start(true), start(false));
    let found = eventually("the exec of sleep", || {
        let found = left_overs(&ProcFs, UID, |_| false);
        found.iter().any(|entry| entry.key == tracked).then_some(found)
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(left_overs(&ProcFs, UID, |entry| entry.key == tracked).is_empty());
    let outcomes = kill_left_overs(found);
    assert!(matches!(outcomes[0].result, Ok(true)));
    eventually("its end", || (!ProcFs.is_alive(tracked)).then_some(()));
    assert!(ProcFs.is_alive(untracked));
    assert!(kill(untracked).unwrap());
    // A key that is out of date kills nobody.
    let stale = ProcessKey { pid: std::process::id(), start_time: 1 };
    assert!(!kill(stale).unwrap());
}

#[test]
fn a_runner_s_flows_are_listed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = Command::new("perl")
        .args(["-MIO::Socket::INET", "-e"])
        .arg("my $s = IO::Socket::INET->new($ARGV[0]); print $s->sockport, \"\\n\"; STDOUT->flush; <STDIN>")
        .arg(address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let namespace = std::fs::File::open("/proc/self/ns/net").unwrap();
    let diagnostics = crate::watch::sockets::SocketDiagnostics::open(namespace.as_fd()).unwrap();
    let process = ProcFs.key(client.id()).unwrap();
    let flows = runner_flows(&[process], &diagnostics).unwrap();
    assert_eq!(flows.len(), 1, "{flows:?}");
    assert_eq!(flows[0].destination, address);
    assert_eq!(flows[0].source.port().to_string(), line.trim());
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    client.wait().unwrap();
}
