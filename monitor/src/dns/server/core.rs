//! What all sockets of a resolver share: from a client's message to its answer.

use super::super::budget::{Exceeded, Usage};
use super::super::cache::Cache;
use super::super::config::{Budgets, CacheLimits};
use super::super::exchange::Exchange;
use super::super::judge::{Ask, Decision, Judge, Local};
use super::super::message::{
    Body, Parsed, Query, Question, ReplyTo, parse, write_refusal, write_response,
};
use super::super::observer::{
    BudgetKind, DnsDetection, DnsObservation, DnsObserver, DnsOutcome, Reason, Transport,
};
use super::anywhere::{self, ArrivedAt};
use super::neighbours::{Others, Place};
use super::resolve::Asked;
use super::udp::Listens;
use crate::egress::grant::GrantSink;
use hickory_proto::rr::RecordType;
use portcullis_common::event::Verdict;
use portcullis_common::policy::EgressMode;
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What all sockets of a resolver share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) judge: Judge,
    pub(super) exchange: Exchange,
    pub(super) grants: Arc<dyn GrantSink>,
    pub(super) observer: Arc<dyn DnsObserver>,
    waiting_clients: usize,
    state: Mutex<State>,
    /// Its place among the resolvers of other jobs, once the job's rules are in force.
    place: Mutex<Option<Place>>,
    /// Questions under way and TCP connections.
    tasks: Mutex<JoinSet<()>>,
}

/// What changes from query to query. Held for microseconds.
#[derive(Debug)]
pub(super) struct State {
    pub(super) cache: Cache,
    usage: Usage,
    /// Clients that wait, by question: equal questions are asked once.
    pub(super) under_way: HashMap<Box<[u8]>, Vec<Waiter>>,
    pub(super) waiting: usize,
    /// The names that opened addresses, and until when.
    pub(super) opened: HashMap<IpAddr, (Arc<str>, Instant)>,
    /// Those of them that were opened for containers.
    pub(super) of_containers: HashMap<IpAddr, (Arc<str>, Instant)>,
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum Respond {
    /// A datagram, from the address that the query arrived at when the socket has several.
    Udp(Arc<UdpSocket>, Option<ArrivedAt>),
    /// A place in a connection's queue, and what accepted the connection.
    Tcp(mpsc::OwnedPermit<Vec<u8>>, Listens),
}

impl Respond {
    /// Sends an answer. A client that can't take a datagram now asks again; nobody waits for it.
    pub(super) fn send(self, answer: &[u8], client: SocketAddr) {
        match self {
            Self::Udp(socket, None) => {
                let _ = socket.try_send_to(answer, client);
            }
            Self::Udp(socket, Some(arrived)) => {
                let _ = anywhere::send(&socket, answer, client, arrived);
            }
            Self::Tcp(place, _) => drop(place.send(answer.to_vec())),
        }
    }

    /// Whether it goes to a container or to another network namespace: their queries are led to sockets of their own.
    fn is_for_container(&self) -> bool {
        matches!(self, Self::Udp(_, Some(_)) | Self::Tcp(_, Listens::Anywhere))
    }
}

/// A client that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) client: SocketAddr,
    pub(super) transport: Transport,
    pub(super) reply: ReplyTo<'static>,
    pub(super) question: Box<[u8]>,
    pub(super) respond: Respond,
}

/// What a message came to.
#[derive(Debug)]
pub(super) enum Step {
    /// No answer; what to tell the observer.
    Silence(DnsObservation),
    /// The answer is in the buffer; afterwards, what to tell the observer.
    Reply(Respond, DnsObservation),
    /// The answer comes later by itself.
    Later,
}

/// What asking upstream came to.
#[derive(Debug)]
enum Asking {
    /// The client is among those who wait.
    Waits,
    /// The answer came in this moment.
    Known(Respond, Arc<Body>, Arc<DnsOutcome>),
    /// That may not be asked.
    Refused(Respond, Local),
}

