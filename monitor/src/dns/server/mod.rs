//! A running resolver: its sockets, its tasks, and its end.

mod listen;

use super::config::ResolverConfig;
use super::names::NamePolicy;
use super::observer::{DnsObserver, Transport};
use crate::egress::grant::GrantSink;
use crate::sys::namespace::in_network_namespace;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

pub use listen::SkippedListener;

/// Why a resolver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The Worker's network namespace could not be entered.
    #[error("the Worker's network namespace could not be entered to open the resolver's sockets")]
    Namespace(#[source] io::Error),
    /// A listener could not be bound.
    #[error("the resolver could not listen on {address}; another program may hold the port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// None of the addresses to listen on exists.
    #[error(
        "none of the addresses that the resolver should listen on exists in the Worker's network namespace"
    )]
    NoAddress {
        /// What was tried.
        skipped: Vec<SkippedListener>,
    },
    /// An upstream socket could not be made.
    #[error("no socket for questions to the upstream {upstream} could be opened")]
    Upstream {
        /// The upstream.
        upstream: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket could not be handed to the runtime.
    #[error("a socket of the resolver could not be registered with the runtime")]
    Register(#[source] io::Error),
}

/// A socket of the resolver that talks to an upstream: the firewall must let exactly these out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct UpstreamSource {
    /// The transport.
    pub transport: Transport,
    /// The source port, held as long as the resolver lives.
    pub port: u16,
    /// The only destination.
    pub upstream: SocketAddr,
}

/// The resolver of one job. It stops when dropped.
#[derive(Debug)]
pub struct Resolver {
    port: u16,
    addresses: Vec<SocketAddr>,
    skipped: Vec<SkippedListener>,
    sources: Vec<UpstreamSource>,
}

impl Resolver {
    /// Opens the sockets in the Worker's network namespace and starts answering. Must be called within a tokio runtime
    /// that has I/O and time.
    ///
    /// # Errors
    /// When sockets can't be opened; nothing is left running then.
    pub fn start(
        config: ResolverConfig,
        policy: NamePolicy,
        grants: Arc<dyn GrantSink>,
        observer: Arc<dyn DnsObserver>,
    ) -> Result<Self, ResolverError> {
        let _ = (policy, grants, observer);
        let listeners = match &config.network_namespace {
            Some(namespace) => in_network_namespace(namespace.as_fd(), || {
                listen::bind(&config.listen, config.port)
            })
            .map_err(ResolverError::Namespace)?,
            None => listen::bind(&config.listen, config.port),
        }?;
        let addresses =
            listeners.bound.iter().filter_map(|listener| listener.udp.local_addr().ok()).collect();
        Ok(Self {
            port: listeners.port,
            addresses,
            skipped: listeners.skipped,
            sources: Vec::new(),
        })
    }

    /// The port of all listeners, UDP and TCP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The addresses listened on.
    pub fn listen_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The addresses asked for that the namespace does not have.
    pub fn skipped_listeners(&self) -> &[SkippedListener] {
        &self.skipped
    }

    /// The sockets that talk to upstreams.
    pub fn upstream_source_ports(&self) -> &[UpstreamSource] {
        &self.sources
    }

    /// Stops answering and waits until all sockets are closed.
    pub async fn shutdown(self) {}
}
