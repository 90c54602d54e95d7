//! From the events of a job to its report.

use crate::egress::log_prefix::RuleKind;
use portcullis_common::event::{
    DetectionEvent, Direction, DnsEvent, EventKind, NetworkEvent, PolicyReference, Posture,
    Process, Verdict,
};
use portcullis_common::policy::EgressMode;
use portcullis_common::report::{Destination, FRAME_RULE, Report, endpoint};
use portcullis_common::resolution::Identity;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// How many different rows are kept. More are counted as left out: a job that calls a million addresses must not take
/// the monitor's memory with it. So many fit a hash table of 4 096 places.
pub const MAX_ROWS: usize = 3_584;

/// How many detections are kept with their evidence.
pub const MAX_DETECTIONS: usize = 256;

/// What the rule of a denied call starts with.
pub const DENIED_PREFIX: &str = "denied";

/// What stays the same over the life of a job.
#[derive(Clone, Debug)]
pub struct ReportHeader {
    /// The job.
    pub job_id: String,
    /// The policy in force.
    pub policy: PolicyReference,
    /// The target it is attached to.
    pub target: String,
    /// How sure the store was of the job's identity.
    pub identity: Identity,
    /// Audit or block.
    pub mode: EgressMode,
    /// Whether a blocked call fails the job.
    pub fail_on_block: bool,
}

/// What a job's events add up to.
#[derive(Debug, Default)]
pub struct Summary {
    rows: HashMap<RowKey, Row>,
    /// What rows share: a job has thousands of rows of a few steps and programs.
    callers: HashSet<Arc<Caller>>,
    left_out: u64,
    left_out_blocked: bool,
    detections: Vec<DetectionEvent>,
    detection_count: u64,
    is_lockdown: bool,
    posture: Option<Posture>,
    packets: HashMap<RuleKind, u64>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct RowKey {
    endpoint: Box<str>,
    verdict: Verdict,
    caller: Arc<Caller>,
    /// Calls from outside are reported, but they are no calls of the job.
    is_inbound: bool,
}

/// Who called, and what decided.
#[derive(Debug, Eq, Hash, PartialEq)]
struct Caller {
    process: String,
    step: String,
    rule: String,
}

/// How often, by kind: one call of `getaddrinfo` asks for A and AAAA, and that is one attempt, not two.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    calls: u64,
    asked_for_ipv4: u64,
    asked_for_ipv6: u64,
}

impl Row {
    fn count(self) -> u64 {
        self.calls + self.asked_for_ipv4.max(self.asked_for_ipv6)
    }
}

