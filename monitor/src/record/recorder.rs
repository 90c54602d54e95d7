//! The recorder of a job: one place that writes its events, counts repeats, and makes its report.

use super::event_log::{EventLog, MAX_BYTES};
use super::repeats::{MAX_KEYS, Repeats};
use super::summary::{ReportHeader, Summary};
use crate::egress::log_prefix::RuleKind;
use jiff::Timestamp;
use portcullis_common::event::{
    DetectionEvent, DnsEvent, EventKind, JobEvent, NetworkEvent, Posture, PostureEvent, Process,
    ProcessEvent, Verdict,
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
    dns: Repeats<DnsKey, DnsEvent>,
    processes: Repeats<ExecKey, Process>,
}

/// Calls that are equal in this are repeats of each other.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct NetworkKey {
    verdict: Verdict,
    protocol: String,
    address: IpAddr,
    port: Option<u16>,
    process: ProcessKey,
    rule: String,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct DnsKey {
    verdict: Verdict,
    name: String,
    query_type: String,
    process: ProcessKey,
    rule: String,
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

/// A process for good: a pid alone is used again.
type ProcessKey = (Option<u32>, Option<u64>, Option<String>);

fn process_key(process: Option<&Process>) -> ProcessKey {
    process.map_or((None, None, None), |process| {
        (process.pid, process.start_time, process.exe.clone())
    })
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
            dns: Repeats::new(MAX_KEYS),
            processes: Repeats::new(MAX_KEYS),
        };
        Ok(Self { state: Mutex::new(state) })
    }

    /// A call to a destination; repeats are counted.
    pub fn network(&self, event: NetworkEvent) {
        let key = NetworkKey {
            verdict: event.verdict,
            protocol: event.protocol.clone(),
            address: event.address,
            port: event.port,
            process: process_key(event.process.as_ref()),
            rule: event.rule.clone(),
        };
        let state = &mut *self.lock();
        let packets = event.packets;
        let mut late = Vec::new();
        let first =
            state.network.note(key, event, packets, |event, packets| late.push((event, packets)));
        for (event, packets) in late {
            state.write(EventKind::Network(NetworkEvent { packets, ..event }));
        }
        if let Some(event) = first {
            state.write(EventKind::Network(event));
        }
    }

    /// A query; repeats are counted.
    pub fn dns(&self, event: DnsEvent) {
        let key = DnsKey {
            verdict: event.verdict,
            name: event.name.clone(),
            query_type: event.query_type.clone(),
            process: process_key(event.process.as_ref()),
            rule: event.rule.clone(),
        };
        let state = &mut *self.lock();
        let count = event.count;
        let mut late = Vec::new();
        let first = state.dns.note(key, event, count, |event, count| late.push((event, count)));
        for (event, count) in late {
            state.write(EventKind::Dns(DnsEvent { count, ..event }));
        }
        if let Some(event) = first {
            state.write(EventKind::Dns(event));
        }
    }

    /// A program was executed; repeats are counted.
    pub fn process(&self, process: Process) {
        let key = ExecKey {
            exe: process.exe.clone(),
            argv: process.argv.clone(),
            uid: process.uid,
            step: process.step.clone(),
            parent: process.ancestors.first().map(|parent| parent.exe.clone()),
        };
        let state = &mut *self.lock();
        let mut late = Vec::new();
        let first =
            state.processes.note(key, process, 1, |process, count| late.push((process, count)));
        for (process, count) in late {
            state.write(EventKind::Process(ProcessEvent { process, count }));
        }
        if let Some(process) = first {
            state.write(EventKind::Process(ProcessEvent { process, count: 1 }));
        }
    }

    /// A detection.
    pub fn detection(&self, event: DetectionEvent) {
        self.lock().write(EventKind::Detection(event));
    }

    /// What is in force changed, or a gap was found.
    pub fn posture(&self, reason: String, posture: Posture) {
        self.lock().write(EventKind::Posture(PostureEvent { reason, posture }));
    }

    /// A stage in the job's life.
    pub fn job(&self, event: JobEvent) {
        self.lock().write(EventKind::Job(event));
    }

    /// Writes the repeats that wait.
    pub fn write_repeats(&self) {
        self.lock().write_repeats();
    }

    /// Whether repeats wait to be written.
    pub fn has_repeats(&self) -> bool {
        let state = self.lock();
        state.network.is_waiting() || state.dns.is_waiting() || state.processes.is_waiting()
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

    fn write_repeats(&mut self) {
        let mut late = Vec::new();
        self.network.collect(|event, packets| {
            late.push(EventKind::Network(NetworkEvent { packets, ..event }));
        });
        self.dns.collect(|event, count| late.push(EventKind::Dns(DnsEvent { count, ..event })));
        self.processes.collect(|process, count| {
            late.push(EventKind::Process(ProcessEvent { process, count }));
        });
        for kind in late {
            self.write(kind);
        }
    }
}
