//! From a question that may be asked to the answers of all who wait for it: ask upstream, judge, open, answer.

use super::super::answer::Findings;
use super::super::exchange::ExchangeError;
use super::super::judge::{Ask, Resolved};
use super::super::message::{ExtendedError, write_response};
use super::super::names::NameVerdict;
use super::super::observer::{DnsObservation, DnsOutcome, Reason, Transport};
use super::core::{Core, State, Waiter, limit, type_name};
use super::neighbours::Consent;
use portcullis_common::event::Verdict;
use portcullis_common::policy::EgressMode;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

/// Times the end of a chain of aliases is asked for, for upstreams that stop in its middle.
const MAXIMUM_FOLLOW_UPS: usize = 4;

/// Addresses whose names are known for reverse look-ups; as many as a hash table of 4 096 places takes.
const MAXIMUM_OPENED: usize = 3_584;

/// A question that is asked upstream.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) key: Box<[u8]>,
    pub(super) name: String,
    pub(super) query_type: u16,
    /// The question's length on the wire.
    pub(super) question_length: usize,
    pub(super) ask: Ask,
    pub(super) is_of_container: bool,
    /// What other jobs' policies say to a container's question.
    pub(super) consents: Vec<Consent>,
    /// Who asked first.
    pub(super) client: SocketAddr,
    pub(super) transport: Transport,
}

/// Takes the waiting clients out when the question is over, also when it ends before its time.
#[derive(Debug)]
struct UnderWay<'core> {
    core: &'core Core,
    /// `None` once they were taken: whoever waits under the key from then on waits for another question.
    key: Option<&'core [u8]>,
}

impl UnderWay<'_> {
    fn take(&mut self, state: &mut State) -> Vec<Waiter> {
        let waiters = self.key.take().and_then(|key| state.under_way.remove(key));
        let waiters = waiters.unwrap_or_default();
        state.waiting = state.waiting.saturating_sub(waiters.len());
        waiters
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.key.is_some() {
            let core = self.core;
            drop(self.take(&mut core.state()));
        }
    }
}

impl Core {
    /// Asks, judges, opens and answers.
    pub(super) async fn resolve(self: Arc<Self>, asked: Asked) {
        let mut under_way = UnderWay { core: &self, key: Some(&asked.key) };
        // The upstream's time is used to find out who asks.
        let (found, process) = tokio::join!(self.find(&asked), async {
            self.observer.asker(asked.client, asked.transport)
        });
        let (resolved, opened) = self.open(&asked, self.judge_found(&asked, found));
        let outcome = Arc::new(outcome(&asked, &resolved, opened));
        self.observer.answers(&outcome);
        let body = Arc::new(resolved.body);
        let now = Instant::now();
        let waiters = {
            let mut state = self.state();
            let remembered = (Arc::clone(&body), Arc::clone(&outcome));
            state.cache.insert(&asked.key, remembered.0, remembered.1, resolved.lifetime, now);
            for grant in &resolved.grants {
                let known = (grant.name.shared(), now + grant.lifetime);
                if asked.is_of_container {
                    remember(&mut state.of_containers, grant.address, known.clone(), now);
                }
                remember(&mut state.opened, grant.address, known, now);
            }
            under_way.take(&mut state)
        };
        let mut first = Some(process);
        let mut out = Vec::new();
        for waiter in waiters {
            // The first that waits is the one that asked.
            let process = match first.take() {
                Some(process) => process,
                None => self.observer.asker(waiter.client, waiter.transport),
            };
            let reply = waiter.reply.with_question(&waiter.question);
            write_response(&mut out, &reply, &body, 0, limit(&reply, waiter.transport));
            waiter.respond.send(&out, waiter.client);
            self.observer.observe(DnsObservation {
                client: waiter.client,
                transport: waiter.transport,
                process,
                cached: false,
                outcome: Arc::clone(&outcome),
            });
        }
    }

    /// Asks upstream, and for the end of a chain of aliases where the upstream stopped. A denied name is never asked for.
    async fn find(&self, asked: &Asked) -> Result<Findings, ExchangeError> {
        let mut findings = self.exchange.ask(&asked.name, asked.query_type).await?;
        for _ in 0..MAXIMUM_FOLLOW_UPS {
            let Some(end) = findings.end().filter(|_| findings.is_open_ended()) else { break };
            if matches!(self.judge.names.judge(end), NameVerdict::Denied(_)) {
                break;
            }
            let further = self.exchange.ask(end, asked.query_type).await?;
            if findings.follow(further).is_err() {
                // Judged as far as it goes: a chain without an end has no address.
                break;
            }
        }
        Ok(findings)
    }

    fn judge_found(&self, asked: &Asked, found: Result<Findings, ExchangeError>) -> Resolved {
        let findings = match found {
            Ok(findings) => findings,
            Err(error) => {
                let reason = Reason::Upstream(error.to_string().into());
                return self.judge.failed(ExtendedError::NETWORK_ERROR, reason, asked.ask.verdict);
            }
        };
        let question = (asked.name.as_str(), asked.query_type, asked.question_length);
        let (name, query_type, length) = question;
        let resolved = self.judge.answer(name, query_type, length, &asked.ask, &findings);
        self.agree(question, &asked.consents, &findings, resolved)
    }

    /// Opens what the answer grants, before it leaves. Returns what is to be answered, and whether it was opened.
    fn open(&self, asked: &Asked, resolved: Resolved) -> (Resolved, bool) {
        if resolved.grants.is_empty() {
            return (resolved, false);
        }
        let Err(error) = self.grants.grant(&resolved.grants) else { return (resolved, true) };
        let problem = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        tracing::warn!(
            name = asked.name,
            error = problem,
            "the addresses of a name were not opened"
        );
        let reason = Reason::Grant(problem.into());
        match self.judge.mode {
            EgressMode::Block => {
                (self.judge.failed(ExtendedError::OTHER, reason, Verdict::Blocked), false)
            }
            // The call goes through without a grant; only what is recorded about it is less.
            EgressMode::Audit => (Resolved { reason, ..resolved }, false),
        }
    }
}

/// Remembers the name of an address, as far as there is room.
fn remember(
    known: &mut HashMap<IpAddr, (Arc<str>, Instant)>,
    address: IpAddr,
    name: (Arc<str>, Instant),
    now: Instant,
) {
    if known.len() >= MAXIMUM_OPENED {
        known.retain(|_, (_, until)| now < *until);
    }
    if known.len() < MAXIMUM_OPENED {
        known.insert(address, name);
    }
}

fn outcome(asked: &Asked, resolved: &Resolved, opened: bool) -> DnsOutcome {
    let mut granted = Vec::new();
    if opened {
        for grant in &resolved.grants {
            if !granted.contains(&grant.address) {
                granted.push(grant.address);
            }
        }
    }
    let answered: Arc<[IpAddr]> = resolved.answered.as_slice().into();
    let granted = if *granted == *answered { Arc::clone(&answered) } else { granted.into() };
    let of_grant = resolved.grants.first().map(|grant| grant.name.shared());
    DnsOutcome {
        verdict: resolved.verdict,
        name: of_grant
            .filter(|name| **name == *asked.name)
            .unwrap_or_else(|| asked.name.as_str().into()),
        query_type: type_name(asked.query_type),
        granted,
        answered,
        cname_chain: resolved.cname_chain.clone(),
        reason: resolved.reason.clone(),
        response_code: resolved.body.code.name(),
    }
}
