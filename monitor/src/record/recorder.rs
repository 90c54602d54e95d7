//! The recorder of a job: one place that writes its events, counts repeats, and makes its report.

use super::event_log::{EventLog, MAX_BYTES};
use super::interner::Interner;
use super::repeats::{MAX_KEYS, Noted, Repeats};
use super::singles::{Singles, Waiting};
use super::summary::{ReportHeader, Summary};
use crate::egress::log_prefix::RuleKind;
use jiff::Timestamp;
use portcullis_common::event::{
    DetectionEvent, DetectionType, DnsEvent, EventKind, FileEvent, JobEvent, JobStage,
    NetworkEvent, Posture, PostureEvent, Process, ProcessEvent, Verdict,
};
use portcullis_common::report::Report;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Writes the events of one job. Shared by the watchers, the resolver and the job's own life cycle.
#[derive(Debug)]
pub struct Recorder {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    log: EventLog,
    summary: Summary,
    network: Repeats<NetworkKey, NetworkEvent>,
    network_texts: Interner,
    dns: Repeats<DnsKey, DnsEvent>,
    detections: Singles<DetectionType, DetectionEvent>,
    stages: Singles<JobStage, JobEvent>,
    postures: Singles<(), PostureEvent>,
    processes: Repeats<ExecKey, Process>,
    dns_texts: Interner,
}

/// Calls that are equal in this are repeats of each other. Texts are numbers of an [`Interner`]: thousands of calls have the
/// same.
#[derive(Debug, Eq, Hash, PartialEq)]
struct NetworkKey {
    verdict: Verdict,
    protocol: u32,
    address: IpAddr,
    port: Option<u16>,
    process: Option<u32>,
    rule: u32,
}

impl NetworkKey {
    fn of(event: &NetworkEvent, texts: &mut Interner) -> Self {
        Self {
            verdict: event.verdict,
            protocol: texts.number(&event.protocol),
            address: event.address,
            port: event.port,
            process: process_number(event.process.as_ref(), texts),
            rule: texts.number(&event.rule),
        }
    }
}

#[derive(Debug, Eq, Hash, PartialEq)]
struct DnsKey {
    verdict: Verdict,
    name: Box<str>,
    query_type: u32,
    process: Option<u32>,
    container: Option<u32>,
    rule: u32,
}

impl DnsKey {
    fn of(event: &DnsEvent, texts: &mut Interner) -> Self {
        Self {
            verdict: event.verdict,
            name: event.name.as_str().into(),
            query_type: texts.number(&event.query_type),
            process: process_number(event.process.as_ref(), texts),
            container: event.container.as_ref().map(|container| texts.number(container)),
            rule: texts.number(&event.rule),
        }
    }
}

/// Executions that are equal in this are repeats of each other: a loop that starts the same program again and again.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct ExecKey {
    exe: Option<String>,
    argv: Vec<String>,
    uid: Option<u32>,
    step: Option<String>,
    parent: Option<String>,
}

impl ExecKey {
    fn of(process: &Process) -> Self {
        Self {
            exe: process.exe.clone(),
            argv: process.argv.clone(),
            uid: process.uid,
            step: process.step.clone(),
            parent: process.ancestors.first().map(|parent| parent.exe.clone()),
        }
    }
}

/// A process for good: a pid alone is used again.
fn process_number(process: Option<&Process>, texts: &mut Interner) -> Option<u32> {
    let Process { pid, start_time, exe, .. } = process?;
    Some(texts.number(&format!("{pid:?} {start_time:?} {exe:?}")))
}

