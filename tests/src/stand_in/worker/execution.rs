//! Running one step or hook (Handlers/ScriptHandler.cs, JobHookProvider.cs).

use super::Worker;
use super::output::Log;
use crate::job::{StepKind, StepOutcome, StepResult};
use crate::stand_in::expression::Contexts;
use crate::stand_in::files::CommandFiles;
use crate::stand_in::process::{self, Ending, Invocation};
use crate::stand_in::steps::{self, Planned, Shell, Source};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

impl Worker {
    /// Runs a step; an error is one of the Worker's own, a failure of the step is in the result.
    pub(super) fn execute(
        &mut self,
        planned: &Planned,
        mut result: StepResult,
    ) -> Result<StepResult> {
        let start = Instant::now();
        let mut log = Log::default();
        match self.attempt(planned, &mut log, &mut result) {
            Ok(outcome) => result.outcome = outcome,
            Err(error) => {
                self.annotate(&mut log, "error", &format!("{error:#}"))?;
                result.outcome = StepOutcome::Failure;
            }
        }
        result.log = log.finish();
        result.duration_ms = start.elapsed().as_secs_f64() * 1000.0;
        Ok(result)
    }

    fn attempt(
        &mut self,
        planned: &Planned,
        log: &mut Log,
        result: &mut StepResult,
    ) -> Result<StepOutcome> {
        if let Source::Hook(path) = &planned.source {
            let stage = if planned.kind == StepKind::StartedHook { "started" } else { "completed" };
            self.show(
                log,
                &format!(
                    "A job {stage} hook has been configured by the self-hosted runner administrator"
                ),
            )?;
            if !path.is_file() {
                bail!("File doesn't exist");
            }
            self.directories.write_event(&self.job.context)?;
        }
        let files = CommandFiles::create(&self.directories.temp)?;
        let invocation = self.invocation(planned, &files)?;
        let start = Instant::now();
        let ending = self.supervise(planned, &invocation, log);
        result.process_ms = start.elapsed().as_secs_f64() * 1000.0;
        // Also after a failure, as in the real runner's `finally`.
        self.take_files(planned, &files, log, result)?;
        match ending? {
            Ended::Exited(0) => {
                result.exit_code = Some(0);
                Ok(StepOutcome::Success)
            }
            Ended::Exited(code) => {
                result.exit_code = Some(code);
                self.annotate(log, "error", &format!("Process completed with exit code {code}."))?;
                Ok(StepOutcome::Failure)
            }
            Ended::Cancelled => {
                self.annotate(log, "error", "The operation was canceled.")?;
                Ok(StepOutcome::Cancelled)
            }
            Ended::TimedOut(minutes) => {
                let message =
                    format!("The action '{}' has timed out after {minutes} minutes.", planned.name);
                self.annotate(log, "error", &message)?;
                Ok(StepOutcome::Failure)
            }
        }
    }

