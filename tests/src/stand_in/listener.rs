//! `Runner.Listener`: waits for jobs and starts a Worker for each (Runner.Listener/JobDispatcher.cs).

use super::https::{Connection, Tls};
use super::message::{Command, Progress};
use super::{WORKER, worker};
use crate::job::{Annotation, JobOutcome, JobResult, StepOutcome, StepResult};
use crate::server::github::BROKER_HOST;
use crate::sync::lock;
use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// How long the Listener waits before it calls the broker again after a failure.
const RETRY: Duration = Duration::from_millis(200);

/// How long the Listener waits for its first connection to the broker before it takes jobs without.
const CONNECTING: Duration = Duration::from_secs(2);

/// The pipe to the Worker of the running job.
type ToWorker = Arc<Mutex<Option<File>>>;

pub(super) fn main() -> Result<ExitCode> {
    // Blocked before any thread is there, so that only the signal file sees it; the Worker clears its mask.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;

    let root = runner_root()?;
    let name = root.file_name().context("the runner has no name")?.to_string_lossy().into_owned();
    let environment = load_environment_file(&root.join(".env"))?;
    let to_worker = ToWorker::default();
    let (sender, happenings) = mpsc::channel();
    let (connected, is_connected) = mpsc::channel();
    thread::Builder::new()
        .name("long-poll".to_owned())
        .spawn(move || poll_forever(&name, &connected))?;
    let to_main = sender.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if matches!(signals.read_signal(), Ok(Some(_))) {
            // The main thread may have ended by itself.
            let _ = to_main.send(Happening::Signal);
        }
    })?;
    let to_main = sender.clone();
    thread::Builder::new().name("commands".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let _ = to_main.send(Happening::Command(line));
        }
        let _ = to_main.send(Happening::NoMoreCommands);
    })?;
    // A job comes by that connection, so it is older than any Worker. A world without a broker has jobs as well.
    let _ = is_connected.recv_timeout(CONNECTING);
    report(&Progress::Listening)?;
    let mut is_shutting_down = false;
    for happening in happenings {
        match happening {
            Happening::Command(line) => match serde_json::from_str(&line)? {
                Command::Run { job } => {
                    // Started here, so that a cancellation that follows finds the Worker.
                    let worker = Worker::start(&root, &environment, &to_worker)?;
                    tell(&to_worker, &Command::Run { job });
                    let (to_main, to_worker) = (sender.clone(), Arc::clone(&to_worker));
                    thread::Builder::new().name("worker".to_owned()).spawn(move || {
                        let _ = to_main.send(Happening::JobEnded(worker.wait(&to_worker)));
                    })?;
                }
                command => drop(tell(&to_worker, &command)),
            },
            Happening::JobEnded(result) => {
                report(&Progress::Finished { result: Box::new(result?) })?;
                if is_shutting_down {
                    break;
                }
            }
            Happening::Signal => {
                is_shutting_down = true;
                if !tell(&to_worker, &Command::Shutdown) {
                    break;
                }
            }
            Happening::NoMoreCommands => break,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the Listener waits for.
enum Happening {
    Command(String),
    NoMoreCommands,
    JobEnded(Result<JobResult>),
    Signal,
}

/// Writes one message to the test.
fn report(progress: &Progress) -> Result<()> {
    let line = serde_json::to_string(progress)?;
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Sends a message to the Worker; `false` when there is none.
fn tell(to_worker: &ToWorker, command: &Command) -> bool {
    let mut pipe = lock(to_worker);
    let Some(pipe) = pipe.as_mut() else { return false };
    serde_json::to_string(command).is_ok_and(|line| writeln!(pipe, "{line}").is_ok())
}

/// The runner's root directory: above `bin`.
pub(super) fn runner_root() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let root = executable.parent().and_then(Path::parent);
    root.map(Path::to_owned).context("this program lies in no `bin` directory of a runner")
}

/// The runner's `.env`, read once at the start (Runner.Listener/Program.cs, `LoadAndSetEnv`).
fn load_environment_file(path: &Path) -> Result<BTreeMap<String, String>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// Waits for messages of the broker, for ever, and tells of each connection.
fn poll_forever(name: &str, connected: &mpsc::Sender<()>) {
    // A world without authorities has no broker.
    let Ok(tls) = Tls::new() else { return };
    loop {
        let polled: Result<()> = (|| {
            let mut connection = Connection::open(&tls, BROKER_HOST)?;
            connection.wait_forever()?;
            // Nobody waits for the second one any more.
            let _ = connected.send(());
            loop {
                connection.request("GET", &format!("/message?runner={name}"), b"")?;
            }
        })();
        if polled.is_err() {
            thread::sleep(RETRY);
        }
    }
}

/// A Worker and what it says.
struct Worker {
    child: Child,
    progress: File,
    /// What it wrote to its standard streams: what a crash leaves.
    output: Arc<Mutex<Vec<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Worker {
    fn start(
        root: &Path,
        environment: &BTreeMap<String, String>,
        to_worker: &ToWorker,
    ) -> Result<Self> {
        let (command_out, command_in) = inherited_pipe()?;
        let (progress_out, progress_in) = inherited_pipe()?;
        for ours in [&command_in, &progress_out] {
            fcntl(ours.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let directory = root.join("bin");
        let mut child = std::process::Command::new(directory.join(WORKER))
            .arg("spawnclient")
            .arg(command_out.as_raw_fd().to_string())
            .arg(progress_in.as_raw_fd().to_string())
            .envs(environment)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("can't start the Worker")?;
        *lock(to_worker) = Some(File::from(command_in));
        report(&Progress::WorkerStarted { pid: child.id() })?;
        let output = Arc::default();
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            // Lines of this prefix are the Worker's own trace (JobDispatcher.cs).
            readers.push(collect(stdout, &output, |line| !line.starts_with("[WORKER"))?);
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(collect(stderr, &output, |_| true)?);
        }
        Ok(Self { child, progress: File::from(progress_out), output, readers })
    }

    /// Passes on what the Worker says until it ends, and finds out how it ended.
    fn wait(mut self, to_worker: &ToWorker) -> Result<JobResult> {
        let mut unfinished: Option<StepResult> = None;
        let mut finished = Vec::new();
        let mut result = None;
        for line in BufReader::new(&self.progress).lines().map_while(Result::ok) {
            let progress: Progress =
                serde_json::from_str(&line).with_context(|| format!("the Worker said {line}"))?;
            match &progress {
                Progress::StepStarted { step } => unfinished = Some(step.clone()),
                Progress::Line { text } => {
                    if let Some(step) = &mut unfinished {
                        step.log.push_str(text);
                        step.log.push('\n');
                    }
                }
                Progress::StepFinished { step } => {
                    unfinished = None;
                    finished.push(step.clone());
                }
                Progress::Finished { result: last } => {
                    result = Some(last.as_ref().clone());
                    continue;
                }
                Progress::Listening | Progress::WorkerStarted { .. } => {}
            }
            report(&progress)?;
        }
        let status = self.child.wait()?;
        *lock(to_worker) = None;
        let code = exit_code(status);
        let mut result = match result {
            Some(result) if worker::is_result_code(code) => result,
            _ => self.crashed(finished, unfinished),
        };
        result.worker_exit_code = code;
        Ok(result)
    }

    /// The result of a job whose Worker died: what it wrote becomes the annotation, nothing becomes none
    /// (JobDispatcher.cs, `ForceFailJob`).
    fn crashed(&mut self, mut steps: Vec<StepResult>, unfinished: Option<StepResult>) -> JobResult {
        // The job's processes do not have these pipes, so they end with the Worker.
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        steps
            .extend(unfinished.map(|step| StepResult { outcome: StepOutcome::Unfinished, ..step }));
        let message = lock(&self.output).join("\n");
        let annotation =
            (!message.is_empty()).then(|| Annotation { level: "error".to_owned(), message });
        JobResult {
            outcome: JobOutcome::Failure,
            steps,
            annotations: annotation.into_iter().collect(),
            worker_exit_code: 0,
            orphans: Vec::new(),
            failed_uploads: 0,
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(
    stream: impl Read + Send + 'static,
    output: &Arc<Mutex<Vec<String>>>,
    wanted: fn(&str) -> bool,
) -> Result<thread::JoinHandle<()>> {
    let output = Arc::clone(output);
    let reader = move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if !line.is_empty() && wanted(&line) {
                lock(&output).push(line);
            }
        }
    };
    Ok(thread::Builder::new().name("worker-output".to_owned()).spawn(reader)?)
}

/// A pipe that a child inherits.
fn inherited_pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::empty()).context("can't make a pipe")
}
