//! What a batch of events comes to, before the database is asked: the columns of each event, and sums. Pure.

use super::detections::told_verdict;
use super::values::{verdict_code, word};
use super::{NewDetection, signed, unsigned};
use portcullis_common::event::{Event, EventKind};
use portcullis_common::report::endpoint;
use portcullis_common::store_api::ToldCall;
use std::collections::{BTreeMap, BTreeSet};

/// An event that is to be stored, with the text that it came as.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    /// The event.
    pub event: Event,
    /// The line.
    pub line: &'a str,
}

/// The number that stands for a kind of event.
const fn kind_code(kind: &EventKind) -> i16 {
    match kind {
        EventKind::Network(_) => NETWORK,
        EventKind::Dns(_) => DNS,
        EventKind::Process(_) => 3,
        EventKind::File(_) => 4,
        EventKind::Detection(_) => 5,
        EventKind::Posture(_) => 6,
        EventKind::Job(_) => 7,
    }
}

/// The kind of calls.
pub(super) const NETWORK: i16 = 1;
/// The kind of queries.
pub(super) const DNS: i16 = 2;

/// What is looked for in events, beside the text.
pub(super) struct Columns {
    pub(super) kind: i16,
    pub(super) verdict: Option<i16>,
    pub(super) endpoint: Option<String>,
    pub(super) process: Option<String>,
    pub(super) step: Option<String>,
}

pub(super) fn columns(event: &EventKind) -> Columns {
    let (verdict, endpoint, process) = match event {
        EventKind::Network(call) => {
            (Some(verdict_code(call.verdict)), Some(endpoint(call)), call.process.as_ref())
        }
        EventKind::Dns(query) => {
            (Some(verdict_code(query.verdict)), Some(query.name.clone()), query.process.as_ref())
        }
        EventKind::Process(exec) => (None, None, Some(&exec.process)),
        EventKind::File(file) => (None, None, file.process.as_ref()),
        EventKind::Detection(detection) => (None, None, detection.process.as_ref()),
        EventKind::Posture(_) | EventKind::Job(_) => (None, None, None),
    };
    Columns {
        kind: kind_code(event),
        verdict,
        endpoint,
        process: process.and_then(|process| process.exe.clone()),
        step: process.and_then(|process| process.step.clone()),
    }
}

/// What calls of a batch add up to.
#[derive(Debug)]
pub(super) struct Sum {
    pub(super) calls: i64,
    pub(super) first_us: i64,
    pub(super) last_us: i64,
    /// Where the name led to last; absent where the endpoint is the address itself.
    pub(super) address: Option<String>,
}

/// The sums by endpoint, verdict and process.
pub(super) type Sums = BTreeMap<(String, i16, String), Sum>;

pub(super) fn sums(events: &[NewEvent<'_>]) -> Sums {
    let mut sums = Sums::new();
    for NewEvent { event, .. } in events {
        let EventKind::Network(call) = &event.kind else { continue };
        let process = call.process.as_ref().and_then(|process| process.exe.clone());
        let key = (endpoint(call), verdict_code(call.verdict), process.unwrap_or_default());
        let time = event.time.as_microsecond();
        let address = call.name.as_ref().map(|_| call.address.to_string());
        let sum = sums.entry(key).or_insert(Sum {
            calls: 0,
            first_us: time,
            last_us: time,
            address: None,
        });
        sum.calls = sum.calls.saturating_add(signed(call.packets));
        sum.first_us = sum.first_us.min(time);
        sum.last_us = sum.last_us.max(time);
        sum.address = address.or_else(|| sum.address.take());
    }
    sums
}

/// The calls of a batch that were stopped, or would have been, to where the job had not been kept from before.
pub(super) fn new_calls(sums: &Sums, of_job: &BTreeSet<(String, i16)>) -> Vec<ToldCall> {
    sums.iter()
        .filter(|((endpoint, verdict, _), _)| !of_job.contains(&(endpoint.clone(), *verdict)))
        .filter_map(|((endpoint, verdict, process), sum)| {
            Some(ToldCall {
                endpoint: endpoint.clone(),
                verdict: told_verdict(*verdict)?,
                process: (!process.is_empty()).then(|| process.clone()),
                calls: unsigned(sum.calls),
            })
        })
        .collect()
}

/// The detections of a batch.
pub(super) fn detections(job_id: &str, events: &[NewEvent<'_>]) -> Vec<NewDetection> {
    events
        .iter()
        .filter_map(|NewEvent { event, .. }| {
            let EventKind::Detection(detection) = &event.kind else { return None };
            Some(NewDetection {
                id: format!("{job_id}-{}", event.seq),
                seq: Some(signed(event.seq)),
                kind: word(&detection.detection),
                time_us: event.time.as_microsecond(),
                evidence: detection.evidence.clone(),
                is_lockdown: detection.is_lockdown,
                process: detection.process.clone(),
                endpoint: None,
            })
        })
        .collect()
}
