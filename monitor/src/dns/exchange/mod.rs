//! Asking upstream: over UDP from a few connected sockets whose ports never change, so that the firewall can name them; over
//! TCP, from reserved ports, when an answer is cut or somebody seems to be guessing at ours.

mod tcp;
mod udp;

use super::answer::{self, AnswerError, Findings};
use super::config::Timeouts;
use super::message::{BuildError, OutgoingQuery, is_truncated};
use super::observer::{DnsObserver, UpstreamChange};
use super::sockets::{ResolverError, UpstreamSource};
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(super) use tcp::TcpPorts;
pub(super) use udp::Channel;

/// UDP sockets for each upstream. Each has its own port, which a forger has to guess too.
const CHANNELS: usize = 4;

/// TCP exchanges with one upstream at the same time.
const TCP_PORTS: usize = 4;

/// Why an upstream gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// There is nobody to ask.
    #[error(
        "no upstream is known; name one in the Worker's /etc/resolv.conf or under [dns] in monitor.toml"
    )]
    NoUpstream,
    /// No answer in time.
    #[error("{upstream} did not answer within {waited:?}")]
    TimedOut {
        /// Who was asked.
        upstream: SocketAddr,
        /// How long was waited.
        waited: Duration,
    },
    /// The network failed.
    #[error("{upstream} could not be asked: {source}")]
    Network {
        /// Who was asked.
        upstream: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// It answered, but not usably.
    #[error("{upstream}: {source}")]
    Answer {
        /// Who was asked.
        upstream: SocketAddr,
        /// What was wrong.
        source: AnswerError,
    },
    /// The question could not be encoded.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// One upstream and the sockets that talk to it.
#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    channels: Vec<Arc<Channel>>,
    next_channel: AtomicUsize,
    tcp: TcpPorts,
    reachable: AtomicBool,
    /// It does not understand EDNS.
    without_edns: AtomicBool,
}

/// All upstreams.
#[derive(Debug)]
pub struct Exchange {
    upstreams: Vec<Upstream>,
    /// The upstream that answered last.
    preferred: AtomicUsize,
    timeouts: Timeouts,
    observer: Arc<dyn DnsObserver>,
}

/// Sockets for upstreams as the namespace's thread opened them.
#[derive(Debug)]
pub(super) struct BoundUpstream {
    address: SocketAddr,
    channels: Vec<std::net::UdpSocket>,
    ports: tcp::Reserved,
}

/// Opens the sockets for `upstreams`. Runs on the thread that is in the Worker's namespace.
pub(super) fn bind(upstreams: &[SocketAddr]) -> Result<Vec<BoundUpstream>, ResolverError> {
    let failed = |upstream| move |source| ResolverError::Upstream { upstream, source };
    upstreams
        .iter()
        .map(|&upstream| {
            let channels = (0..CHANNELS)
                .map(|_| udp::bind(upstream))
                .collect::<io::Result<Vec<_>>>()
                .map_err(failed(upstream))?;
            let ports = tcp::reserve(upstream, TCP_PORTS).map_err(failed(upstream))?;
            Ok(BoundUpstream { address: upstream, channels, ports })
        })
        .collect()
}

