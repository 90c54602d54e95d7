//! A runner on the runner host: its files, its Listener, its jobs.

use super::RunnerHost;
use super::command::Process;
use crate::binaries;
use crate::cgroup::Cgroup;
use crate::job::{Job, JobResult, StepKind, StepResult};
use crate::patience::wait_for;
use crate::stand_in::{Command, LISTENER, Progress, WORKER};
use crate::sync::lock;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a job may take, when the test names no other time.
const JOB_TIMEOUT: Duration = Duration::from_mins(5);

/// A runner.
#[derive(Debug)]
pub struct Runner {
    name: String,
    uid: u32,
    directory: PathBuf,
    host: Arc<RunnerHost>,
    cgroup: Cgroup,
    hooks: Mutex<Hooks>,
    listener: Mutex<Option<Listener>>,
}

#[derive(Clone, Debug, Default)]
struct Hooks {
    started: Option<PathBuf>,
    completed: Option<PathBuf>,
}

#[derive(Debug)]
struct Listener {
    process: Process,
    input: ChildStdin,
    state: Arc<Mutex<State>>,
}

/// What the Listener has told.
#[derive(Debug, Default)]
struct State {
    is_listening: bool,
    worker: Option<u32>,
    started: Vec<StepResult>,
    lines: Vec<String>,
    finished: Vec<StepResult>,
    results: Vec<JobResult>,
    is_gone: bool,
    complaints: String,
}

impl Runner {
    pub(super) fn install(
        host: Arc<RunnerHost>,
        world: &Cgroup,
        name: &str,
        uid: u32,
    ) -> Result<Self> {
        let directory = host.directory.join("runners").join(name);
        let program = binaries::find("runner-stand-in")?;
        for executable in [LISTENER, WORKER] {
            super::install(&program, &directory.join("bin").join(executable))?;
        }
        for folder in ["_work", "_diag", "home"] {
            fs::create_dir_all(directory.join(folder))?;
        }
        let runner = Self {
            name: name.to_owned(),
            uid,
            cgroup: world.child(&format!("actions.runner.{name}.service"))?,
            directory,
            host,
            hooks: Mutex::default(),
            listener: Mutex::default(),
        };
        runner.write_environment_file()?;
        // The runner's user owns all of it, as when `config.sh` was run by that user.
        for entry in ["", ".env", "_work", "_diag", "home"] {
            chown(runner.directory.join(entry), Some(uid), Some(uid))?;
        }
        Ok(runner)
    }

    /// `RUNNER_NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user that it runs as.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The runner's root directory, with `bin`, `_work` and `.env`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cgroup of its service.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Names the hook scripts in the runner's `.env`. A Listener that runs is started anew, because it reads the file
    /// once.
    ///
    /// # Errors
    /// When the file can't be written or the Listener does not come back.
    pub fn set_hooks(&self, started: Option<&Path>, completed: Option<&Path>) -> Result<()> {
        *lock(&self.hooks) = Hooks {
            started: started.map(Path::to_owned),
            completed: completed.map(Path::to_owned),
        };
        self.write_environment_file()?;
        if lock(&self.listener).is_some() {
            self.stop();
            self.start()?;
        }
        Ok(())
    }

    /// Writes a hook script into the runner's directory, as an operator's own hook would lie there, and returns its path.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_script(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    /// Starts the Listener when it does not run yet, and waits until it is there.
    ///
    /// # Errors
    /// When it ends at once.
    pub fn start(&self) -> Result<()> {
        let mut listener = lock(&self.listener);
        if listener.is_none() {
            *listener = Some(self.start_listener()?);
        }
        Ok(())
    }

