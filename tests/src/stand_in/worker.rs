//! `Runner.Worker`: runs one job (Runner.Worker/JobRunner.cs, JobExtension.cs, StepsRunner.cs).

mod containers;
mod execution;
mod output;
mod uploads;

use super::environment::{self, Directories};
use super::listener::runner_root;
use super::message::{Command, Progress};
use super::orphans;
use super::steps::{self, Planned};
use crate::job::{
    Annotation, Condition, Job, JobOutcome, JobResult, StepKind, StepOutcome, StepResult,
};
use anyhow::{Context, Result, bail};
use containers::Containers;
use nix::sys::signal::SigSet;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uploads::Uploads;
use uuid::Uuid;

/// Exit codes of a Worker that has finished its job: 100 and the result (TaskResultUtil.cs).
const RESULT_CODES: std::ops::RangeInclusive<i32> = 100..=105;

/// Whether a Worker with this exit code has finished its job.
pub(super) fn is_result_code(code: i32) -> bool {
    RESULT_CODES.contains(&code)
}

/// What the Listener may say while the job runs.
#[derive(Debug, Default)]
struct Control {
    is_cancelled: AtomicBool,
    is_shutting_down: AtomicBool,
}

/// A job that runs.
struct Worker {
    job: Job,
    to_listener: File,
    control: Arc<Control>,
    directories: Directories,
    /// The `GITHUB_…` and `RUNNER_…` variables of every step, and the job's tracking id.
    context: BTreeMap<String, String>,
    /// The job's `env:` and what was written to `$GITHUB_ENV`.
    environment: BTreeMap<String, String>,
    /// What was written to `$GITHUB_PATH`, in order.
    prepended_path: Vec<String>,
    outputs: BTreeMap<String, BTreeMap<String, String>>,
    /// What was written to `$GITHUB_STATE`, by the step's place in the job.
    state: BTreeMap<usize, BTreeMap<String, String>>,
    masks: Vec<String>,
    annotations: Vec<Annotation>,
    results: Vec<StepResult>,
    status: JobOutcome,
    uploads: Uploads,
    /// The job's container and those of its services, while they run.
    containers: Option<Containers>,
}

pub(super) fn main() -> Result<ExitCode> {
    // The Listener's mask is for the Listener: what a job starts must be endable as anywhere.
    SigSet::empty().thread_set_mask()?;
    let mut arguments = std::env::args().skip(1);
    let (Some("spawnclient"), Some(input), Some(output)) =
        (arguments.next().as_deref(), arguments.next(), arguments.next())
    else {
        bail!("a Worker is started by a Listener: Runner.Worker spawnclient <pipe> <pipe>");
    };
    let commands = File::open(format!("/proc/self/fd/{input}"))?;
    let to_listener = OpenOptions::new().write(true).open(format!("/proc/self/fd/{output}"))?;
    for inherited in [input, output] {
        // Opened anew with close-on-exec, so that no step holds them.
        nix::unistd::close(inherited.parse::<i32>()?)?;
    }
    let mut commands = BufReader::new(commands);
    let mut line = String::new();
    commands.read_line(&mut line)?;
    let Command::Run { job } = serde_json::from_str(&line).context("no job came")? else {
        bail!("the first message was no job");
    };
    let control = Arc::new(Control::default());
    let heard = Arc::clone(&control);
    std::thread::Builder::new().name("commands".to_owned()).spawn(move || {
        for line in commands.lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Command::Cancel) => heard.is_cancelled.store(true, Ordering::SeqCst),
                Ok(Command::Shutdown) => heard.is_shutting_down.store(true, Ordering::SeqCst),
                Ok(Command::Run { .. }) | Err(_) => {}
            }
        }
    })?;
    let outcome = run(*job, to_listener, control)?;
    Ok(ExitCode::from(match outcome {
        JobOutcome::Success => 100,
        JobOutcome::Failure => 102,
        JobOutcome::Cancelled => 103,
    }))
}

