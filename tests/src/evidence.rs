//! What the record must say about an act of a job: where it went, what became of it and why, and who did it.
//!
//! ```no_run
//! # fn check(events: &[portcullis_common::event::Event]) -> anyhow::Result<()> {
//! use portcullis_common::event::Verdict;
//! use portcullis_tests::evidence::{Actor, Call};
//!
//! Call::to("203.0.113.66".parse()?, "tcp", Some(4444))
//!     .verdict(Verdict::Blocked)
//!     .rule("no endpoint allows it")
//!     .by(Actor::new("python3").argument("tcp").step("attack"))
//!     .find(events)?;
//! # Ok(())
//! # }
//! ```

use crate::stand_in::WORKER;
use anyhow::{Result, bail, ensure};
use portcullis_common::event::{
    DetectionEvent, DetectionType, Direction, DnsEvent, Event, EventKind, NetworkEvent, Process,
    RecordedDetection, RuleCounter, Verdict,
};
use std::net::IpAddr;
use std::path::Path;

/// What stands in an event for the absence of a rule.
pub const NO_RULE: &str = "no endpoint allows it";

/// Events that a failed assertion shows.
const SHOWN: usize = 60;

/// Who must have done it.
#[derive(Clone, Debug, Default)]
pub struct Actor {
    program: String,
    arguments: Vec<String>,
    step: Option<String>,
    uid: Option<u32>,
}

impl Actor {
    /// A process whose executable's name begins so: `python3` is `/usr/bin/python3.11`.
    pub fn new(program: &str) -> Self {
        Self { program: program.to_owned(), ..Self::default() }
    }

    /// A word of its command line.
    #[must_use]
    pub fn argument(mut self, word: &str) -> Self {
        self.arguments.push(word.to_owned());
        self
    }

    /// The step that it belongs to.
    #[must_use]
    pub fn step(mut self, id: &str) -> Self {
        self.step = Some(id.to_owned());
        self
    }

    /// The user that it runs as.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Checks a recorded process: its pid, start time, executable and command line, its ancestors without a gap up to
    /// `Runner.Worker`, and its step.
    ///
    /// # Errors
    /// With everything that is missing or different.
    pub fn check(&self, process: Option<&Process>) -> Result<()> {
        let Some(process) = process else { bail!("no process is named") };
        let mut problems = Vec::new();
        if process.pid.is_none() {
            problems.push("no pid".to_owned());
        }
        if process.start_time.is_none() {
            problems.push("no start time".to_owned());
        }
        let name = process.exe.as_deref().map(Path::new).and_then(Path::file_name);
        if !name.is_some_and(|name| name.to_string_lossy().starts_with(&self.program)) {
            problems.push(format!("the executable is {:?}, not {}", process.exe, self.program));
        }
        for word in &self.arguments {
            if !process.argv.contains(word) {
                problems.push(format!("the command line {:?} has no `{word}`", process.argv));
            }
        }
        let oldest = process.ancestors.last().map(|ancestor| ancestor.exe.as_str());
        if !oldest.is_some_and(|exe| Path::new(exe).ends_with(WORKER)) {
            problems.push(format!("the ancestors end with {oldest:?}, not {WORKER}"));
        }
        if self.step.is_some() && process.step != self.step {
            problems.push(format!("the step is {:?}, not {:?}", process.step, self.step));
        }
        if self.uid.is_some() && process.uid != self.uid {
            problems.push(format!("the user is {:?}, not {:?}", process.uid, self.uid));
        }
        ensure!(problems.is_empty(), "{} in {process:?}", problems.join("; "));
        Ok(())
    }
}

/// The name that a record must give.
#[derive(Clone, Debug)]
enum Name {
    /// It does not matter.
    Any,
    /// This one, or none.
    Exactly(Option<String>),
}

/// A call that must be recorded.
#[derive(Clone, Debug)]
pub struct Call {
    address: IpAddr,
    protocol: String,
    port: Option<u16>,
    direction: Direction,
    verdict: Option<Verdict>,
    rule: Option<String>,
    policy: Option<String>,
    name: Name,
    actor: Option<Actor>,
}