    /// Ends the Listener, and whatever else is left in the runner's cgroup.
    pub fn stop(&self) {
        // Its standard input ends with it, and `Process` kills what does not go by itself.
        drop(lock(&self.listener).take());
        if let Ok(left) = self.cgroup.processes() {
            for pid in left {
                // It may have ended by itself.
                let _ =
                    kill(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)), Signal::SIGKILL);
            }
        }
    }

    /// The Listener's process id.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn listener_pid(&self) -> Result<u32> {
        self.start()?;
        lock(&self.listener).as_ref().map(|listener| listener.process.pid()).context("it is gone")
    }

    /// Runs a job to its end.
    ///
    /// # Errors
    /// When the Listener dies or the job does not end within five minutes.
    pub fn run(&self, job: &Job) -> Result<JobResult> {
        self.begin(job)?.wait()
    }

    /// Starts a job.
    ///
    /// # Errors
    /// When the Listener can't be started.
    pub fn begin(&self, job: &Job) -> Result<RunningJob<'_>> {
        self.start()?;
        let state = {
            let mut listener = lock(&self.listener);
            let listener = listener.as_mut().context("the Listener is gone")?;
            {
                let mut state = lock(&listener.state);
                state.worker = None;
                state.started.clear();
                state.lines.clear();
                state.finished.clear();
                state.results.clear();
            }
            listener.send(&Command::Run { job: Box::new(job.clone()) })?;
            Arc::clone(&listener.state)
        };
        Ok(RunningJob { runner: self, state })
    }

    fn start_listener(&self) -> Result<Listener> {
        let mut command = self
            .host
            .command(self.directory.join("bin").join(LISTENER))
            .arg("run")
            .user(self.uid)
            .groups(&self.host.groups)
            .cgroup(&self.cgroup)
            .directory(&self.directory)
            .env("HOME", self.directory.join("home"))
            .env("USER", &self.name)
            .env("STAND_IN_RUNNER_NAME", &self.name);
        if let Ok(patience) = std::env::var(crate::patience::PATIENCE_VARIABLE) {
            command = command.env(crate::patience::PATIENCE_VARIABLE, patience);
        }
        let mut process = command.spawn(Stdio::piped(), Stdio::piped(), Stdio::piped())?;
        let child = process.child();
        let input = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        let errors = child.stderr.take().context("no standard error")?;
        let state = Arc::new(Mutex::new(State::default()));
        let (for_output, for_errors) = (Arc::clone(&state), Arc::clone(&state));
        std::thread::Builder::new().name("listener-out".to_owned()).spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(progress) => lock(&for_output).note(progress),
                    Err(error) => {
                        lock(&for_output).complain(&format!("{error}: {line}"));
                    }
                }
            }
            lock(&for_output).is_gone = true;
        })?;
        std::thread::Builder::new().name("listener-err".to_owned()).spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                lock(&for_errors).complain(&line);
            }
        })?;
        let listener = Listener { process, input, state };
        wait_for("the Listener to start", || {
            let state = lock(&listener.state);
            (state.is_listening || state.is_gone).then_some(())
        })?;
        if lock(&listener.state).is_gone {
            bail!(
                "the Listener of {} ended at once: {}",
                self.name,
                lock(&listener.state).complaints
            );
        }
        Ok(listener)
    }

    fn write_environment_file(&self) -> Result<()> {
        let hooks = lock(&self.hooks).clone();
        let mut text = String::from("LANG=C.UTF-8\n");
        for (name, path) in [("STARTED", hooks.started), ("COMPLETED", hooks.completed)] {
            if let Some(path) = path {
                let path = path.display().to_string();
                text.extend(["ACTIONS_RUNNER_HOOK_JOB_", name, "=", &path, "\n"]);
            }
        }
        let path = self.directory.join(".env");
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }
}

impl Listener {
    fn send(&mut self, command: &Command) -> Result<()> {
        let line = serde_json::to_string(command)?;
        writeln!(self.input, "{line}").with_context(|| {
            format!("the Listener takes no commands: {}", lock(&self.state).complaints)
        })
    }
}

impl State {
    fn complain(&mut self, line: &str) {
        self.complaints.extend([line, "\n"]);
    }

