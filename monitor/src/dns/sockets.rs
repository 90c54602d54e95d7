//! The sockets of a resolver, as others have to know them: which the firewall lets out, and why one could not be opened.

use super::observer::Transport;
use std::io;
use std::net::{IpAddr, SocketAddr};

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

/// An address that could not be listened on because the namespace does not have it.
#[derive(Debug)]
pub struct SkippedListener {
    /// The address.
    pub address: IpAddr,
    /// What the kernel said.
    pub error: io::Error,
}