impl Recorder {
    /// Opens the record of a job below `directory`, going on with what is there.
    ///
    /// # Errors
    /// When the file of events can't be opened or read.
    pub fn open(directory: &Path, job_id: &str) -> io::Result<Self> {
        let mut summary = Summary::default();
        let path = directory.join("events.ndjson");
        let log = EventLog::open(&path, job_id, MAX_BYTES, |event| summary.add(&event.kind))?;
        let state = State {
            log,
            summary,
            network: Repeats::new(MAX_KEYS),
            network_texts: Interner::default(),
            dns: Repeats::new(MAX_KEYS),
            dns_texts: Interner::default(),
            processes: Repeats::new(MAX_KEYS),
            detections: Singles::default(),
            stages: Singles::default(),
            postures: Singles::default(),
        };
        Ok(Self { state: Mutex::new(state) })
    }

    /// A call to a destination; repeats are counted.
    pub fn network(&self, event: NetworkEvent) {
        let state = &mut *self.lock();
        let mut noted = state.note_network(&event);
        if noted == Noted::Full {
            state.write_network_repeats(Repeats::empty);
            state.network_texts.clear();
            noted = state.note_network(&event);
        }
        if noted != Noted::Repeat {
            state.write(EventKind::Network(event));
        }
    }

    /// A query; repeats are counted.
    pub fn dns(&self, event: DnsEvent) {
        let state = &mut *self.lock();
        let mut noted = state.note_dns(&event);
        if noted == Noted::Full {
            state.write_dns_repeats(Repeats::empty);
            state.dns_texts.clear();
            noted = state.note_dns(&event);
        }
        if noted != Noted::Repeat {
            state.write(EventKind::Dns(event));
        }
    }

    /// A program was executed; repeats are counted.
    pub fn process(&self, process: Process) {
        let state = &mut *self.lock();
        let mut noted = state.note_process(&process);
        if noted == Noted::Full {
            state.write_process_repeats(Repeats::empty);
            noted = state.note_process(&process);
        }
        if noted != Noted::Repeat {
            state.write(EventKind::Process(ProcessEvent { process, count: 1 }));
        }
    }

    /// A source file of the job was overwritten; who tells it bounds how many there are.
    pub fn file(&self, event: FileEvent) {
        self.lock().write(EventKind::File(event));
    }

    /// A detection. Of each type the first ones are written, and then how many more there were; one that the job was killed
    /// for always is.
    pub fn detection(&self, event: DetectionEvent) {
        let state = &mut *self.lock();
        let kind = event.detection;
        let now = if event.is_lockdown { Some(event) } else { state.detections.note(kind, event) };
        if let Some(event) = now {
            state.write(EventKind::Detection(event));
        }
    }

    /// What is in force changed, or a gap was found; the same holds for many of these.
    pub fn posture(&self, reason: String, posture: Posture) {
        let state = &mut *self.lock();
        if let Some(event) = state.postures.note((), PostureEvent { reason, posture }) {
            state.write(EventKind::Posture(event));
        }
    }

    /// A stage in the job's life; the same holds for many of these.
    pub fn job(&self, event: JobEvent) {
        let state = &mut *self.lock();
        if event.stage == JobStage::Ended {
            state.write_singles();
            return state.write(EventKind::Job(event));
        }
        if let Some(event) = state.stages.note(event.stage, event) {
            state.write(EventKind::Job(event));
        }
    }

    /// Writes everything that waits: repeats, and how many events of a kind there were more.
    pub fn write_repeats(&self) {
        let state = &mut *self.lock();
        state.write_repeats();
        state.write_singles();
    }

    /// Whether repeats wait to be written.
    pub fn has_repeats(&self) -> bool {
        let state = self.lock();
        state.network.is_waiting()
            || state.dns.is_waiting()
            || state.processes.is_waiting()
            || state.detections.is_waiting()
            || state.stages.is_waiting()
            || state.postures.is_waiting()
    }

    /// The report of everything recorded so far.
    pub fn report(&self, header: &ReportHeader, posture: Posture) -> Report {
        let state = &mut *self.lock();
        state.write_repeats();
        state.summary.report(header, posture)
    }

