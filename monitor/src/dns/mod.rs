//! The job's resolver: parse, judge, ask upstream, grant, answer.
//!
//! The kernel redirects every DNS query of a job, UDP and TCP, whatever server it was addressed to, to the job's own
//! [`Resolver`]. A query is parsed strictly ([`message`]), judged against the policy ([`judge`], [`names`],
//! [`addresses`]) and, when it may be asked at all, built anew and sent upstream ([`exchange`]): no byte of the client
//! but the name it asks for, checked label by label, ever leaves. Answers are built anew too ([`answer`]), and the
//! addresses in them are open in the kernel before the answer leaves.
//!
//! Parsing, judging and building are pure; sockets live in [`exchange`] and [`server`].

pub mod answer;
pub mod budget;
pub mod cache;
pub mod config;
pub mod exchange;
pub mod judge;
pub mod message;
pub mod observer;
pub mod server;
pub mod sockets;
pub mod source_ports;
pub mod upstreams;

pub use portcullis_common::judging::{addresses, names};

pub use config::{Budgets, CacheLimits, Lifetimes, ResolverConfig, TcpLimits, Timeouts};
pub use names::{NamePolicy, NameVerdict, Opening};
pub use observer::{
    BudgetKind, DnsDetection, DnsObservation, DnsObserver, DnsOutcome, Reason, Transport,
    UpstreamChange,
};
pub use server::{Neighbours, Resolver};
pub use sockets::{ResolverError, SkippedListener, UpstreamSource};
pub use source_ports::SourcePorts;
