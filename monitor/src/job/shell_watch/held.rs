//! Shells that the kernel's sensors have stopped because they have read something at the end of a connection: each is judged at
//! once, and goes on or is killed with its job. Nobody waits for anything else meanwhile.

use super::Watch;
use crate::caller::ProcessKey;
use crate::detect::reverse_shell::command_line::is_command;
use crate::detect::reverse_shell::{Certainty, Facts, Lead, is_half, leads, reader_of_its_own};
use crate::watch::kernel::JobStreams;
use crate::watch::shells::{is_forked_copy, is_program};
use crate::watch::sockets::SocketError;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a shell is stopped whose input comes from a peer while a relay at the end of its output has no connection yet
/// (`nc A 1 | sh | nc A 2`): a connection in a network takes less.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a shell is stopped that was given what can have been decrypted: who hands over a script and ends the input is no
/// relay, and does that in one go.
const UNTIL_END_OF_INPUT: Duration = Duration::from_millis(150);

/// How often it is looked again meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

/// When it is looked for parents that stopped with their child: they need a moment for it.
const PARENTS: Duration = Duration::from_millis(30);

/// The stopped shells of a job.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) streams: JobStreams,
    /// Those that are not judged yet, and since when.
    waiting: HashMap<ProcessKey, Instant>,
    /// Those that went on, whose parents are to be looked at.
    released: HashMap<ProcessKey, Instant>,
}

/// What is to be done with a stopped process.
enum Verdict {
    Shell(Box<Lead>),
    Harmless,
    Wait,
}

impl Held {
    pub(super) fn new(streams: JobStreams) -> Self {
        Self { streams, waiting: HashMap::new(), released: HashMap::new() }
    }

    fn release(&mut self, process: ProcessKey) {
        self.waiting.remove(&process);
        self.streams.release(process);
        self.released.insert(process, Instant::now());
    }

    fn release_all(&mut self) {
        for process in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.release(process);
        }
    }

    /// Parents that stopped because a child was stopped go on.
    fn wake_parents(&mut self, now: Instant) {
        let streams = &self.streams;
        self.released.retain(|process, since| {
            let is_due = now.duration_since(*since) >= PARENTS;
            if is_due {
                streams.wake_parents(*process);
            }
            !is_due
        });
    }
}

impl Watch {
    /// When stopped processes have to be looked at again.
    pub(super) fn held_again(&self, now: Instant) -> Option<Instant> {
        let held = self.held.as_ref()?;
        let waiting = (!held.waiting.is_empty()).then(|| now + AGAIN);
        let parents = held.released.values().min().map(|since| *since + PARENTS);
        waiting.into_iter().chain(parents).min()
    }

    /// Takes in what is stopped although its event did not come.
    pub(super) fn find_held(&mut self) {
        let pids = self.watched.processes.pids();
        let Some(held) = &mut self.held else { return };
        for process in held.streams.held_of(&pids) {
            held.waiting.entry(process).or_insert_with(Instant::now);
        }
    }

    /// Whether the bytes that the connection received were handed on to the shell.
    pub(super) fn is_fed(&self, lead: &Lead) -> bool {
        self.held.as_ref().is_some_and(|held| held.streams.is_fed(lead))
    }

    /// Judges what is stopped, and lets go what is no reverse shell.
    pub(super) fn judge_held(&mut self, stopped: Vec<ProcessKey>) {
        let now = Instant::now();
        let Some(held) = &mut self.held else { return };
        held.wake_parents(now);
        for process in stopped {
            held.waiting.entry(process).or_insert(now);
        }
        if held.waiting.is_empty() {
            return;
        }
        if let Err(error) = self.look_at_held() {
            self.failed(&error);
            // Better a command than a job that hangs.
            if let Some(held) = &mut self.held {
                held.release_all();
            }
        }
    }

    fn look_at_held(&mut self) -> Result<(), SocketError> {
        let connections = self.connections()?;
        let Some(connections) = connections else {
            if let Some(held) = &mut self.held {
                held.release_all();
            }
            return Ok(());
        };
        let mut facts = self.facts(&connections)?;
        if leads(&facts).iter().any(|lead| self.is_held(lead.shell)) {
            // What was read of several processes is not of one moment: it must be so twice.
            facts = self.facts(&connections)?;
        }
        let found = leads(&facts);
        let waiting: Vec<(ProcessKey, Instant)> = {
            let held = self.held.iter();
            held.flat_map(|held| held.waiting.iter().map(|(key, since)| (*key, *since))).collect()
        };
        for (process, since) in waiting {
            match self.verdict(process, since, &found, &facts) {
                Verdict::Shell(lead) => {
                    self.tell(&lead, &facts);
                    if self.watched.responder.is_locked_down() {
                        return Ok(());
                    }
                }
                Verdict::Harmless => {}
                Verdict::Wait => continue,
            }
            if let Some(held) = &mut self.held {
                held.release(process);
            }
        }
        Ok(())
    }

    fn is_fed_sealed(&self, lead: &Lead) -> bool {
        self.held.as_ref().is_some_and(|held| held.streams.is_fed_sealed(lead))
    }

    /// The lead of a shell that reads commands from its connection by itself and executes them with the connection as its
    /// output.
    fn of_its_own(&self, process: ProcessKey, facts: &Facts) -> Option<Lead> {
        let received = self.held.as_ref()?.streams.received(process)?;
        reader_of_its_own(facts, process, received.socket, || {
            is_command(&received.line, |name| is_program(process.pid, name))
        })
    }

    fn is_held(&self, process: ProcessKey) -> bool {
        self.held.as_ref().is_some_and(|held| held.waiting.contains_key(&process))
    }

    fn verdict(
        &self,
        process: ProcessKey,
        since: Instant,
        found: &[Lead],
        facts: &Facts,
    ) -> Verdict {
        let lead = found.iter().find(|lead| lead.shell == process).cloned();
        let lead = lead.or_else(|| self.of_its_own(process, facts));
        match lead {
            Some(lead) if self.told.contains(&(lead.shell, lead.socket)) => Verdict::Harmless,
            // It has read from there: not what is about to execute something else, whose streams these are.
            Some(lead) if lead.certainty == Certainty::Structure || self.is_fed(&lead) => {
                Verdict::Shell(Box::new(lead))
            }
            Some(lead) if self.is_fed_sealed(&lead) => {
                if since.elapsed() < UNTIL_END_OF_INPUT {
                    Verdict::Wait
                } else {
                    Verdict::Shell(Box::new(lead))
                }
            }
            None if since.elapsed() < PATIENCE
                && is_half(facts, process, |other| is_forked_copy(other.pid)) =>
            {
                Verdict::Wait
            }
            Some(_) | None => Verdict::Harmless,
        }
    }
}
