//! The policies of tests with privileged containers, and what was found.
#![allow(dead_code, reason = "not every test that has this module uses all of it")]

use crate::life::{Gate, detections};
use anyhow::Result;
use portcullis_common::event::{DetectionEvent, DetectionType};
use portcullis_common::policy::LockdownDetection;
use portcullis_tests::wait_for;

/// Kills a job that starts a privileged container.
pub(crate) const LOCKDOWN: &str = "
name: strict
egress-policy: block
allowed-endpoints: ['ok.test:80']
lockdown-mode: {enabled: true, detections: [Privileged-Container]}
attach: [{repository: octo/hello}]
";

/// Records it only.
pub(crate) const AUDIT: &str = "
name: lenient
egress-policy: block
allowed-endpoints: ['ok.test:80']
attach: [{repository: octo/hello}]
";

pub(crate) fn is_privileged_container(event: &DetectionEvent) -> bool {
    event.detection == DetectionType::Lockdown(LockdownDetection::PrivilegedContainer)
}

pub(crate) fn found(gate: &Gate) -> Result<Vec<DetectionEvent>> {
    let events = gate.last_events()?;
    Ok(detections(&events).filter(|event| is_privileged_container(event)).cloned().collect())
}

/// Waits for evidence that holds `word`.
pub(crate) fn wait_for_evidence(gate: &Gate, word: &str) -> Result<DetectionEvent> {
    let look = || found(gate).ok()?.into_iter().find(|event| event.evidence.contains(word));
    wait_for(&format!("a detection with {word:?}"), look).map_err(|error| {
        let all: Vec<String> =
            found(gate).unwrap_or_default().into_iter().map(|event| event.evidence).collect();
        error.context(format!("{all:#?}\n{}", gate.monitor.log()))
    })
}