fn run(job: Job, to_listener: File, control: Arc<Control>) -> Result<JobOutcome> {
    let root = runner_root()?;
    let name = root.file_name().context("the runner has no name")?.to_string_lossy().into_owned();
    let directories = Directories::prepare(&root, &job.context.repository)?;
    directories.write_event(&job.context)?;
    let existing = orphans::snapshot();
    let tracking_id = format!("github_{}", Uuid::now_v7());
    let mut context = environment::github(&job.context, &directories);
    context.extend(environment::runner(&name, &job.context, &directories));
    context.extend(environment::id_token(&job.context));
    context.insert(orphans::TRACKING_VARIABLE.to_owned(), tracking_id.clone());
    let masks = job.secrets.values().filter(|value| !value.is_empty()).cloned().collect();
    let mut worker = Worker {
        to_listener,
        control,
        directories,
        context,
        environment: BTreeMap::new(),
        prepended_path: Vec::new(),
        outputs: BTreeMap::new(),
        state: BTreeMap::new(),
        masks,
        annotations: Vec::new(),
        results: Vec::new(),
        status: JobOutcome::Success,
        uploads: Uploads::start(&name)?,
        containers: None,
        job,
    };
    for (name, value) in worker.job.env.clone() {
        let value = worker.expand(&value, &BTreeMap::new())?;
        worker.environment.insert(name, value);
    }

    // The hooks' paths come from the Worker's own environment (JobExtension.cs, InitializeJob).
    let hook = |stage: &str| {
        std::env::var_os(format!("ACTIONS_RUNNER_HOOK_JOB_{stage}")).map(PathBuf::from)
    };
    let mut before = steps::before(&worker.job.steps, hook("STARTED").as_deref());
    let has_hook = before.front().is_some_and(|first| first.kind == StepKind::StartedHook);
    let rest = before.split_off(usize::from(has_hook));
    worker.run_all(before)?;
    // *Initialize containers* comes after the hook and in front of everything else, under `success()`.
    worker.start_containers(&root)?;
    let ran = worker.run_all(rest)?;
    let mut after = steps::after(&worker.job.steps, &ran, hook("COMPLETED").as_deref());
    let has_hook = after.back().is_some_and(|last| last.kind == StepKind::CompletedHook);
    let last = after.split_off(after.len() - usize::from(has_hook));
    worker.run_all(after)?;
    worker.stop_containers();
    worker.run_all(last)?;

    let orphans = orphans::clean_up(&existing, &tracking_id);
    let result = JobResult {
        outcome: worker.status,
        steps: worker.results.clone(),
        annotations: worker.annotations.clone(),
        worker_exit_code: 0,
        orphans,
        failed_uploads: worker.uploads.finish(),
    };
    worker.tell(&Progress::Finished { result: Box::new(result) })?;
    Ok(worker.status)
}

impl Worker {
    /// Runs or skips each step; returns the steps of the job that ran, in the order in which they first did.
    fn run_all(&mut self, mut queue: VecDeque<Planned>) -> Result<Vec<usize>> {
        let mut ran = Vec::new();
        while let Some(planned) = queue.pop_front() {
            self.note_cancellation();
            let shutting_down = self.control.is_shutting_down.load(Ordering::SeqCst);
            let result = StepResult {
                name: planned.name.clone(),
                id: planned.id.clone(),
                kind: planned.kind,
                outcome: StepOutcome::Skipped,
                exit_code: None,
                log: String::new(),
                summary: String::new(),
                duration_ms: 0.0,
                process_ms: 0.0,
            };
            // "Skip evaluate condition on runner shutdown" (StepsRunner.cs): false, for hooks too.
            let result = if shutting_down || !steps::applies(planned.condition, self.status) {
                result
            } else {
                if let Some(index) = planned.step
                    && !ran.contains(&index)
                {
                    ran.push(index);
                }
                self.tell(&Progress::StepStarted { step: result.clone() })?;
                self.execute(&planned, result)?
            };
            self.note_cancellation();
            let forgives = planned.kind == StepKind::Main
                && planned.step.is_some_and(|index| self.job.steps[index].continue_on_error);
            if result.outcome == StepOutcome::Failure
                && !forgives
                && self.status == JobOutcome::Success
            {
                self.status = JobOutcome::Failure;
            }
            if result.outcome != StepOutcome::Skipped {
                self.uploads.send(&planned.id, &result);
            }
            self.tell(&Progress::StepFinished { step: result.clone() })?;
            self.results.push(result);
        }
        Ok(ran)
    }

    /// A cancelled job is `cancelled`, one whose runner shuts down has failed.
    fn note_cancellation(&mut self) {
        if self.control.is_shutting_down.load(Ordering::SeqCst) {
            self.status = JobOutcome::Failure;
        } else if self.control.is_cancelled.load(Ordering::SeqCst) {
            self.status = JobOutcome::Cancelled;
        }
    }

    /// Whether a running step with this condition is to be stopped: its condition is looked at again with the new status.
    fn must_stop(control: &Control, condition: Condition) -> bool {
        control.is_shutting_down.load(Ordering::SeqCst)
            || (control.is_cancelled.load(Ordering::SeqCst)
                && !steps::applies(condition, JobOutcome::Cancelled))
    }

    fn tell(&mut self, progress: &Progress) -> Result<()> {
        let line = serde_json::to_string(progress)?;
        writeln!(self.to_listener, "{line}").context("the Listener is gone")
    }
}