impl Summary {
    /// Takes in one event.
    pub fn add(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Network(network) => self.add_network(network),
            EventKind::Dns(dns) => self.add_dns(dns),
            EventKind::Detection(detection) => self.add_detection(detection),
            EventKind::Posture(change) => self.posture = Some(change.posture.clone()),
            EventKind::Process(_) | EventKind::File(_) | EventKind::Job(_) => {}
        }
    }

    /// How many calls had this verdict.
    pub fn count(&self, verdict: Verdict) -> u64 {
        let of_the_job = |key: &RowKey| key.verdict == verdict && !key.is_inbound;
        self.rows.iter().filter(|(key, _)| of_the_job(key)).map(|(_, row)| row.count()).sum()
    }

    /// How many packets that rules of this kind logged are recorded.
    pub fn packets(&self, kind: RuleKind) -> u64 {
        self.packets.get(&kind).copied().unwrap_or_default()
    }

    /// How many detections there were.
    pub fn detection_count(&self) -> u64 {
        self.detection_count
    }

    /// The posture of the last event that told one.
    pub fn posture(&self) -> Option<&Posture> {
        self.posture.as_ref()
    }

    /// The report, with `posture` as it is measured now.
    pub fn report(&self, header: &ReportHeader, posture: Posture) -> Report {
        let mut destinations: Vec<Destination> = self
            .rows
            .iter()
            .map(|(key, row)| Destination {
                endpoint: key.endpoint.to_string(),
                verdict: key.verdict,
                process: key.caller.process.clone(),
                step: key.caller.step.clone(),
                rule: key.caller.rule.clone(),
                count: row.count(),
            })
            .collect();
        destinations.sort_by(|a, b| {
            (severity(a.verdict), &a.endpoint, &a.process, &a.step, &a.rule).cmp(&(
                severity(b.verdict),
                &b.endpoint,
                &b.process,
                &b.step,
                &b.rule,
            ))
        });
        let blocked = self.count(Verdict::Blocked);
        Report {
            job_id: header.job_id.clone(),
            policy: header.policy.clone(),
            target: header.target.clone(),
            identity: header.identity,
            mode: header.mode,
            posture,
            allowed: self.count(Verdict::Allowed),
            blocked,
            would_block: self.count(Verdict::WouldBlock),
            destinations,
            destinations_left_out: self.left_out,
            detections: self.detections.clone(),
            fail_job: self.is_lockdown
                || header.fail_on_block && (blocked > 0 || self.left_out_blocked),
        }
    }

    fn add_network(&mut self, event: &NetworkEvent) {
        *self.packets.entry(rule_kind(event)).or_default() += event.packets;
        let key = RowKey {
            endpoint: endpoint(event).into(),
            verdict: event.verdict,
            caller: self.caller(event.process.as_ref(), &event.rule),
            is_inbound: event.direction == Direction::Inbound,
        };
        if let Some(row) = self.row(key) {
            row.calls += event.packets;
        }
    }

    /// A name that was refused is a call that was stopped; one that was answered shows as the call that follows.
    fn add_dns(&mut self, event: &DnsEvent) {
        if event.verdict == Verdict::Allowed {
            return;
        }
        let key = RowKey {
            endpoint: event.name.as_str().into(),
            verdict: event.verdict,
            caller: self.caller(event.process.as_ref(), &event.rule),
            is_inbound: false,
        };
        if let Some(row) = self.row(key) {
            match event.query_type.as_str() {
                "A" => row.asked_for_ipv4 += event.count,
                "AAAA" => row.asked_for_ipv6 += event.count,
                _ => row.calls += event.count,
            }
        }
    }

    fn add_detection(&mut self, detection: &DetectionEvent) {
        self.detection_count += 1;
        self.is_lockdown |= detection.is_lockdown;
        if self.detections.len() < MAX_DETECTIONS {
            self.detections.push(detection.clone());
        }
    }

    fn row(&mut self, key: RowKey) -> Option<&mut Row> {
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
            self.left_out += 1;
            self.left_out_blocked |= key.verdict == Verdict::Blocked && !key.is_inbound;
            return None;
        }
        if !self.rows.contains_key(&key) {
            // Only now: what belongs to rows that are left out is not kept either.
            self.callers.insert(Arc::clone(&key.caller));
        }
        Some(self.rows.entry(key).or_default())
    }

    /// A caller as rows share it.
    fn caller(&self, process: Option<&Process>, rule: &str) -> Arc<Caller> {
        let (process, step) = who(process);
        let caller = Caller { process, step, rule: rule.to_owned() };
        self.callers.get(&caller).map_or_else(|| Arc::new(caller), Arc::clone)
    }
}

/// The kind of rule that logged the packet of an event, so that events add up to the kernel's counters also when they are
/// read back after a restart.
fn rule_kind(event: &NetworkEvent) -> RuleKind {
    match (event.verdict, event.direction) {
        (Verdict::Allowed, _) => RuleKind::Allowed,
        (Verdict::Blocked, _) if event.rule == FRAME_RULE => RuleKind::Frame,
        (Verdict::WouldBlock, _) if event.rule == FRAME_RULE => RuleKind::WouldBlockFrame,
        (Verdict::Blocked, Direction::Inbound) => RuleKind::Inbound,
        (Verdict::Blocked, _) if event.rule.starts_with(DENIED_PREFIX) => RuleKind::Denied,
        (Verdict::Blocked, _) => RuleKind::Blocked,
        (Verdict::WouldBlock, Direction::Inbound) => RuleKind::WouldBlockInbound,
        (Verdict::WouldBlock, _) => RuleKind::WouldBlock,
    }
}

/// What was stopped stands first: it is what a reader came for.
fn severity(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Blocked => 0,
        Verdict::WouldBlock => 1,
        Verdict::Allowed => 2,
    }
}

fn who(process: Option<&Process>) -> (String, String) {
    let unknown = || "-".to_owned();
    let Some(process) = process else { return (unknown(), unknown()) };
    let name = process
        .exe
        .as_deref()
        .and_then(|exe| Path::new(exe).file_name().map(|name| name.to_string_lossy().into_owned()));
    let name = name.or_else(|| process.uid.map(|uid| format!("uid {uid}")));
    (name.unwrap_or_else(unknown), process.step.clone().unwrap_or_else(unknown))
}

#[cfg(test)]
mod tests;
