//! Telling people and programs what happened: webhooks, Slack, object stores, OpenTelemetry.
//!
//! What is told is written to the outbox in the transaction that stores what happened ([`crate::database`]); which integration
//! is told what is a pure choice ([`selection`]), and so is every message ([`message`]). [`dispatch`] empties the outbox: it
//! leases rows, so that several servers share one outbox, and tries again by a [`schedule`]. Every request leaves by
//! [`client`], which connects only to addresses that the configuration allows.

mod archive;
mod client;
mod dispatch;
mod message;
mod object;
mod schedule;
mod selection;
mod send;
mod settings;
mod signature;

pub use archive::archive;
pub use client::Outgoing;
pub(crate) use dispatch::parts;
pub use dispatch::{Dispatcher, dispatch};
pub use selection::Candidate;
pub use send::Failure;
pub use settings::{Secrets, Settings, SettingsError, read_target, shown_target};

use jiff::Timestamp;
use portcullis_common::event::{PolicyReference, Process};
use portcullis_common::resolution::ScopeKind;
use portcullis_common::store_api::{Notification, NotificationKind, ToldCall};
use serde::{Deserialize, Serialize};

/// What a row of the outbox tells.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub enum Payload {
    /// Something that people should know.
    Notification(Box<Notification>),
    /// A batch of a job's raw events, by their numbers; they are read when they are told.
    Events {
        /// The job.
        job_id: String,
        /// The first event.
        first_seq: u64,
        /// The last event.
        last_seq: u64,
        /// When the last one happened.
        time: Timestamp,
    },
}

impl Payload {
    /// What it tells, as a word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Notification(notification) => notification.kind.name(),
            Self::Events { .. } => "events",
        }
    }
}

/// A notification that tells of nothing that happened, to try an integration with.
pub fn sample(kind: NotificationKind) -> Notification {
    let is_call = kind == NotificationKind::Calls;
    let call = ToldCall {
        endpoint: "collector.example.com:443".to_owned(),
        verdict: portcullis_common::event::Verdict::Blocked,
        process: Some("/usr/bin/curl".to_owned()),
        calls: 1,
    };
    Notification {
        id: "00000000000000000000000000000000-1".to_owned(),
        kind,
        time: Timestamp::now(),
        detection: (!is_call).then(|| "Reverse-Shell".to_owned()),
        evidence: (!is_call)
            .then(|| "this is a test: nothing happened, and the integration works".to_owned()),
        is_lockdown: !is_call,
        endpoint: None,
        process: Some(Process {
            pid: Some(4711),
            exe: Some("/usr/bin/bash".to_owned()),
            argv: vec!["bash".to_owned(), "-i".to_owned()],
            step: Some("__run_2".to_owned()),
            ..Process::default()
        }),
        calls: if is_call { vec![call] } else { Vec::new() },
        more_calls: 0,
        policy: PolicyReference {
            name: "example".to_owned(),
            version: "1".to_owned(),
            scope: ScopeKind::Repository,
        },
        cluster: "example".to_owned(),
        organization: "octo".to_owned(),
        repository: "octo/hello".to_owned(),
        workflow: "octo/hello/.github/workflows/ci.yml".to_owned(),
        run_id: 1,
        run_attempt: 1,
        job: "build".to_owned(),
        job_id: "00000000000000000000000000000000".to_owned(),
        link: String::new(),
    }
}
