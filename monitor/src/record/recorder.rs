//! The recorder of a job: one place that writes its events, counts repeats, and makes its report.

use super::event_log::{EventLog, MAX_BYTES};
use super::repeats::{MAX_KEYS, Repeats};
use super::singles::{Singles, Waiting};
use super::summary::{ReportHeader, Summary};
use crate::egress::log_prefix::RuleKind;
use jiff::Timestamp;
use portcullis_common::event::{
    DetectionEvent, DetectionType, DnsEvent, EventKind, JobEvent, JobStage, NetworkEvent, Posture,
    PostureEvent, Process, Verdict,
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
    detections: Singles<DetectionType, DetectionEvent>,
    stages: Singles<JobStage, JobEvent>,
    postures: Singles<(), PostureEvent>,
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
            detections: Singles::default(),
            stages: Singles::default(),
            postures: Singles::default(),
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

    fn write_repeats(&mut self) {
        let mut late = Vec::new();
        self.network.collect(|event, packets| {
            late.push(EventKind::Network(NetworkEvent { packets, ..event }));
        });
        self.dns.collect(|event, count| late.push(EventKind::Dns(DnsEvent { count, ..event })));
        for kind in late {
            self.write(kind);
        }
    }
}