impl Call {
    /// A call that went out to this destination.
    pub fn to(address: IpAddr, protocol: &str, port: Option<u16>) -> Self {
        Self {
            address,
            protocol: protocol.to_owned(),
            port,
            direction: Direction::Outbound,
            verdict: None,
            rule: None,
            policy: None,
            name: Name::Any,
            actor: None,
        }
    }

    /// A call from this peer to a port of the runner host.
    pub fn from(address: IpAddr, protocol: &str, port: Option<u16>) -> Self {
        Self { direction: Direction::Inbound, ..Self::to(address, protocol, port) }
    }

    /// What became of it.
    #[must_use]
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.verdict = Some(verdict);
        self
    }

    /// The rule responsible.
    #[must_use]
    pub fn rule(mut self, rule: &str) -> Self {
        self.rule = Some(rule.to_owned());
        self
    }

    /// The name of the policy responsible.
    #[must_use]
    pub fn policy(mut self, name: &str) -> Self {
        self.policy = Some(name.to_owned());
        self
    }

    /// The name that the record must give, or must not.
    #[must_use]
    pub fn name(mut self, name: Option<&str>) -> Self {
        self.name = Name::Exactly(name.map(str::to_owned));
        self
    }

    /// Who must have done it.
    #[must_use]
    pub fn by(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// The event that says all this.
    ///
    /// # Errors
    /// When there is none; the error says what is different in the events of the same destination.
    pub fn find<'a>(&self, events: &'a [Event]) -> Result<&'a NetworkEvent> {
        let calls: Vec<&NetworkEvent> = events
            .iter()
            .filter_map(|event| match &event.kind {
                EventKind::Network(call) => Some(call),
                _ => None,
            })
            .collect();
        let same = calls.iter().copied().filter(|call| {
            call.address == self.address
                && call.protocol == self.protocol
                && call.port == self.port
                && call.direction == self.direction
        });
        let mut problems = Vec::new();
        for call in same {
            match self.check(call) {
                Ok(()) => return Ok(call),
                Err(problem) => problems.push(problem.to_string()),
            }
        }
        if problems.is_empty() {
            let seen: Vec<String> = calls
                .iter()
                .take(SHOWN)
                .map(|call| {
                    format!("{:?} {} {} {:?}", call.verdict, call.protocol, call.address, call.port)
                })
                .collect();
            bail!("no event of {self:?}; the calls recorded: {seen:#?}");
        }
        bail!("no event fits {self:?}:\n{}", problems.join("\n"))
    }

    /// Checks what is recorded of the same destination.
    fn check(&self, call: &NetworkEvent) -> Result<()> {
        if let Some(verdict) = self.verdict {
            ensure!(call.verdict == verdict, "the verdict is {:?}", call.verdict);
        }
        if let Some(rule) = &self.rule {
            ensure!(call.rule == *rule, "the rule is `{}`", call.rule);
        }
        if let Some(policy) = &self.policy {
            ensure!(call.policy.name == *policy, "the policy is `{}`", call.policy.name);
            ensure!(!call.policy.version.is_empty(), "the policy has no version");
        }
        if let Name::Exactly(name) = &self.name {
            ensure!(call.name == *name, "the name is {:?}", call.name);
        }
        ensure!(call.packets > 0, "the event stands for no packet");
        if let Some(actor) = &self.actor {
            actor.check(call.process.as_ref())?;
        }
        Ok(())
    }
}

/// A question that must be recorded.
#[derive(Clone, Debug)]
pub struct Question {
    name: String,
    query_type: Option<String>,
    verdict: Option<Verdict>,
    rule: Option<String>,
    response_code: Option<String>,
    policy: Option<String>,
    actor: Option<Actor>,
}

