//! What can go wrong with a job's tables.

use super::socket::Refused;
use std::io;

/// Why a rule set is not in force, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The network namespace can't be entered, or no netlink socket opened in it.
    #[error(
        "no netlink socket to nftables in the job's network namespace; the monitor needs CAP_NET_ADMIN there"
    )]
    Socket(#[source] io::Error),
    /// An uplink is not there. Kernels from 6.16 take a chain for an interface that does not exist yet.
    #[error(
        "no interface `{0}` in the job's network namespace, so that the frames it sends can't be judged"
    )]
    NoInterface(String),
    /// The kernel refused the transaction; nothing of it is in force.
    #[error("the kernel refused {what}{}", message.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// What was refused: `set granted4`.
        what: String,
        /// What the kernel said beside the error number.
        message: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// The kernel holds something else than what was sent.
    #[error("the kernel does not hold what was sent: {0}")]
    Mismatch(String),
    /// An answer of the kernel could not be read.
    #[error("the kernel's answer about the rule set could not be read")]
    Answer(#[source] io::Error),
}

impl From<Refused> for InstallError {
    fn from(Refused { what, message, source }: Refused) -> Self {
        Self::Refused { what, message, source }
    }
}
