//! Starting programs in a world.

use crate::binaries;
use crate::cgroup::Cgroup;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

/// A program to be started in the namespaces of a host, with an environment of its own.
#[derive(Clone, Debug)]
pub struct HostCommand {
    program: OsString,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    network: Option<PathBuf>,
    mount: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    user: Option<u32>,
    groups: Vec<u32>,
    directory: Option<PathBuf>,
}

impl HostCommand {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            network: None,
            mount: None,
            cgroup: None,
            user: None,
            groups: Vec::new(),
            directory: None,
        }
    }

    pub(crate) fn network(mut self, path: PathBuf) -> Self {
        self.network = Some(path);
        self
    }

    pub(crate) fn mount(mut self, path: PathBuf) -> Self {
        self.mount = Some(path);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Runs it as this user; root otherwise.
    #[must_use]
    pub fn user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Gives the user these supplementary groups beside its own.
    #[must_use]
    pub fn groups(mut self, groups: &[u32]) -> Self {
        self.groups.extend(groups);
        self
    }

    /// Runs it in this cgroup; the world's own otherwise.
    #[must_use]
    pub fn cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.path().to_owned());
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn output(self) -> Result<Output> {
        let description = self.describe();
        self.build()?
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("can't start {description}"))
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    /// When it can't be started or fails; the error holds all it wrote.
    pub fn text(self) -> Result<String> {
        let description = self.describe();
        let output = self.output()?;
        anyhow::ensure!(
            output.status.success(),
            "{description} failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts it with these standard streams.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(
        self,
        input: impl Into<Stdio>,
        output: impl Into<Stdio>,
        error: impl Into<Stdio>,
    ) -> Result<Process> {
        let description = self.describe();
        let child = self
            .build()?
            .stdin(input)
            .stdout(output)
            .stderr(error)
            .spawn()
            .with_context(|| format!("can't start {description}"))?;
        Ok(Process { child })
    }

    fn describe(&self) -> String {
        let words = self.arguments.iter().map(|word| word.to_string_lossy());
        format!("`{} {}`", self.program.to_string_lossy(), words.collect::<Vec<_>>().join(" "))
    }

    fn build(self) -> Result<Command> {
        let mut command = Command::new(binaries::find("world-enter")?);
        command.env_clear().envs(&self.environment);
        let paths = [
            ("--network", &self.network),
            ("--mount", &self.mount),
            ("--cgroup", &self.cgroup),
            ("--directory", &self.directory),
        ];
        for (option, path) in paths {
            if let Some(path) = path {
                command.arg(option).arg(path);
            }
        }
        if let Some(user) = self.user {
            command.arg("--user").arg(user.to_string());
            for group in &self.groups {
                command.arg("--group").arg(group.to_string());
            }
        }
        command.arg("--").arg(&self.program).args(&self.arguments);
        Ok(command)
    }
}

/// A program that was started in a world; killed when the handle is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("can't send {signal} to process {pid}"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it is no longer a child of this process.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