    fn note(&mut self, progress: Progress) {
        match progress {
            Progress::Listening => self.is_listening = true,
            Progress::WorkerStarted { pid } => self.worker = Some(pid),
            Progress::StepStarted { step } => self.started.push(step),
            Progress::Line { text } => self.lines.push(text),
            Progress::StepFinished { step } => self.finished.push(step),
            Progress::Finished { result } => self.results.push(*result),
        }
    }
}

/// A job that runs.
#[derive(Debug)]
pub struct RunningJob<'a> {
    runner: &'a Runner,
    state: Arc<Mutex<State>>,
}

impl RunningJob<'_> {
    /// Waits for the job's end.
    ///
    /// # Errors
    /// When the Listener dies or the job does not end within five minutes.
    pub fn wait(self) -> Result<JobResult> {
        self.wait_within(JOB_TIMEOUT)
    }

    /// Waits for the job's end, at most so long.
    ///
    /// # Errors
    /// When the Listener dies or the job does not end in time; the error holds the lines so far.
    pub fn wait_within(self, timeout: Duration) -> Result<JobResult> {
        let start = Instant::now();
        let found = crate::patience::wait_for_within(timeout, "the job to end", || {
            let state = lock(&self.state);
            (state.is_gone || !state.results.is_empty()).then(|| state.results.first().cloned())
        });
        let state = lock(&self.state);
        match found {
            Ok(Some(result)) => Ok(result),
            Ok(None) => {
                bail!("the Listener died: {}\n{}", state.complaints, state.lines.join("\n"))
            }
            Err(_) => bail!(
                "the job has not ended after {} s: {}\n{}",
                start.elapsed().as_secs(),
                state.complaints,
                state.lines.join("\n")
            ),
        }
    }

    /// The Worker's process id; waits until it is started.
    ///
    /// # Errors
    /// When it does not start.
    pub fn worker_pid(&self) -> Result<u32> {
        wait_for("the Worker to start", || lock(&self.state).worker)
    }

    /// Waits until a step of the job has written a line that holds `text`, and returns the line.
    ///
    /// # Errors
    /// When no such line comes.
    pub fn wait_for_line(&self, text: &str) -> Result<String> {
        wait_for(&format!("a line of the job with `{text}`; so far: {:?}", self.lines()), || {
            lock(&self.state).lines.iter().find(|line| line.contains(text)).cloned()
        })
        .with_context(|| format!("lines so far:\n{}", self.lines().join("\n")))
    }

    /// Waits until a step of this kind has ended, and returns it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait_for_step(&self, kind: StepKind) -> Result<StepResult> {
        wait_for(&format!("the end of a step of kind {kind:?}"), || {
            lock(&self.state).finished.iter().find(|step| step.kind == kind).cloned()
        })
        .with_context(|| format!("lines so far:\n{}", self.lines().join("\n")))
    }

    /// The lines of all steps so far.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.state).lines.clone()
    }

    /// Cancels the job, as a person does on GitHub.
    ///
    /// # Errors
    /// When the Listener is gone.
    pub fn cancel(&self) -> Result<()> {
        self.send(&Command::Cancel)
    }

    /// Sends SIGTERM to the Listener, as systemd does when the service is stopped (`KillMode=process`).
    ///
    /// # Errors
    /// When the Listener is gone.
    pub fn shut_down_runner(&self) -> Result<()> {
        let listener = lock(&self.runner.listener);
        listener.as_ref().context("the Listener is gone")?.process.signal(Signal::SIGTERM)
    }

    /// Sends a signal to the Worker.
    ///
    /// # Errors
    /// When the Worker is gone.
    pub fn signal_worker(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.worker_pid()?)?);
        kill(pid, signal).with_context(|| format!("can't send {signal} to the Worker {pid}"))
    }

    fn send(&self, command: &Command) -> Result<()> {
        lock(&self.runner.listener).as_mut().context("the Listener is gone")?.send(command)
    }
}
