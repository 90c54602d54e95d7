//! The resolvers of all jobs that run in one network namespace.
//!
//! Whose a container is can't be told for its packets where several jobs run, so that the rules of all of them judge those, and
//! what passes is what all of them allow. So it is with its questions: the resolver that hears one asks the policies of
//! the others, and opens what the answer names for all of them before it leaves. A job that comes later takes over what
//! containers were answered, as far as its own policy allows it.

use super::super::answer::{Data, Findings};
use super::super::judge::{Ask, Decision, Resolved};
use super::super::message::{ExtendedError, record_type};
use super::super::observer::Reason;
use super::core::Core;
use crate::egress::grant::GrantError;
use portcullis_common::event::Verdict;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The first byte of the keys under which answers to containers are remembered: no label of a name is that long, so that no
/// other key begins with it.
const KEY_OF_CONTAINERS: u8 = 0xff;

/// The resolvers that run on a host, by the network namespaces of their jobs.
#[derive(Clone, Debug, Default)]
pub struct Neighbours(Arc<Mutex<Members>>);

#[derive(Debug, Default)]
struct Members {
    /// Grows whenever one comes or goes: what all allowed before says nothing about those who are there then.
    changes: u64,
    resolvers: Vec<(u64, Weak<Core>)>,
}

/// The place of one resolver among the others. It is given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    neighbours: Neighbours,
    namespace: u64,
    own: Weak<Core>,
}

/// Who else answers for the containers of a network namespace, at one time.
#[derive(Debug)]
pub(super) struct Others {
    changes: u64,
    pub(super) resolvers: Vec<Arc<Core>>,
}

impl Neighbours {
    /// Adds a resolver of a job in the network namespace with this inode number.
    pub(super) fn enter(&self, namespace: u64, core: &Arc<Core>) -> Place {
        let own = Arc::downgrade(core);
        let mut members = self.lock();
        members.changes += 1;
        members.resolvers.push((namespace, Weak::clone(&own)));
        Place { neighbours: self.clone(), namespace, own }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The other resolvers of the namespace.
    pub(super) fn others(&self) -> Others {
        let members = self.neighbours.lock();
        let resolvers = members
            .resolvers
            .iter()
            .filter(|(namespace, core)| *namespace == self.namespace && !core.ptr_eq(&self.own))
            .filter_map(|(_, core)| core.upgrade())
            .collect();
        Others { changes: members.changes, resolvers }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut members = self.neighbours.lock();
        members.changes += 1;
        members.resolvers.retain(|(_, core)| !core.ptr_eq(&self.own));
    }
}

impl Others {
    /// The key under which an answer to a container is remembered while nobody comes or goes.
    pub(super) fn key(&self, question: &[u8]) -> Box<[u8]> {
        [&[KEY_OF_CONTAINERS][..], &self.changes.to_be_bytes(), question].concat().into()
    }

    /// What each of the others says to a question that may be asked; `None` when one of them does not allow it.
    pub(super) fn allow(
        self,
        name: &str,
        query_type: u16,
        question_length: usize,
    ) -> Option<Vec<Consent>> {
        self.resolvers
            .into_iter()
            .filter_map(|core| {
                match core.judge.question(name, query_type, question_length, |_| None) {
                    Decision::Answer(local) if local.verdict == Verdict::Blocked => Some(None),
                    // It would answer by itself, and has nothing against it.
                    Decision::Answer(_) => None,
                    Decision::Ask(ask) => Some(Some(Consent { core, ask })),
                }
            })
            .collect()
    }
}

/// Another job's policy lets a question pass.
#[derive(Debug)]
pub(super) struct Consent {
    core: Arc<Core>,
    ask: Ask,
}

impl Consent {
    /// What is found is judged by the other job's policy.
    fn judge(
        &self,
        name: &str,
        query_type: u16,
        question_length: usize,
        findings: &Findings,
    ) -> Resolved {
        self.core.judge.answer(name, query_type, question_length, &self.ask, findings)
    }

    fn open(&self, resolved: &Resolved) -> Result<(), GrantError> {
        if resolved.grants.is_empty() { Ok(()) } else { self.core.grants.grant(&resolved.grants) }
    }
}

impl Core {
    /// Has those who judge a container's packets, too, judge what was found about its question, and opens it for them.
    pub(super) fn agree(
        &self,
        (name, query_type, question_length): (&str, u16, usize),
        consents: &[Consent],
        findings: &Findings,
        resolved: Resolved,
    ) -> Resolved {
        if resolved.verdict == Verdict::Blocked {
            return resolved;
        }
        let theirs: Vec<Resolved> = consents
            .iter()
            .map(|consent| consent.judge(name, query_type, question_length, findings))
            .collect();
        if theirs.iter().any(|theirs| theirs.verdict == Verdict::Blocked) {
            return self.judge.not_by_all().into();
        }
        for (consent, theirs) in consents.iter().zip(&theirs) {
            if let Err(error) = consent.open(theirs) {
                return self.not_opened(name, &error);
            }
        }
        resolved
    }

    fn not_opened(&self, name: &str, error: &dyn Display) -> Resolved {
        tracing::warn!(name, %error, "the addresses of a container's name were not opened for every job");
        let reason = Reason::Grant(error.to_string().into());
        self.judge.failed(ExtendedError::OTHER, reason, Verdict::Blocked)
    }

    /// Opens what containers were answered before this job came, as far as its policy allows the names.
    pub(super) fn take_over(&self, other: &Self) {
        let now = Instant::now();
        let known: Vec<(IpAddr, Arc<str>, Duration)> = other
            .state()
            .of_containers
            .iter()
            .filter(|(_, (_, until))| now < *until)
            .map(|(address, (name, until))| (*address, Arc::clone(name), *until - now))
            .collect();
        let mut grants = Vec::new();
        for (address, name, left) in known {
            let query_type = if address.is_ipv4() { record_type::A } else { record_type::AAAA };
            let Decision::Ask(ask) = self.judge.question(&name, query_type, 0, |_| None) else {
                continue;
            };
            // The grant is as long as what is left of the other's, which had the grace in it.
            let ttl = left.saturating_sub(self.judge.lifetimes.grant_grace).as_secs();
            let ttl = u32::try_from(ttl).unwrap_or(u32::MAX);
            let findings =
                Findings { records: vec![(Data::Address(address), ttl)], ..Findings::default() };
            grants.extend(self.judge.answer(&name, query_type, 0, &ask, &findings).grants);
        }
        if !grants.is_empty()
            && let Err(error) = self.grants.grant(&grants)
        {
            tracing::warn!(%error, "what containers were answered is not open for a new job");
        }
    }
}
