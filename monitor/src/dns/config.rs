//! What a resolver is started with. Every bound and every time of the resolver has its place and its reason here.

use super::source_ports::SourcePorts;
use portcullis_common::policy::EgressMode;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What a job's resolver is started with.
#[derive(Debug)]
pub struct ResolverConfig {
    /// The Worker's network namespace, an open `/proc/PID/ns/net`: listeners and upstream sockets are made there.
    /// `None` means the namespace of the calling thread.
    pub network_namespace: Option<OwnedFd>,
    /// The addresses to listen on. An address that the namespace does not have (IPv6 switched off) is skipped and
    /// reported by [`Resolver::skipped_listeners`](super::Resolver::skipped_listeners).
    pub listen: Vec<IpAddr>,
    /// Whether to listen on every address, too, on a port of its own: for queries that rules redirect from containers and
    /// other network namespaces. Who can reach it is for the rules to say.
    pub listen_anywhere: bool,
    /// The port, the same for UDP and TCP on every address; 0 lets the kernel choose one that is free for all of them.
    pub port: u16,
    /// The servers to ask, best first; at most [`ResolverConfig::MAX_UPSTREAMS`] are used. None at all is allowed:
    /// every name that would be asked then gets SERVFAIL.
    pub upstreams: Vec<SocketAddr>,
    /// The `search` domains of the Worker's `resolv.conf`. An allowed name with one of them appended is not a blocked
    /// call but what every stub resolver does: it gets NXDOMAIN and is recorded as such.
    pub search_domains: Vec<String>,
    /// Whether names off the list are blocked or only recorded.
    pub mode: EgressMode,
    /// The policy's name, for the Extended DNS Error of blocked names.
    pub policy_name: String,
    /// How long names keep addresses open and answers may live.
    pub lifetimes: Lifetimes,
    /// Against data in names.
    pub budgets: Budgets,
    /// How much is remembered.
    pub cache: CacheLimits,
    /// How long upstreams are waited for.
    pub timeouts: Timeouts,
    /// What TCP clients may use.
    pub tcp: TcpLimits,
    /// Where the ports that upstreams are asked from are noted while the resolver lives.
    pub source_ports: SourcePorts,
}

impl ResolverConfig {
    /// Upstreams used at most: what `MAXNS` of resolv.conf(5) allows.
    pub const MAX_UPSTREAMS: usize = 3;

    /// A resolver on `127.0.0.1` and `::1` in the current namespace, with the default limits.
    pub fn new(
        mode: EgressMode,
        policy_name: impl Into<String>,
        upstreams: Vec<SocketAddr>,
    ) -> Self {
        Self {
            network_namespace: None,
            listen: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            listen_anywhere: false,
            port: 0,
            upstreams,
            search_domains: Vec::new(),
            mode,
            policy_name: policy_name.into(),
            lifetimes: Lifetimes::default(),
            budgets: Budgets::default(),
            cache: CacheLimits::default(),
            timeouts: Timeouts::default(),
            tcp: TcpLimits::default(),
            source_ports: SourcePorts::default(),
        }
    }
}

/// How long names keep addresses open and answers may live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetimes {
    /// A grant lives at least this long before the grace period starts. 60 s: programs look a name up and connect
    /// seconds later whatever the TTL says, and TTLs of 0 to 30 s are common in front of load balancers.
    pub grant_floor: Duration,
    /// Added to every grant. 300 s: connection pools and language runtimes (JVM: 30 s, some forever) keep addresses
    /// longer than their TTL; use refreshes the grant in the kernel.
    pub grant_grace: Duration,
    /// TTLs of answers are cut to this. 3600 s: an answer must not outlive what it opened by more than the grace.
    pub maximum_ttl: Duration,
    /// Negative answers are kept no longer than this. RFC 2308 §5 recommends one to three hours as the most; a build
    /// that waits for a new record to appear is better off with 60 s.
    pub maximum_negative_ttl: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            grant_floor: Duration::from_mins(1),
            grant_grace: Duration::from_mins(5),
            maximum_ttl: Duration::from_hours(1),
            maximum_negative_ttl: Duration::from_mins(1),
        }
    }
}

/// Budgets against data in names (a wildcard lets a job send what it likes to the servers of the zone, so it is bounded).
/// Names that the policy lists exactly are never limited but by rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Budgets {
    /// Distinct names asked upstream below one wildcard in the life of a job. 512: the largest legitimate users, CDN
    /// shards and per-bucket hosts, need dozens.
    pub names_per_wildcard: usize,
    /// Bytes of distinct names below one wildcard in the life of a job, the wildcard's own labels not counted.
    /// 8 KiB: 512 names of 16 bytes.
    pub bytes_per_wildcard: usize,
    /// A label longer than this is a long one. 40: cloud host names carry hashes of 32 hexadecimal digits and AWS's
    /// repository buckets have 36 characters.
    pub long_label: usize,
    /// Distinct names with a long label below one wildcard in the life of a job. 8: object storage allows bucket names
    /// of 63 characters; a job uses few of them.
    pub long_names_per_wildcard: usize,
    /// Queries sent upstream for a job in a second, sustained. 500: a cold `npm install` asks some dozens.
    pub upstream_queries_per_second: u32,
    /// Queries that may be sent upstream at once before the sustained rate applies.
    pub upstream_query_burst: u32,
    /// Clients that wait for upstream answers at the same time. 1024, about 300 KiB.
    pub waiting_clients: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            names_per_wildcard: 512,
            bytes_per_wildcard: 8 * 1024,
            long_label: 40,
            long_names_per_wildcard: 8,
            upstream_queries_per_second: 500,
            upstream_query_burst: 2000,
            waiting_clients: 1024,
        }
    }
}

/// Answers that are remembered: more names than a job asks for within their lifetimes, and as many as a hash table of 4 096
/// places takes.
const MAXIMUM_ANSWERS: usize = 3_584;

/// How much is remembered of upstream answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CacheLimits {
    /// Answers kept at most.
    pub entries: usize,
    /// Bytes of answers kept at most, bookkeeping included as estimated.
    pub bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { entries: MAXIMUM_ANSWERS, bytes: 8 * 1024 * 1024 }
    }
}

/// How long upstreams are waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// The first try; each further one waits half as long again. 800 ms: recursive servers answer cold names within
    /// 500 ms, and three tries together stay below the 5 s after which stub resolvers give up (resolv.conf(5)).
    pub first_try: Duration,
    /// Tries over UDP, upstreams taking turns.
    pub tries: u32,
    /// One exchange over TCP, connection included.
    pub tcp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { first_try: Duration::from_millis(800), tries: 3, tcp: Duration::from_secs(2) }
    }
}

/// What TCP clients may use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TcpLimits {
    /// Connections at the same time; further ones are closed at once.
    pub connections: usize,
    /// A connection that sends no whole message for this long is closed (RFC 7766 §6.2.3: a few seconds).
    pub idle: Duration,
    /// A connection is closed after this long whatever it does.
    pub total: Duration,
    /// An answer that the client does not take for this long closes the connection.
    pub write: Duration,
    /// Queries of one connection that are answered at the same time; reading pauses at the limit.
    pub pipelined: usize,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            idle: Duration::from_secs(10),
            total: Duration::from_mins(2),
            write: Duration::from_secs(5),
            pipelined: 32,
        }
    }
}
