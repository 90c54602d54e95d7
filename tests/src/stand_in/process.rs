//! Starting a step's process and waiting for it (Runner.Sdk/ProcessInvoker.cs).

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// After SIGINT the process has this long.
const INTERRUPT_TIMEOUT: Duration = Duration::from_millis(7500);

/// After SIGTERM the process has this long.
const TERMINATE_TIMEOUT: Duration = Duration::from_millis(2500);

/// How long the runner waits for output streams that others keep open after the process has ended. What follows in
/// the real runner is `KillProcessTree`, which on Linux kills only the process itself: whoever keeps the streams open
/// lives on.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// How often cancellation is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// The longest line in bytes; a longer one is broken.
const MAX_LINE: u64 = 1024 * 1024;

/// What children are given as OOM score adjustment (`DecreaseProcessPriority`).
const OOM_SCORE_ADJUSTMENT: &str = "500";

/// A process to be started.
#[derive(Clone, Debug)]
pub(super) struct Invocation {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// In addition to the Worker's own environment.
    pub(super) environment: BTreeMap<String, String>,
    pub(super) directory: PathBuf,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// By itself, with this exit status; 128 + the signal's number when it was killed.
    Exited(i32),
    /// It was stopped because somebody wanted it to stop.
    Stopped,
}

enum Happening {
    Line(String),
    StreamEnded,
    Exited(std::io::Result<ExitStatus>),
}

/// Runs a process; `line` gets each line of its output, `must_stop` is asked from time to time.
pub(super) fn run(
    invocation: &Invocation,
    mut must_stop: impl FnMut() -> bool,
    mut line: impl FnMut(String),
) -> Result<Ending> {
    let mut command = Command::new(&invocation.program);
    command.args(&invocation.arguments).envs(&invocation.environment);
    command.env("GITHUB_ACTIONS", "true");
    if std::env::var_os("CI").is_none() && !invocation.environment.contains_key("CI") {
        command.env("CI", "true");
    }
    let mut child = command
        .current_dir(&invocation.directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {}", invocation.program.display()))?;
    // Closed at once, so that nothing waits for a person.
    drop(child.stdin.take());
    let pid = child.id();
    // It may have ended already.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJUSTMENT);
    let (sender, happenings) = mpsc::channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as _),
        child.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    let mut open_streams = 0;
    for stream in streams.into_iter().flatten() {
        open_streams += 1;
        let sender = sender.clone();
        thread::Builder::new()
            .name("step-output".to_owned())
            .spawn(move || read_lines(stream, &sender))?;
    }
    thread::Builder::new().name("step-wait".to_owned()).spawn(move || {
        // The receiver may have stopped listening.
        let _ = sender.send(Happening::Exited(child.wait()));
    })?;

    let mut exited: Option<(ExitStatus, Instant)> = None;
    let mut stopping: Option<(Signal, Instant)> = None;
    loop {
        match happenings.recv_timeout(INTERVAL) {
            Ok(Happening::Line(text)) => line(text),
            Ok(Happening::StreamEnded) => open_streams -= 1,
            Ok(Happening::Exited(status)) => exited = Some((status?, Instant::now())),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if let Some((status, at)) = exited {
            if open_streams == 0 || at.elapsed() >= STREAM_TIMEOUT {
                return Ok(if stopping.is_some() {
                    Ending::Stopped
                } else {
                    Ending::Exited(
                        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                    )
                });
            }
        } else {
            let next = match stopping {
                None => must_stop().then_some(Signal::SIGINT),
                Some((Signal::SIGINT, at)) => {
                    (at.elapsed() >= INTERRUPT_TIMEOUT).then_some(Signal::SIGTERM)
                }
                Some((Signal::SIGTERM, at)) => {
                    (at.elapsed() >= TERMINATE_TIMEOUT).then_some(Signal::SIGKILL)
                }
                Some(_) => None,
            };
            if let Some(signal) = next {
                stopping = Some((signal, Instant::now()));
                // It may be root's or just gone; the next signal follows in either case.
                let _ = kill(Pid::from_raw(i32::try_from(pid)?), signal);
            }
        }
    }
}

fn read_lines(stream: impl Read, sender: &Sender<Happening>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut bytes = Vec::new();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut bytes) {
            Ok(length) if length > 0 => {
                if bytes.ends_with(b"\n") {
                    bytes.pop();
                }
                let line = String::from_utf8_lossy(&bytes).into_owned();
                if sender.send(Happening::Line(line)).is_err() {
                    return;
                }
            }
            _ => break,
        }
    }
    let _ = sender.send(Happening::StreamEnded);
}