impl Exchange {
    /// Takes the sockets over and starts reading from them, on `tasks`. `namespace` is where TCP connections are made.
    pub(super) fn start(
        bound: Vec<BoundUpstream>,
        namespace: Option<BorrowedFd<'_>>,
        timeouts: Timeouts,
        observer: Arc<dyn DnsObserver>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(Self, Vec<UpstreamSource>), ResolverError> {
        let mut sources = Vec::new();
        let mut upstreams = Vec::new();
        for BoundUpstream { address, channels, ports } in bound {
            let channels = channels
                .into_iter()
                .map(|socket| Channel::new(socket, address).map(Arc::new))
                .collect::<io::Result<Vec<_>>>()
                .map_err(ResolverError::Register)?;
            for channel in &channels {
                sources.push(channel.source());
                tasks.spawn(udp::receive(Arc::clone(channel)));
            }
            let tcp = TcpPorts::new(address, ports, namespace).map_err(ResolverError::Namespace)?;
            sources.extend(tcp.sources());
            upstreams.push(Upstream {
                address,
                channels,
                next_channel: AtomicUsize::new(0),
                tcp,
                reachable: AtomicBool::new(true),
                without_edns: AtomicBool::new(false),
            });
        }
        let exchange = Self { upstreams, preferred: AtomicUsize::new(0), timeouts, observer };
        Ok((exchange, sources))
    }

    /// Asks for the records of `query_type` of `name` (a checked host name), upstreams taking turns until one answers
    /// usably.
    ///
    /// # Errors
    /// The last upstream's failure.
    pub async fn ask(&self, name: &str, query_type: u16) -> Result<Findings, ExchangeError> {
        let count = self.upstreams.len();
        let start = self.preferred.load(Ordering::Relaxed);
        let mut wait = self.timeouts.first_try;
        let mut last = ExchangeError::NoUpstream;
        // Each upstream gets its chance even when there are more of them than tries.
        for turn in 0..self.timeouts.tries.max(u32::try_from(count).unwrap_or(u32::MAX)) {
            let index = usize::try_from(turn).unwrap_or(0).wrapping_add(start) % count.max(1);
            let Some(upstream) = self.upstreams.get(index) else { break };
            match upstream.ask(name, query_type, wait, self.timeouts.tcp).await {
                Ok(findings) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    self.note(upstream, true, "it answers again");
                    return Ok(findings);
                }
                Err(error) => {
                    match &error {
                        ExchangeError::TimedOut { .. } | ExchangeError::Network { .. } => {
                            self.note(upstream, false, &error.to_string());
                        }
                        ExchangeError::Answer { .. } => {
                            self.note(upstream, true, "it answers again");
                        }
                        ExchangeError::NoUpstream | ExchangeError::Build(_) => return Err(error),
                    }
                    last = error;
                }
            }
            wait = wait.saturating_mul(3) / 2;
        }
        Err(last)
    }

    /// Reports the upstream's state when it changed.
    fn note(&self, upstream: &Upstream, reachable: bool, reason: &str) {
        if upstream.reachable.swap(reachable, Ordering::Relaxed) == reachable {
            return;
        }
        let change =
            UpstreamChange { upstream: upstream.address, reachable, reason: reason.to_owned() };
        tracing::warn!(upstream = %change.upstream, reachable, reason, "an upstream of the resolver changed");
        self.observer.upstream_changed(change);
    }
}

impl Upstream {
    async fn ask(
        &self,
        name: &str,
        query_type: u16,
        wait: Duration,
        tcp_wait: Duration,
    ) -> Result<Findings, ExchangeError> {
        let with_edns = !self.without_edns.load(Ordering::Relaxed);
        match self.exchange(name, query_type, with_edns, wait, tcp_wait).await {
            Err(ExchangeError::Answer { source, .. }) if with_edns && source.is_format_error() => {
                let findings = self.exchange(name, query_type, false, wait, tcp_wait).await?;
                self.without_edns.store(true, Ordering::Relaxed);
                Ok(findings)
            }
            result => result,
        }
    }

    async fn exchange(
        &self,
        name: &str,
        query_type: u16,
        with_edns: bool,
        wait: Duration,
        tcp_wait: Duration,
    ) -> Result<Findings, ExchangeError> {
        let query = OutgoingQuery::build(name, query_type, with_edns)?;
        let number = self.next_channel.fetch_add(1, Ordering::Relaxed) % CHANNELS;
        let Some(channel) = self.channels.get(number) else {
            return Err(ExchangeError::NoUpstream);
        };
        let deadline = Instant::now() + wait;
        let response = match channel.exchange(query, deadline).await {
            Ok(Ok(response)) if !is_truncated(&response) => response,
            // Cut, or somebody is guessing: TCP settles both.
            Ok(Ok(_) | Err(udp::Failure::Suspicious)) => {
                let query = OutgoingQuery::build(name, query_type, with_edns)?;
                match tokio::time::timeout(tcp_wait, self.tcp.exchange(&query)).await {
                    Ok(result) => result.map_err(|source| self.network(source))?,
                    Err(_) => return Err(self.timed_out(tcp_wait)),
                }
            }
            Ok(Err(udp::Failure::Network(source))) => return Err(self.network(source)),
            Err(_) => return Err(self.timed_out(wait)),
        };
        answer::read(&response, name, query_type)
            .map_err(|source| ExchangeError::Answer { upstream: self.address, source })
    }

    fn network(&self, source: io::Error) -> ExchangeError {
        ExchangeError::Network { upstream: self.address, source }
    }

    fn timed_out(&self, waited: Duration) -> ExchangeError {
        ExchangeError::TimedOut { upstream: self.address, waited }
    }
}
