//! A world with the gate up: a policy, the hooks, a monitor, a secret, and the attackers' programs in place.

use crate::evidence::{Call, Question};
use crate::job::{Job, Step};
use crate::patience::{patience, wait_for, wait_for_within};
use crate::world::{Builder, Monitor, MonitorOptions, RunningJob};
use crate::{Canary, World};
use anyhow::{Context, Result};
use portcullis_common::event::{Event, NetworkEvent};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The policy's name in [`policy`].
pub const POLICY: &str = "gate";

/// A policy named [`POLICY`] for the repository of every job that names none.
pub fn policy(mode: &str, allowed: &[&str]) -> String {
    let endpoints: String =
        allowed.iter().flat_map(|endpoint| ["  - \"", *endpoint, "\"\n"]).collect();
    let list = if allowed.is_empty() { " []\n".to_owned() } else { format!("\n{endpoints}") };
    format!(
        "name: {POLICY}\negress-policy: {mode}\nallowed-endpoints:{list}attach:\n  - repository: octo/hello\n"
    )
}

/// A world with the gate up, or without one.
#[derive(Debug)]
pub struct Gate {
    // Before the world: it ends first.
    monitor: Option<Monitor>,
    world: World,
    canary: Canary,
}

impl Gate {
    /// A world with one runner, this policy, the hooks and a monitor.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn up(policy: &str) -> Result<Self> {
        Self::build(World::builder(), policy, MonitorOptions::default())
    }

    /// The same with a world and a monitor of the caller's choice.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn build(world: Builder, policy: &str, options: MonitorOptions) -> Result<Self> {
        let mut gate = Self::without(world)?;
        gate.raise(policy, options)?;
        Ok(gate)
    }

    /// A world without a gate: what an attack does when nothing stops it.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn without(world: Builder) -> Result<Self> {
        let world = world.build()?;
        let release = world.directory().join("release");
        fs::create_dir(&release)?;
        let attacks = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs/attacks");
        for entry in fs::read_dir(&attacks).context("the attackers' programs are not there")? {
            let entry = entry?;
            fs::copy(entry.path(), world.directory().join(entry.file_name()))?;
        }
        Ok(Self { monitor: None, world, canary: Canary::generate()? })
    }

    /// Puts the gate up.
    ///
    /// # Errors
    /// When the programs are not built or the monitor does not start.
    pub fn raise(&mut self, policy: &str, options: MonitorOptions) -> Result<()> {
        self.world.write_policy("gate", policy)?;
        self.world.install_hooks()?;
        self.monitor = Some(self.world.monitor(options)?);
        Ok(())
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The monitor.
    ///
    /// # Panics
    /// When the gate is not up.
    pub fn monitor(&self) -> &Monitor {
        self.monitor.as_ref().expect("the gate is up")
    }

    /// What the monitor logged; nothing without a gate.
    pub fn log(&self) -> String {
        self.monitor.as_ref().map(Monitor::log).unwrap_or_default()
    }

    /// What must not get out.
    pub fn canary(&self) -> &Canary {
        &self.canary
    }

    /// A job whose steps know the secret as `$TOKEN`, and where the attackers' programs are as `$ATTACKS`.
    pub fn job(&self) -> Job {
        Job::default()
            .secret("TOKEN", self.canary.as_str())
            .env("ATTACKS", &self.world.directory().display().to_string())
            .env("RELEASE", &self.release_directory().display().to_string())
    }

    /// Starts the job.
    ///
    /// # Errors
    /// When it does not start.
    pub fn begin(&self, job: &Job) -> Result<RunningJob<'_>> {
        self.world.runner(0).begin(job)
    }

    /// Lets the attack that waits for this word end.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn release(&self, word: &str) -> Result<()> {
        fs::write(self.release_directory().join(word), "")?;
        Ok(())
    }

    /// The events of the latest job so far.
    ///
    /// # Errors
    /// When there is no job yet.
    pub fn events(&self) -> Result<Vec<Event>> {
        let ids = self.world.job_ids()?;
        self.world.events(ids.last().context("no job has been recorded")?)
    }

    /// Waits until the call is recorded as expected.
    ///
    /// # Errors
    /// When it is not; the error says what is different.
    pub fn wait_for_call(&self, call: &Call) -> Result<NetworkEvent> {
        self.wait_for_evidence(|events| call.find(events).cloned())
    }

    /// Waits until the question is recorded as expected.
    ///
    /// # Errors
    /// When it is not; the error says what is different.
    pub fn wait_for_question(&self, question: &Question) -> Result<()> {
        self.wait_for_evidence(|events| question.find(events).map(drop))
    }

    /// Waits until `look` finds its evidence in the events of the latest job.
    ///
    /// # Errors
    /// With its last error when it does not.
    pub fn wait_for_evidence<T>(&self, look: impl Fn(&[Event]) -> Result<T>) -> Result<T> {
        let attempt = || self.events().and_then(|events| look(&events));
        let found = wait_for_within(evidence_patience(), "the evidence", || attempt().ok());
        match found {
            Ok(found) => Ok(found),
            // The last look says what was there.
            Err(_) => attempt(),
        }
    }

    /// Waits until the monitor has no job, and returns the events of the last one.
    ///
    /// # Errors
    /// When a job stays.
    pub fn final_events(&self) -> Result<Vec<Event>> {
        self.monitor().wait_until_idle()?;
        self.events()
    }

    /// Fails when anything reached the attacker.
    ///
    /// # Errors
    /// With what arrived.
    pub fn assert_contained(&self) -> Result<()> {
        self.world.attacker().assert_untouched(&self.canary)
    }

    /// Waits until the secret reached the attacker, which shows that the attack works when nothing stops it.
    ///
    /// # Errors
    /// When it does not arrive.
    pub fn assert_leaked(&self) -> Result<()> {
        wait_for("the secret to reach the attacker", || {
            self.world.attacker().saw(&self.canary).unwrap_or(false).then_some(())
        })
    }

    fn release_directory(&self) -> PathBuf {
        self.world.directory().join("release")
    }
}

/// A third of the patience for the end of a job, so that a test says what is missing before the job is given up.
fn evidence_patience() -> Duration {
    patience() / 3
}

/// A step with an id.
pub fn step(id: &str, script: &str) -> Step {
    Step { id: Some(id.to_owned()), run: script.to_owned(), ..Step::default() }
}

/// A step with an id that runs as root.
pub fn root_step(id: &str, script: &str) -> Step {
    Step { root: true, ..step(id, script) }
}
