//! Services of the machine that resolve names for others, while only the job's own traffic is judged.
//!
//! What systemd-resolved or nscd ask for a job, they ask as themselves. In scope `host` that is judged like everything; in scope
//! `job` it is not, so these services are closed to the job's user, and the job resolves names by itself.

use super::state::JobState;
use crate::config::{DnsConfig, Paths};
use crate::protect::closed_sockets::{CloseError, ClosedSockets, Service, resolves_by_system_bus};
use portcullis_common::event::{Feature, FeatureState};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::EgressMode;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The name services of the machine, from one job's point of view.
#[derive(Debug)]
pub(super) struct NameServices {
    service: Service,
    with_system_bus: bool,
    records: PathBuf,
    root: PathBuf,
    job: String,
    worker: u32,
    uid: u32,
    /// Audit mode stops nothing.
    is_audit: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    /// What they ask is judged, or nothing is to be stopped.
    #[default]
    Left,
    /// They refuse the job.
    Closed(ClosedSockets),
    /// They could not be closed, and why.
    Open(String),
}

impl NameServices {
    /// Nothing is closed before [`Self::close`].
    pub(super) fn new(paths: &Paths, dns: &DnsConfig, state: &JobState) -> Self {
        let with_system_bus = dns.close_system_bus;
        Self {
            service: Service::NameService { with_system_bus },
            with_system_bus,
            records: paths.closed_sockets(),
            root: paths.root().to_owned(),
            job: state.id.clone(),
            worker: state.worker.pid,
            uid: state.uid,
            is_audit: state.resolution.policy.egress == EgressMode::Audit,
            state: Mutex::default(),
        }
    }

    /// Only the job's own traffic is judged from now on: closes them to the job's user. The posture says whether that worked.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        if self.is_audit || matches!(*state, State::Closed(_)) {
            return;
        }
        let Self { service, records, root, job, worker, uid, .. } = self;
        let closed = ClosedSockets::close(*service, records, root, job, *worker, *uid);
        *state = match closed {
            Ok(closed) => State::Closed(closed),
            Err(error) => State::Open(with_causes(&error)),
        };
    }

    /// Closes what has come since. How many were closed anew.
    ///
    /// # Errors
    /// See [`CloseError`].
    pub(super) fn renew(&self) -> Result<usize, CloseError> {
        match &mut *self.lock() {
            State::Closed(closed) => closed.renew(),
            State::Left | State::Open(_) => Ok(0),
        }
    }

    /// Where such services make sockets, while they are closed.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        match &*self.lock() {
            State::Closed(closed) => closed.directories(),
            State::Left | State::Open(_) => Vec::new(),
        }
    }

    /// Opens everything again.
    pub(super) fn open(&self) {
        if let State::Closed(closed) = std::mem::take(&mut *self.lock()) {
            closed.open();
        }
    }

    /// What the posture says of them.
    pub(super) fn feature(&self) -> Option<Feature> {
        let (state, reason) = match &*self.lock() {
            State::Left => return None,
            State::Closed(_) if !self.with_system_bus && resolves_by_system_bus(&self.root) => (
                FeatureState::Degraded,
                "systemd-resolved can be asked over the system bus, and what it asks is not judged; dns.close-system-bus of monitor.toml closes the bus to jobs".to_owned(),
            ),
            State::Closed(_) => (
                FeatureState::Active,
                "services that resolve names for others refuse the job, as was tried".to_owned(),
            ),
            State::Open(problem) => (
                FeatureState::Degraded,
                format!("services that resolve names for others, unjudged, are open to the job: {problem}"),
            ),
        };
        Some(Feature { name: "name-services".to_owned(), state, reason })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
