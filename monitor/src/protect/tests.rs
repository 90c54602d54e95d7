use super::*;
use crate::caller::testing::eventually;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// An ordinary user of the test's own choosing.
const UID: u32 = 12_345;

/// `monitor/tests/inputs/busy_worker.c`, running as an ordinary user.
struct Busy {
    child: Child,
    output: BufReader<ChildStdout>,
    key: ProcessKey,
    _directory: tempfile::TempDir,
}

impl Busy {
    fn start() -> Self {
        let directory = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .unwrap();
        let program = compile(directory.path(), "busy_worker.c");
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .uid(UID)
            .gid(UID)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let key = ProcFs.key(child.id()).unwrap();
        Self { child, output, key, _directory: directory }
    }

    /// Ends it and checks that it saw nothing.
    fn finish(mut self) {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ok\n");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn compile(directory: &Path, source: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs").join(source);
    let program = directory.join("program");
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-Werror", "-pthread", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success());
    program
}

/// Runs `work` on a thread of its own, as ptrace wants it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Whether an unprivileged process of the same user can read the process' memory.
fn can_be_read_by_its_user(pid: u32) -> bool {
    let script = format!("exec 3</proc/{pid}/mem");
    let status = Command::new("/bin/sh")
        .args(["-c", &script])
        .uid(UID)
        .gid(UID)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success()
}

#[test]
fn a_busy_worker_is_protected_and_notices_nothing() {
    let busy = Busy::start();
    assert!(can_be_read_by_its_user(busy.key.pid));
    let began = Instant::now();
    let wanted = Wanted { no_new_privileges: true };
    let protection = Protecting::start(busy.key, UID, wanted).finish();
    let took = began.elapsed();
    assert_eq!(protection.failure, None);
    assert!(protection.has_no_new_privileges);
    assert!(
        protection.features.iter().all(|feature| feature.state == FeatureState::Active),
        "{protection:?}"
    );
    assert!(!can_be_read_by_its_user(busy.key.pid));
    for thread in threads(busy.key.pid).unwrap() {
        assert!(has_no_new_privileges(busy.key.pid, thread), "thread {thread}");
    }
    // A second time there is nothing to be done.
    assert_eq!(Protecting::start(busy.key, UID, wanted).finish(), protection);
    println!("protected within {took:?}");
    busy.finish();
}

#[test]
fn calls_in_all_threads_for_a_while_disturb_none() {
    let busy = Busy::start();
    let pid = busy.key.pid;
    let (mut made, mut gone) = (0, 0);
    on_a_thread(|| {
        let target = Target::open(busy.key).unwrap();
        let begin = Instant::now();
        // An emulated machine takes longer.
        let is_enough =
            |made| begin.elapsed() > Duration::from_secs(if made > 200 { 4 } else { 120 });
        while !is_enough(made) {
            for thread in threads(pid).unwrap() {
                match target.make(thread, &[NOT_DUMPABLE, NO_NEW_PRIVILEGES]).unwrap() {
                    Injected::Done => made += 1,
                    Injected::Gone => gone += 1,
                }
            }
        }
    });
    println!("{made} calls made, {gone} threads were gone");
    assert!(made > 200, "{made} calls");
    assert!(!is_traced(pid));
    busy.finish();
}

/// Whether a thread of the process is still attached to somebody.
fn is_traced(pid: u32) -> bool {
    threads(pid).unwrap().into_iter().any(|thread| {
        let status =
            fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    })
}

#[test]
fn a_stopped_process_is_protected_and_stays_stopped() {
    let mut child = Command::new("sleep").arg("1000").uid(UID).gid(UID).spawn().unwrap();
    let key = ProcFs.key(child.id()).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let state = || procfs::process::Process::new(pid.as_raw()).unwrap().stat().unwrap().state;
    eventually("sleep sleeps", || (state() == 'S').then_some(()));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    eventually("it is stopped", || (state() == 'T').then_some(()));
    let protection = Protecting::start(key, UID, Wanted { no_new_privileges: true }).finish();
    assert!(protection.has_no_new_privileges, "{protection:?}");
    eventually("it is stopped again", || (state() == 'T').then_some(()));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    eventually("it sleeps again", || (state() == 'S').then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A call that a signal ends is not begun again when the signal comes while the process is changed.
#[test]
fn a_signal_that_comes_meanwhile_ends_the_call_that_it_interrupts() {
    let script = "import signal; signal.signal(signal.SIGUSR1, lambda *_: None); print('ready', flush=True); signal.pause()";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .uid(UID)
        .gid(UID)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let key = ProcFs.key(child.id()).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let state = || procfs::process::Process::new(pid.as_raw()).unwrap().stat().unwrap().state;
    eventually("it pauses", || (state() == 'S').then_some(()));
    // A stopped process gets its signals when it goes on.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    eventually("it is stopped", || (state() == 'T').then_some(()));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    let protection = Protecting::start(key, UID, Wanted { no_new_privileges: true }).finish();
    assert!(protection.has_no_new_privileges, "{protection:?}");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    let status = eventually("its pause is over", || child.try_wait().unwrap());
    assert!(status.success(), "{status:?}");
}

#[test]
fn who_is_traced_already_is_told_and_left_alone() {
    let mut child = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "sh", "-c", "echo $$; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let key = ProcFs.key(line.trim().parse().unwrap()).unwrap();
    // Between two programs it has no memory to look at.
    eventually("the program to be executed", || {
        let name = fs::read_to_string(format!("/proc/{}/comm", key.pid)).ok()?;
        (name == "sleep\n").then_some(())
    });
    let protection = Protecting::start(key, UID, Wanted { no_new_privileges: true }).finish();
    let failure = protection.failure.unwrap();
    assert!(failure.contains("attach"), "{failure}");
    assert!(ProcFs.is_alive(key));
    crate::caller::kill(key).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_process_that_is_gone_is_no_success() {
    let mut child = Command::new("true").spawn().unwrap();
    let key = ProcFs.key(child.id()).unwrap();
    child.wait().unwrap();
    let protection = Protecting::start(key, UID, Wanted { no_new_privileges: true }).finish();
    assert!(!protection.has_no_new_privileges);
    assert!(protection.failure.is_some());
    assert!(protection.features.iter().any(|feature| feature.state == FeatureState::Missing));
}

#[test]
fn ports_of_a_runtime_are_removed_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let child = Command::new("sleep").arg("1000").env("TMPDIR", directory.path()).spawn();
    let mut child = child.unwrap();
    let key = ProcFs.key(child.id()).unwrap();
    eventually("its environment is there", || {
        crate::caller::table::environment_value(key.pid, b"TMPDIR")
    });
    let path = |name: &str| directory.path().join(name.replace("PID", &key.pid.to_string()));
    let ports = ["dotnet-diagnostic-PID-7-socket", "clr-debug-pipe-PID-7-in"];
    let socket = std::os::unix::net::UnixListener::bind(path(ports[0])).unwrap();
    nix::unistd::mkfifo(&path(ports[1]), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let others = ["dotnet-diagnostic-PID-7-file", "dotnet-diagnostic-1-7-socket"];
    fs::write(path(others[0]), "a file").unwrap();
    let other = std::os::unix::net::UnixListener::bind(path(others[1])).unwrap();
    let feature = close_diagnostics(key);
    assert_eq!(feature.state, FeatureState::Active, "{feature:?}");
    assert!(feature.reason.starts_with("2 "), "{feature:?}");
    assert!(ports.iter().all(|name| !path(name).exists()));
    assert!(others.iter().all(|name| path(name).exists()));
    drop((socket, other));
    child.kill().unwrap();
    child.wait().unwrap();
}
