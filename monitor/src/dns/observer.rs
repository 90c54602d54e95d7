//! What the resolver tells others: each decision, each budget exceeded, each change of an upstream.

use portcullis_common::event::{Process, Verdict};
use portcullis_common::policy::Rule;
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// How a query came in, or went upstream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// Why a query was answered as it was. `Display` gives the words for an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reason {
    /// A rule allows the name.
    Allowed(Arc<Rule>),
    /// A rule denies the name, or a name that its alias chain leads to.
    Denied(Arc<Rule>),
    /// No endpoint allows the name.
    NotListed,
    /// The name is answered without asking anybody: `localhost`, single labels, `.local`, reverse names.
    Local,
    /// An allowed name with a `search` domain of `resolv.conf` appended, as stub resolvers ask it.
    SearchDomain,
    /// The name has a label with bytes that no host name has.
    UnusualName,
    /// The message is no query of the one form that is understood, a single question.
    Malformed,
    /// The query's type is not one that jobs may ask.
    QueryType,
    /// The answer pointed only, or also, at addresses of special use that the policy does not name.
    SpecialUse {
        /// The rule that allows the name.
        rule: Arc<Rule>,
        /// The addresses taken out of the answer, each with its use: `loopback`.
        withheld: Vec<(IpAddr, &'static str)>,
    },
    /// A container asked, whose job can't be told, and another job that runs here does not allow the name.
    NotAllowedByAll,
    /// A budget is used up.
    Budget(BudgetKind),
    /// More clients wait for upstream answers than [`Budgets::waiting_clients`](super::Budgets::waiting_clients).
    Busy,
    /// No upstream gave a usable answer.
    Upstream(Arc<str>),
    /// The kernel did not open the address.
    Grant(Arc<str>),
}

impl Reason {
    /// The rule responsible, when one is.
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        match self {
            Self::Allowed(rule) | Self::Denied(rule) | Self::SpecialUse { rule, .. } => Some(rule),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(rule) => write!(formatter, "{rule}"),
            Self::Denied(rule) => write!(formatter, "denied by {rule}"),
            Self::NotListed => formatter.write_str("no endpoint allows it"),
            Self::Local => formatter.write_str("answered locally"),
            Self::SearchDomain => {
                formatter.write_str("an allowed name with a search domain appended")
            }
            Self::UnusualName => formatter.write_str("not a host name"),
            Self::Malformed => formatter.write_str("not a well-formed query with one question"),
            Self::QueryType => formatter.write_str("queries of this type are not forwarded"),
            Self::SpecialUse { withheld, .. } => {
                for (index, (address, usage)) in withheld.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(formatter, "{separator}{usage} address {address} is not granted")?;
                }
                Ok(())
            }
            Self::NotAllowedByAll => formatter.write_str(
                "whose the container is can't be told, and another running job's policy does not allow it",
            ),
            Self::Budget(kind) => write!(formatter, "{kind}"),
            Self::Busy => formatter.write_str("too many queries wait for an answer"),
            Self::Upstream(problem) => write!(formatter, "no upstream answered: {problem}"),
            Self::Grant(problem) => write!(formatter, "the address could not be opened: {problem}"),
        }
    }
}

/// What was decided about a question. Shared by all queries that one answer serves, and remembered with it: names and
/// addresses are kept once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsOutcome {
    /// What became of the query.
    pub verdict: Verdict,
    /// The name asked for, lower case, escaped as RFC 4343 §2.1 says when it has unusual bytes; empty when the message could
    /// not be read so far.
    pub name: Arc<str>,
    /// The type: `A`, `AAAA`, `TXT`, `TYPE4711`; empty when the message could not be read so far.
    pub query_type: Cow<'static, str>,
    /// The addresses that were granted.
    pub granted: Arc<[IpAddr]>,
    /// The addresses in the answer; more than were granted when the policy audits.
    pub answered: Arc<[IpAddr]>,
    /// The names between the question and the addresses.
    pub cname_chain: Vec<String>,
    /// Why.
    pub reason: Reason,
    /// The answer's code: `NOERROR`, `NXDOMAIN`, `SERVFAIL`; `NONE` when the message got no answer.
    pub response_code: &'static str,
}

/// One query and what was decided.
#[derive(Clone, Debug)]
pub struct DnsObservation {
    /// Who asked, as the redirected packet says: with the transport it names one socket.
    pub client: SocketAddr,
    /// How the query came in.
    pub transport: Transport,
    /// What [`DnsObserver::asker`] found; always `None` when `cached`.
    pub process: Option<Arc<Process>>,
    /// Whether the answer came from the cache.
    pub cached: bool,
    /// The decision.
    pub outcome: Arc<DnsOutcome>,
}

/// Which budget was exceeded.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum BudgetKind {
    /// Too many distinct names below one wildcard.
    Names,
    /// Too many bytes of distinct names below one wildcard.
    Bytes,
    /// Too many names with long labels below one wildcard.
    LongLabels,
    /// Too many queries in a second.
    Rate,
}

impl fmt::Display for BudgetKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Names => "too many different names below one wildcard",
            Self::Bytes => "too much data in names below one wildcard",
            Self::LongLabels => "too many long labels below one wildcard",
            Self::Rate => "too many queries in a second",
        })
    }
}

/// A budget was exceeded: evidence for `Dns-Exfiltration`. Reported once for each wildcard and budget.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsDetection {
    /// Which budget.
    pub budget: BudgetKind,
    /// The wildcard it is counted for, `*.wild.test`; absent for the rate.
    pub below: Option<String>,
    /// The name that exceeded it, escaped.
    pub name: String,
    /// Who asked.
    pub client: SocketAddr,
    /// How the query came in.
    pub transport: Transport,
    /// What [`DnsObserver::asker`] found.
    pub process: Option<Arc<Process>>,
}

/// An upstream stopped answering, or answers again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamChange {
    /// The upstream.
    pub upstream: SocketAddr,
    /// Whether it answers now.
    pub reachable: bool,
    /// What happened, in words.
    pub reason: String,
}

/// Told of every decision.
///
/// All methods are called on the resolver's own threads and must return within microseconds: hand what they are given to a
/// bounded queue and count what does not fit. The resolver limits how often it calls them only by how fast it answers.
pub trait DnsObserver: fmt::Debug + Send + Sync {
    /// Finds out who asks, while the client still waits and its socket exists. Called before the answer leaves, for
    /// queries that are not answered from the cache.
    fn asker(&self, client: SocketAddr, transport: Transport) -> Option<Arc<Process>> {
        let _ = (client, transport);
        None
    }

    /// Addresses are about to be answered; called before any client has them, once for each answer that comes from a server. A
    /// call to one of them can follow at once.
    fn answers(&self, outcome: &DnsOutcome) {
        let _ = outcome;
    }

    /// A query was answered, or dropped because the answer could not be sent.
    fn observe(&self, observation: DnsObservation);

    /// A budget was exceeded for the first time.
    fn detect(&self, detection: DnsDetection);

    /// An upstream stopped answering, or answers again.
    fn upstream_changed(&self, change: UpstreamChange);
}