    /// What is started for a step.
    fn invocation(&self, planned: &Planned, files: &CommandFiles) -> Result<Invocation> {
        let mut environment = BTreeMap::new();
        let step = planned.step.map(|index| &self.job.steps[index]);
        if let Some(step) = step {
            // Hooks see neither the job's nor the step's `env:`, nor what was written to $GITHUB_ENV.
            environment.extend(self.environment.clone());
            for (name, value) in &step.env {
                environment.insert(name.clone(), self.expand(value, &environment)?);
            }
            for (name, value) in
                planned.step.and_then(|index| self.state.get(&index)).into_iter().flatten()
            {
                environment.insert(format!("STATE_{name}"), value.clone());
            }
        }
        let base_path = environment
            .get("PATH")
            .cloned()
            .or_else(|| std::env::var("PATH").ok())
            .unwrap_or_default();
        if !self.prepended_path.is_empty() {
            let prepended = self.prepended_path.iter().rev().map(String::as_str);
            let path: Vec<&str> = prepended.chain([base_path.as_str()]).collect();
            environment.insert("PATH".to_owned(), path.join(":"));
        }
        environment.extend(self.context.clone());
        environment.extend(files.variables());
        if step.is_some() {
            environment.insert("GITHUB_ACTION".to_owned(), planned.id.clone());
        }
        if let Some((repository, reference)) =
            step.and_then(|step| step.uses.as_deref()?.split_once('@'))
        {
            environment.insert("GITHUB_ACTION_REPOSITORY".to_owned(), repository.to_owned());
            environment.insert("GITHUB_ACTION_REF".to_owned(), reference.to_owned());
        }
        environment.retain(|name, _| !self.job.context.without.contains(name));

        let workspace = &self.directories.workspace;
        let (shell, script) = match &planned.source {
            Source::Hook(path) => (steps::shell_of_hook(path)?, path.clone()),
            Source::Script(text) => {
                let shell = match step {
                    // An action brings its own programs; its step's `shell:` is none of its business.
                    Some(step) if planned.kind == StepKind::Main && step.uses.is_none() => {
                        steps::shell_of_step(step.shell.as_deref())?
                    }
                    _ => steps::shell_of_step(None)?,
                };
                let script =
                    self.directories.temp.join(format!("{}{}", Uuid::now_v7(), shell.extension));
                let text = self.expand(text, &environment)?;
                std::fs::write(&script, text)
                    .with_context(|| format!("can't write {}", script.display()))?;
                (shell, script)
            }
        };
        let directory = step
            .and_then(|step| step.working_directory.as_ref())
            .map_or_else(|| workspace.clone(), |directory| workspace.join(directory));
        // The Worker's own PATH, which no step can change, with what steps have prepended in front of it.
        let own_path = std::env::var("PATH").unwrap_or_default();
        if let (Some(containers), Some(_)) = (&self.containers, step)
            && let Some(invocation) =
                containers.invocation(&shell, &script, &environment, &directory, &own_path)?
        {
            return Ok(invocation);
        }
        let program = steps::which(&shell.command, &self.prepended_path, &own_path)?;
        let arguments = arguments(&shell, &script);
        let is_root = step.is_some_and(|step| step.root) && planned.kind == StepKind::Main;
        Ok(if is_root {
            let sudo = steps::which("sudo", &[], &own_path)?;
            let own = ["-n", "-E", "--"].map(str::to_owned);
            let program = program.display().to_string();
            let arguments = own.into_iter().chain([program]).chain(arguments).collect();
            Invocation { program: sudo, arguments, environment, directory }
        } else {
            Invocation { program, arguments, environment, directory }
        })
    }

    fn supervise(
        &mut self,
        planned: &Planned,
        invocation: &Invocation,
        log: &mut Log,
    ) -> Result<Ended> {
        let control = Arc::clone(&self.control);
        let condition = planned.condition;
        // Hooks have no time limit (JobExtensionRunner.cs).
        let minutes = planned.step.and_then(|index| self.job.steps[index].timeout_minutes);
        let limit = minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
        let start = Instant::now();
        let mut timed_out = false;
        let mut failure = None;
        let ending = process::run(
            invocation,
            || {
                timed_out = limit.is_some_and(|limit| start.elapsed() >= limit);
                timed_out || Self::must_stop(&control, condition)
            },
            |line| {
                if let Err(error) = self.take_line(log, &line) {
                    failure = Some(error);
                }
            },
        )?;
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(match (ending, minutes) {
            (Ending::Exited(code), _) => Ended::Exited(code),
            (Ending::Stopped, Some(minutes)) if timed_out => Ended::TimedOut(minutes),
            (Ending::Stopped, _) => Ended::Cancelled,
        })
    }

    fn take_files(
        &mut self,
        planned: &Planned,
        files: &CommandFiles,
        log: &mut Log,
        result: &mut StepResult,
    ) -> Result<()> {
        let written = files.process();
        for error in written.errors {
            self.annotate(log, "error", &error)?;
        }
        self.environment.extend(written.environment);
        for directory in written.path {
            self.prepended_path.retain(|other| *other != directory);
            self.prepended_path.push(directory);
        }
        if !planned.id.is_empty() {
            self.outputs.entry(planned.id.clone()).or_default().extend(written.outputs);
        }
        if let Some(index) = planned.step {
            self.state.entry(index).or_default().extend(written.state);
        }
        result.summary = self.masked(&written.summary);
        Ok(())
    }

    /// Replaces expressions; `environment` is the `env` context.
    pub(super) fn expand(
        &self,
        text: &str,
        environment: &BTreeMap<String, String>,
    ) -> Result<String> {
        Contexts {
            secrets: &self.job.secrets,
            environment,
            github: &self.context,
            outputs: &self.outputs,
        }
        .expand(text)
    }
}

/// How a step's process ended.
enum Ended {
    Exited(i32),
    Cancelled,
    TimedOut(f64),
}

pub(super) fn arguments(shell: &Shell, script: &Path) -> Vec<String> {
    let script = script.display().to_string();
    shell.arguments.iter().map(|argument| argument.replace("{0}", &script)).collect()
}
