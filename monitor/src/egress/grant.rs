//! Grants: addresses that a name of the policy opened for a job, until a time.

use portcullis_common::endpoint::{DnsName, PortRange, Protocol};
use portcullis_common::policy::Rule;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// An address that a name opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// The address.
    pub address: IpAddr,
    /// The transport.
    pub protocol: Protocol,
    /// The ports; [`PortRange::ALL`] for ICMP.
    pub ports: PortRange,
    /// The name that was asked for.
    pub name: DnsName,
    /// The names between `name` and the address.
    pub cname_chain: Vec<DnsName>,
    /// The endpoint responsible.
    pub rule: Arc<Rule>,
    /// How long the grant stays open without use: TTL with a floor, plus the grace period.
    pub lifetime: Duration,
}

/// Why a grant could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The set is full; nothing more is opened.
    #[error("the job holds {limit} open addresses, the most there can be")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// No endpoint of the policy has these ports with a name.
    #[error("no endpoint of the policy allows a name on {protocol:?} {}-{}", ports.first(), ports.last())]
    NoSuchEndpoint {
        /// The transport.
        protocol: Protocol,
        /// The ports.
        ports: PortRange,
    },
    /// The kernel refused.
    #[error("the kernel refused to open the address")]
    Kernel(#[source] std::io::Error),
}

/// Opens grants. The resolver answers only after [`GrantSink::grant`] has returned.
pub trait GrantSink: fmt::Debug + Send + Sync {
    /// Opens or prolongs all of `grants`, or none.
    ///
    /// # Errors
    /// When the kernel did not take them; the resolver then answers SERVFAIL.
    fn grant(&self, grants: &[Grant]) -> Result<(), GrantError>;
}