    /// How many packets that rules of this kind logged are recorded; repeats that wait are written for it.
    pub fn packets(&self, kind: RuleKind) -> u64 {
        let state = &mut *self.lock();
        state.write_repeats();
        state.summary.packets(kind)
    }

    /// The posture of the last event that told one.
    pub fn last_posture(&self) -> Option<Posture> {
        self.lock().summary.posture().cloned()
    }

    /// Events written, calls stopped and detections so far.
    pub fn totals(&self) -> Totals {
        let state = self.lock();
        Totals {
            events: state.log.len(),
            lost_events: state.log.lost(),
            blocked: state.summary.count(Verdict::Blocked),
            detections: state.summary.detection_count(),
        }
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// When the disk says so.
    pub fn sync(&self) -> io::Result<()> {
        self.lock().log.sync()
    }

    /// A panic in another thread while it wrote leaves whole events: each is written by one call.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers of a job's record.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Events written.
    pub events: u64,
    /// Events that the log or the disk had no room for.
    pub lost_events: u64,
    /// Calls stopped.
    pub blocked: u64,
    /// Detections.
    pub detections: u64,
}

impl State {
    fn write(&mut self, kind: EventKind) {
        // Counted also when the log is full: a flood must not hide a blocked call from `fail-on-block`.
        self.summary.add(&kind);
        self.log.append(Timestamp::now(), kind);
    }

    /// A report does not wait for these: a job can ask for as many reports as it likes.
    fn write_singles(&mut self) {
        let told = |count: u64, what: &str| format!("{count} more like this; the last: {what}");
        let mut late: Vec<EventKind> = Vec::new();
        for Waiting { count, last } in self.detections.collect() {
            let evidence = told(count, &last.evidence);
            late.push(EventKind::Detection(DetectionEvent { evidence, ..last }));
        }
        for Waiting { count, last } in self.stages.collect() {
            let reason = told(count, &last.reason);
            late.push(EventKind::Job(JobEvent { reason, ..last }));
        }
        for Waiting { count, last } in self.postures.collect() {
            let reason = told(count, &last.reason);
            late.push(EventKind::Posture(PostureEvent { reason, ..last }));
        }
        for kind in late {
            self.write(kind);
        }
    }

    fn note_network(&mut self, event: &NetworkEvent) -> Noted {
        let key = NetworkKey::of(event, &mut self.network_texts);
        self.network.note(key, event.packets, || event.clone())
    }

    fn note_dns(&mut self, event: &DnsEvent) -> Noted {
        let key = DnsKey::of(event, &mut self.dns_texts);
        self.dns.note(key, event.count, || event.clone())
    }

    fn note_process(&mut self, process: &Process) -> Noted {
        self.processes.note(ExecKey::of(process), 1, || process.clone())
    }

    fn write_process_repeats(&mut self, take: TakeProcesses) {
        for (process, count) in take(&mut self.processes) {
            self.write(EventKind::Process(ProcessEvent { process, count }));
        }
    }

    fn write_network_repeats(&mut self, take: TakeNetwork) {
        for (event, packets) in take(&mut self.network) {
            self.write(EventKind::Network(NetworkEvent { packets, ..event }));
        }
    }

    fn write_dns_repeats(&mut self, take: TakeDns) {
        for (event, count) in take(&mut self.dns) {
            self.write(EventKind::Dns(DnsEvent { count, ..event }));
        }
    }

    fn write_repeats(&mut self) {
        self.write_network_repeats(Repeats::take);
        self.write_dns_repeats(Repeats::take);
        self.write_process_repeats(Repeats::take);
    }
}

type TakeNetwork = fn(&mut Repeats<NetworkKey, NetworkEvent>) -> Vec<(NetworkEvent, u64)>;
type TakeDns = fn(&mut Repeats<DnsKey, DnsEvent>) -> Vec<(DnsEvent, u64)>;
type TakeProcesses = fn(&mut Repeats<ExecKey, Process>) -> Vec<(Process, u64)>;
