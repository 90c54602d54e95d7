//! The monitor under test.

use super::RunnerHost;
use super::command::{HostCommand, Process};
use crate::patience::{patience, wait_for, wait_until};
use crate::sync::lock;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use portcullis_common::wire::{Answer, Call, PROTOCOL_VERSION, Request, Status};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// Which namespaces the monitor is started in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MonitorPlace {
    /// The runner host's own, as on a machine.
    #[default]
    RunnerHost,
    /// This machine's, so that Workers live in another network namespace than the monitor, as pods do.
    Machine,
}

/// How the monitor is started.
#[derive(Clone, Debug, Default)]
pub struct MonitorOptions {
    /// Where.
    pub place: MonitorPlace,
    /// Further arguments of `monitor serve`.
    pub arguments: Vec<String>,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
}

/// A running monitor; killed when the handle is dropped.
#[derive(Debug)]
pub struct Monitor {
    host: Arc<RunnerHost>,
    options: MonitorOptions,
    program: PathBuf,
    process: Process,
    log: Arc<Mutex<String>>,
}

impl Monitor {
    pub(super) fn start(host: Arc<RunnerHost>, options: MonitorOptions) -> Result<Self> {
        let program = host.install_program("monitor")?;
        let log = Arc::default();
        let process = launch(&host, &options, &program, &log)?;
        Ok(Self { host, options, program, process, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has written so far, over all restarts.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it was gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait()?;
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        wait_for(&format!("the monitor to end; log:\n{}", self.log()), || {
            self.process.child().try_wait().ok().flatten()
        })
    }

    /// Starts it again after [`Monitor::kill`] or [`Monitor::stop`], and waits for its socket.
    ///
    /// # Errors
    /// When it does not come; the error holds what it wrote.
    pub fn restart(&mut self) -> Result<()> {
        self.process = launch(&self.host, &self.options, &self.program, &self.log)?;
        Ok(())
    }

    /// Speaks to its socket as root, outside any job.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, call: Call) -> Result<Answer> {
        ask(&self.host, call)
    }

    /// Its jobs.
    ///
    /// # Errors
    /// When it does not answer with a status.
    pub fn status(&self) -> Result<Status> {
        match self.ask(Call::Status {})? {
            Answer::Status(status) => Ok(status),
            other => bail!("the monitor answered `status` with {other:?}"),
        }
    }

    /// Waits until it answers and has its sensors, which it loads once, for all jobs of a machine.
    ///
    /// # Errors
    /// When it does not come so far.
    pub fn wait_until_ready(&self) -> Result<()> {
        self.status()?;
        wait_until("the sensors are loaded", || {
            threads_of(self.pid())
                .is_ok_and(|names| !names.iter().any(|name| name == "load-sensors"))
        })
        .with_context(|| format!("the monitor's log:\n{}", self.log()))
    }

    /// Waits until it has no job.
    ///
    /// # Errors
    /// When a job stays; the error holds the monitor's log.
    pub fn wait_until_idle(&self) -> Result<()> {
        wait_for("the monitor to have no job", || {
            self.status().is_ok_and(|status| status.jobs.is_empty()).then_some(())
        })
        .with_context(|| format!("the monitor's log:\n{}", self.log()))
    }

    /// A run of the monitor's program with this subcommand beside the daemon: `check --json`, `explain …`.
    pub fn subcommand(&self, arguments: &[&str]) -> HostCommand {
        command(&self.host, &self.options, &self.program).args(arguments)
    }
}

/// The names of a process's threads.
fn threads_of(pid: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile has no name.
        if let Ok(name) = fs::read_to_string(thread?.path().join("comm")) {
            names.push(name.trim_end().to_owned());
        }
    }
    Ok(names)
}

fn command(host: &RunnerHost, options: &MonitorOptions, program: &PathBuf) -> HostCommand {
    let command = match options.place {
        MonitorPlace::RunnerHost => host.command(program),
        MonitorPlace::Machine => {
            HostCommand::new(program).cgroup(&host.cgroup).env("PATH", super::PATH)
        }
    };
    let command = command.arg("--root").arg(host.root());
    options.environment.iter().fold(command, |command, (name, value)| command.env(name, value))
}

fn launch(
    host: &Arc<RunnerHost>,
    options: &MonitorOptions,
    program: &PathBuf,
    log: &Arc<Mutex<String>>,
) -> Result<Process> {
    // A killed monitor leaves its socket behind; a connection shows that the new one listens.
    let mut process = command(host, options, program)
        .arg("serve")
        .args(&options.arguments)
        .cgroup(&host.cgroup.child("portcullis.service")?)
        .spawn(Stdio::null(), Stdio::piped(), Stdio::piped())?;
    let child = process.child();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as _),
        child.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    let mut readers = Vec::new();
    for stream in streams.into_iter().flatten() {
        let log = Arc::clone(log);
        readers.push(std::thread::Builder::new().name("monitor-log".to_owned()).spawn(
            move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    lock(&log).extend([line.as_str(), "\n"]);
                }
            },
        )?);
    }
    let found = wait_for("the monitor to answer on its socket", || {
        if !process.is_running() {
            return Some(false);
        }
        ask(host, Call::Status {}).is_ok().then_some(true)
    });
    match found {
        Ok(true) => Ok(process),
        Ok(false) => {
            for reader in readers {
                // Its streams have ended with it.
                let _ = reader.join();
            }
            bail!("the monitor ended at its start:\n{}", lock(log));
        }
        Err(error) => Err(error.context(format!("the monitor's log:\n{}", lock(log)))),
    }
}

fn ask(host: &RunnerHost, call: Call) -> Result<Answer> {
    let socket = host.socket();
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("nobody listens on {}", socket.display()))?;
    stream.set_read_timeout(Some(patience()))?;
    let request = Request { version: PROTOCOL_VERSION, call };
    writeln!(stream, "{}", serde_json::to_string(&request)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("this is no answer: {line}"))
}