impl Question {
    /// A question for a name, in small letters.
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            query_type: None,
            verdict: None,
            rule: None,
            response_code: None,
            policy: None,
            actor: None,
        }
    }

    /// The type: `A`.
    #[must_use]
    pub fn query_type(mut self, query_type: &str) -> Self {
        self.query_type = Some(query_type.to_owned());
        self
    }

    /// What became of it.
    #[must_use]
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.verdict = Some(verdict);
        self
    }

    /// What the reason must hold.
    #[must_use]
    pub fn rule(mut self, text: &str) -> Self {
        self.rule = Some(text.to_owned());
        self
    }

    /// The answer's code: `NXDOMAIN`.
    #[must_use]
    pub fn response_code(mut self, code: &str) -> Self {
        self.response_code = Some(code.to_owned());
        self
    }

    /// The name of the policy responsible.
    #[must_use]
    pub fn policy(mut self, name: &str) -> Self {
        self.policy = Some(name.to_owned());
        self
    }

    /// Who must have asked.
    #[must_use]
    pub fn by(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// The event that says all this.
    ///
    /// # Errors
    /// When there is none; the error says what is different in the events of the same name.
    pub fn find<'a>(&self, events: &'a [Event]) -> Result<&'a DnsEvent> {
        let questions: Vec<&DnsEvent> = dns_events(events).collect();
        let mut problems = Vec::new();
        for question in questions.iter().copied().filter(|question| question.name == self.name) {
            match self.check(question) {
                Ok(()) => return Ok(question),
                Err(problem) => problems.push(problem.to_string()),
            }
        }
        if problems.is_empty() {
            let seen: Vec<String> = questions
                .iter()
                .take(SHOWN)
                .map(|question| {
                    format!("{:?} {} {}", question.verdict, question.name, question.query_type)
                })
                .collect();
            bail!("no event of {self:?}; the questions recorded: {seen:#?}");
        }
        bail!("no event fits {self:?}:\n{}", problems.join("\n"))
    }

    fn check(&self, question: &DnsEvent) -> Result<()> {
        if let Some(query_type) = &self.query_type {
            ensure!(question.query_type == *query_type, "the type is {}", question.query_type);
        }
        if let Some(verdict) = self.verdict {
            ensure!(question.verdict == verdict, "the verdict is {:?}", question.verdict);
        }
        if let Some(rule) = &self.rule {
            ensure!(question.rule.contains(rule), "the reason is `{}`", question.rule);
        }
        if let Some(code) = &self.response_code {
            ensure!(question.response_code == *code, "the code is {}", question.response_code);
        }
        if let Some(policy) = &self.policy {
            ensure!(question.policy.name == *policy, "the policy is {}", question.policy.name);
        }
        if let Some(actor) = &self.actor {
            actor.check(question.process.as_ref())?;
        }
        Ok(())
    }
}

/// The questions in the record.
pub fn dns_events(events: &[Event]) -> impl Iterator<Item = &DnsEvent> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::Dns(question) => Some(question),
        _ => None,
    })
}

/// The detection of this type whose evidence holds `text`.
///
/// # Errors
/// When there is none; the error holds those that there are.
pub fn find_detection<'a>(
    events: &'a [Event],
    detection: RecordedDetection,
    text: &str,
) -> Result<&'a DetectionEvent> {
    if let Some(found) = find_detections(events, detection, text).first() {
        return Ok(found);
    }
    let all: Vec<&DetectionEvent> = detections(events).collect();
    bail!("no detection {detection:?} with `{text}`; there are {all:#?}")
}

/// The detections of this type whose evidence holds `text`.
pub fn find_detections<'a>(
    events: &'a [Event],
    detection: RecordedDetection,
    text: &str,
) -> Vec<&'a DetectionEvent> {
    let fits = |found: &&DetectionEvent| {
        found.detection == DetectionType::Recorded(detection) && found.evidence.contains(text)
    };
    detections(events).filter(fits).collect()
}

/// The detections in the record.
fn detections(events: &[Event]) -> impl Iterator<Item = &DetectionEvent> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::Detection(found) => Some(found),
        _ => None,
    })
}

/// The kernel's counters at the end of the job; none while it runs.
pub fn final_counters(events: &[Event]) -> Vec<RuleCounter> {
    events
        .iter()
        .rev()
        .find_map(|event| match &event.kind {
            EventKind::Job(job) if !job.counters.is_empty() => Some(job.counters.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

/// Checks that sequence numbers count from 1 without gaps.
///
/// # Errors
/// At the first that does not.
pub fn check_sequence(events: &[Event]) -> Result<()> {
    for (event, expected) in events.iter().zip(1..) {
        ensure!(event.seq == expected, "event {} stands in place {expected}", event.seq);
    }
    Ok(())
}
