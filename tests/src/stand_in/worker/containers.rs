//! Job containers and service containers (Runner.Worker/ContainerOperationProvider.cs, Container/DockerCommandManager.cs,
//! Handlers/StepHost.cs): a network of their own, `docker create`, `docker start`, and `docker exec` for each step.

use super::Worker;
use super::execution::arguments;
use crate::job::{Annotation, JobContainer, JobOutcome};
use crate::stand_in::process::Invocation;
use crate::stand_in::steps::{self, Shell};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use uuid::Uuid;

/// The containers of a job.
#[derive(Debug)]
pub(super) struct Containers {
    network: String,
    /// The label that the runner gives everything it makes: six digits that stand for its root directory.
    label: String,
    root: PathBuf,
    workspace: PathBuf,
    /// The container that steps run in.
    job: Option<String>,
    services: Vec<String>,
}

impl Worker {
    /// Starts what the job's `container:` and `services:` name. A failure fails the job, as in the real runner.
    pub(super) fn start_containers(&mut self, root: &Path) -> Result<()> {
        let is_needed = self.job.container.is_some() || !self.job.services.is_empty();
        if !is_needed || self.status != JobOutcome::Success {
            return Ok(());
        }
        let containers = self.containers.insert(Containers {
            network: format!("github_network_{}", Uuid::now_v7().simple()),
            // The real one is the start of a hash of the path; any six hexadecimal digits look like it.
            label: Uuid::now_v7().simple().to_string()[26..].to_owned(),
            root: root.to_owned(),
            workspace: self.directories.workspace.clone(),
            job: None,
            services: Vec::new(),
        });
        if let Err(error) = containers.start(self.job.container.as_ref(), &self.job.services) {
            let message = format!("{error:#}");
            self.status = JobOutcome::Failure;
            self.annotations
                .push(Annotation { level: "error".to_owned(), message: message.clone() });
            self.tell(&crate::stand_in::message::Progress::Line { text: message })?;
        }
        Ok(())
    }

    /// *Stop containers*.
    pub(super) fn stop_containers(&mut self) {
        if let Some(containers) = self.containers.take() {
            containers.stop();
        }
    }
}

impl Containers {
    fn start(
        &mut self,
        job: Option<&JobContainer>,
        services: &BTreeMap<String, JobContainer>,
    ) -> Result<()> {
        docker(&["network", "create", "--label", &self.label, &self.network])?;
        if let Some(container) = job {
            let work = self.root.join("_work").display().to_string();
            let mut words = self.create(container);
            let workspace = self.inside(&self.workspace.display().to_string());
            words.extend(["--workdir".to_owned(), workspace]);
            words.extend(["-e", "GITHUB_ACTIONS=true", "-e", "CI=true"].map(str::to_owned));
            for volume in [
                "/var/run/docker.sock:/var/run/docker.sock".to_owned(),
                format!("{work}:/__w"),
                format!("{}:/__e:ro", self.root.join("bin").display()),
                format!("{work}/_temp:/__w/_temp"),
                format!("{work}/_tool:/__t"),
            ] {
                words.extend(["-v".to_owned(), volume]);
            }
            words.extend(
                ["--entrypoint", "tail", &container.image, "-f", "/dev/null"].map(str::to_owned),
            );
            let id = docker(&words)?;
            docker(&["start", &id])?;
            self.job = Some(id);
        }
        for (name, container) in services {
            let mut words = self.create(container);
            words.extend(["--network-alias".to_owned(), name.clone(), container.image.clone()]);
            words.extend(container.command.iter().cloned());
            let id = docker(&words)?;
            docker(&["start", &id])?;
            self.services.push(id);
        }
        Ok(())
    }

    /// The words that both kinds of containers begin with.
    fn create(&self, container: &JobContainer) -> Vec<String> {
        let name = format!("{}_{}_{}", Uuid::now_v7().simple(), container.image, &self.label);
        let mut words = ["create", "--name", &name, "--label", &self.label, "--network"]
            .map(str::to_owned)
            .to_vec();
        words.push(self.network.clone());
        words.extend(container.options.split_whitespace().map(str::to_owned));
        for (name, value) in &container.env {
            words.extend(["-e".to_owned(), format!("{name}={value}")]);
        }
        for volume in &container.volumes {
            words.extend(["-v".to_owned(), volume.clone()]);
        }
        words
    }

    /// How a step runs: in the job's container, when there is one.
    pub(super) fn invocation(
        &self,
        shell: &Shell,
        script: &Path,
        environment: &BTreeMap<String, String>,
        directory: &Path,
        path: &str,
    ) -> Result<Option<Invocation>> {
        let Some(id) = &self.job else { return Ok(None) };
        let mut words = ["exec", "-i", "--workdir"].map(str::to_owned).to_vec();
        words.push(self.inside(&directory.display().to_string()));
        for name in environment.keys().filter(|name| *name != "PATH") {
            // Only the name: the value is in the environment of the docker command.
            words.extend(["-e".to_owned(), name.clone()]);
        }
        words.push(id.clone());
        // Images need not have bash; the real runner then uses sh, too.
        let command = if shell.command == "bash" { "sh" } else { &shell.command };
        words.push(command.to_owned());
        let script = PathBuf::from(self.inside(&script.display().to_string()));
        words.extend(if command == shell.command {
            arguments(shell, &script)
        } else {
            vec!["-e".to_owned(), script.display().to_string()]
        });
        let environment = environment
            .iter()
            .map(|(name, value)| (name.clone(), self.inside(value)))
            .filter(|(name, _)| name != "PATH")
            .collect();
        Ok(Some(Invocation {
            program: steps::which("docker", &[], path)?,
            arguments: words,
            environment,
            directory: directory.to_owned(),
        }))
    }

    /// A path of the host as it is inside of the job's container.
    fn inside(&self, text: &str) -> String {
        text.replace(&self.root.join("_work").display().to_string(), "/__w")
    }

    fn stop(&self) {
        for id in self.job.iter().chain(&self.services) {
            // It may be gone already.
            let _ = docker(&["rm", "--force", id]);
        }
        let _ = docker(&["network", "rm", &self.network]);
    }
}

/// Runs the docker command and returns the first line that it wrote.
fn docker(words: &[impl AsRef<str>]) -> Result<String> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(steps::which("docker", &[], &path)?)
        .args(&words)
        .stdin(Stdio::null())
        .output()
        .context("can't start docker")?;
    if !output.status.success() {
        bail!(
            "docker {} failed: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