impl Core {
    pub(super) fn new(
        judge: Judge,
        exchange: Exchange,
        grants: Arc<dyn GrantSink>,
        observer: Arc<dyn DnsObserver>,
        budgets: Budgets,
        cache: CacheLimits,
    ) -> Self {
        Self {
            judge,
            exchange,
            grants,
            observer,
            waiting_clients: budgets.waiting_clients,
            state: Mutex::new(State {
                cache: Cache::new(cache),
                usage: Usage::new(budgets, Instant::now()),
                under_way: HashMap::new(),
                waiting: 0,
                opened: HashMap::new(),
                of_containers: HashMap::new(),
            }),
            place: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its place among the resolvers of other jobs.
    pub(super) fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` until it ends or the resolver stops.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// The tasks, to be ended.
    pub(super) fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the observer, once the answer has left.
    pub(super) fn observe(&self, observation: DnsObservation) {
        self.observer.observe(observation);
    }

    /// Takes a client's message. The answer is written to `out`, or goes to what `respond` returns later.
    pub(super) fn handle(
        self: &Arc<Self>,
        message: &[u8],
        out: &mut Vec<u8>,
        client: SocketAddr,
        transport: Transport,
        respond: Respond,
    ) -> Step {
        let query = match parse(message) {
            Parsed::Query(query) => query,
            Parsed::Refused(refused) => {
                let code = refused.code.name();
                let observation = self.malformed(refused.question, code, client, transport);
                write_refusal(out, &refused);
                return Step::Reply(respond, observation);
            }
            Parsed::Drop => return Step::Silence(self.malformed(None, "NONE", client, transport)),
        };
        let reply = ReplyTo::new(&query);
        let limit = limit(&reply, transport);
        let asked_by_all = if respond.is_for_container() {
            self.place().as_ref().map(Place::others)
        } else {
            None
        };
        let question_key = query.question.cache_key();
        let key_of_containers = asked_by_all.as_ref().map(|all| all.key(question_key.as_bytes()));
        let key = key_of_containers.as_deref().unwrap_or(question_key.as_bytes());
        let now = Instant::now();
        let cached =
            |outcome| DnsObservation { client, transport, process: None, cached: true, outcome };
        let known = {
            let state = self.state();
            state.cache.get(key, now).map(|(entry, age)| {
                write_response(out, &reply, &entry.body, age, limit);
                Arc::clone(&entry.outcome)
            })
        };
        if let Some(outcome) = known {
            return Step::Reply(respond, cached(outcome));
        }
        let question = query.question;
        let (respond, decision) = match question.host_name() {
            None => (respond, self.judge.unusual_name()),
            Some(name) => {
                let length = question.wire().len();
                let name_of = |address| self.name_of(address, now);
                match self.judge.question(&name, question.query_type(), length, name_of) {
                    Decision::Answer(local) => (respond, local),
                    Decision::Ask(ask) => {
                        let permitted = Permitted { key, name, ask, others: asked_by_all };
                        match self.ask(&query, permitted, (client, transport), respond) {
                            Asking::Waits => return Step::Later,
                            Asking::Refused(respond, refusal) => (respond, refusal),
                            Asking::Known(respond, body, outcome) => {
                                write_response(out, &reply, &body, 0, limit);
                                return Step::Reply(respond, cached(outcome));
                            }
                        }
                    }
                }
            }
        };
        let Local { verdict, reason, body } = decision;
        let process = self.observer.asker(client, transport);
        write_response(out, &reply, &body, 0, limit);
        let outcome = Arc::new(DnsOutcome {
            verdict,
            name: question.escaped_name().into(),
            query_type: type_name(question.query_type()),
            granted: Arc::default(),
            answered: Arc::default(),
            cname_chain: Vec::new(),
            reason,
            response_code: body.code.name(),
        });
        let observation = DnsObservation { client, transport, process, cached: false, outcome };
        Step::Reply(respond, observation)
    }

    /// What is observed about a message that is no query.
    fn malformed(
        &self,
        question: Option<Question<'_>>,
        response_code: &'static str,
        client: SocketAddr,
        transport: Transport,
    ) -> DnsObservation {
        let outcome = Arc::new(DnsOutcome {
            verdict: Verdict::Blocked,
            name: question.map(|question| question.escaped_name().into()).unwrap_or_default(),
            query_type: question
                .map(|question| type_name(question.query_type()))
                .unwrap_or_default(),
            granted: Arc::default(),
            answered: Arc::default(),
            cname_chain: Vec::new(),
            reason: Reason::Malformed,
            response_code,
        });
        let process = self.observer.asker(client, transport);
        DnsObservation { client, transport, process, cached: false, outcome }
    }

    /// The name that opened `address`.
    fn name_of(&self, address: IpAddr, now: Instant) -> Option<Arc<str>> {
        let state = self.state();
        let (name, until) = state.opened.get(&address)?;
        (now < *until).then(|| Arc::clone(name))
    }

    /// Has upstream asked, or joins those that wait for the same answer.
    fn ask(
        self: &Arc<Self>,
        query: &Query<'_>,
        Permitted { key, name, ask, others }: Permitted<'_>,
        (client, transport): (SocketAddr, Transport),
        respond: Respond,
    ) -> Asking {
        let question = query.question;
        let is_of_container = others.is_some();
        let consents = others.map_or_else(
            || Some(Vec::new()),
            |others| others.allow(&name, question.query_type(), question.wire().len()),
        );
        let Some(consents) = consents else {
            return Asking::Refused(respond, self.judge.not_by_all());
        };
        let mut state = self.state();
        // The answer may have come since the cache was looked into. It is remembered and those who wait for it are taken
        // out under one lock, so that under this one it is either known, or on its way, or to be asked for.
        if let Some((entry, _)) = state.cache.get(key, Instant::now()) {
            return Asking::Known(respond, Arc::clone(&entry.body), Arc::clone(&entry.outcome));
        }
        if state.waiting >= self.waiting_clients {
            return Asking::Refused(respond, self.judge.refused(Reason::Busy));
        }
        let joins = state.under_way.contains_key(key);
        let charged =
            if joins { Charged::default() } else { self.charge(&mut state.usage, &name, &ask) };
        let asking = if let Some(kind) = charged.refused {
            Asking::Refused(respond, self.judge.refused(Reason::Budget(kind)))
        } else {
            let waiter = Waiter {
                client,
                transport,
                reply: ReplyTo::new(query).with_question(&[]),
                question: query.question.wire().into(),
                respond,
            };
            state.waiting += 1;
            state.under_way.entry(key.into()).or_default().push(waiter);
            Asking::Waits
        };
        drop(state);
        if let Some(exceeded) = charged.exceeded {
            self.observer.detect(DnsDetection {
                budget: exceeded.kind,
                below: exceeded.below.map(|below| format!("*.{below}")),
                name: query.question.escaped_name(),
                client,
                transport,
                process: self.observer.asker(client, transport),
            });
        }
        if matches!(asking, Asking::Waits) && !joins {
            let asked = Asked {
                key: key.into(),
                name,
                query_type: question.query_type(),
                question_length: question.wire().len(),
                ask,
                is_of_container,
                consents,
                client,
                transport,
            };
            self.spawn(Arc::clone(self).resolve(asked));
        }
        asking
    }

    /// Charges the budgets. In audit mode names beyond the budget go through all the same; the rate always holds.
    fn charge(&self, usage: &mut Usage, name: &str, ask: &Ask) -> Charged {
        let audits = self.judge.mode == EgressMode::Audit;
        let below = match &ask.wildcard {
            Some(wildcard) => Some(Arc::clone(wildcard)),
            None if ask.openings.is_empty() => Some(Arc::from(last_labels(name))),
            None => None,
        };
        let names = below.map_or(Ok(()), |below| usage.charge_name(name, &below));
        let mut charged = Charged::default();
        if let Err(exceeded) = names {
            charged.refused = (!audits).then_some(exceeded.kind);
            charged.exceeded = exceeded.first.then_some(exceeded);
        }
        if charged.refused.is_none()
            && let Err(exceeded) = usage.charge_rate(Instant::now())
        {
            charged.refused = Some(exceeded.kind);
            charged.exceeded = charged.exceeded.or_else(|| exceeded.first.then_some(exceeded));
        }
        charged
    }
}

/// A question that the policy lets pass.
struct Permitted<'query> {
    /// Under which its answer is remembered.
    key: &'query [u8],
    name: String,
    ask: Ask,
    /// Whose policies must let it pass, too, when a container asks.
    others: Option<Others>,
}

/// What charging the budgets came to.
#[derive(Debug, Default)]
struct Charged {
    /// The budget for which the query is refused.
    refused: Option<BudgetKind>,
    /// The budget to report.
    exceeded: Option<Exceeded>,
}

/// The last two labels of a name: what names off the list are counted below, lacking a wildcard.
fn last_labels(name: &str) -> &str {
    name.rmatch_indices('.').nth(1).and_then(|(at, _)| name.get(at + 1..)).unwrap_or(name)
}

/// The largest answer.
pub(super) fn limit(reply: &ReplyTo<'_>, transport: Transport) -> usize {
    match transport {
        Transport::Udp => reply.udp_limit(),
        Transport::Tcp => usize::from(u16::MAX),
    }
}

/// A record type's name: `A`, or `TYPE4711` (RFC 3597 §5).
pub(super) fn type_name(query_type: u16) -> Cow<'static, str> {
    match RecordType::from(query_type) {
        // Nearly all questions are of these.
        RecordType::A => "A".into(),
        RecordType::AAAA => "AAAA".into(),
        RecordType::Unknown(number) => format!("TYPE{number}").into(),
        known => known.to_string().into(),
    }
}
