//! The only module that speaks netlink to nftables: apply a rule set in one transaction, read it back, verify.

use crate::egress::grant::{Grant, GrantError, GrantSink};
use crate::egress::rule_set::RuleSet;
use crate::egress::target::TableName;
use portcullis_common::endpoint::{PortRange, Protocol};
use portcullis_common::event::Feature;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Why a rule set is not in force.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The network namespace can't be entered, or no netlink socket opened in it.
    #[error(
        "no netlink socket to nftables in the job's network namespace; the monitor needs CAP_NET_ADMIN there"
    )]
    Socket(#[source] io::Error),
    /// The kernel refused the transaction; nothing of it is in force.
    #[error("the kernel refused the rule set{}", detail.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// What the kernel said beside the error number.
        detail: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// The kernel holds something else than what was sent; the tables were removed.
    #[error("the kernel does not hold what was sent: {0}")]
    Mismatch(String),
    /// An answer of the kernel could not be read.
    #[error("the kernel's answer about the rule set could not be read")]
    Answer(#[source] io::Error),
}

/// A job's tables in the kernel, and the netlink socket that owns them. Usable from several threads.
#[derive(Debug)]
pub struct InstalledTable(());

/// A live grant, as the kernel holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LiveGrant {
    /// The address.
    pub address: IpAddr,
    /// The transport.
    pub protocol: Protocol,
    /// The ports; [`PortRange::ALL`] for ICMP.
    pub ports: PortRange,
    /// How long it stays open without another grant or packet.
    pub remaining: Duration,
    /// Whether packets have used it within the grace period.
    pub used: bool,
}

/// A named counter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl InstalledTable {
    /// Puts `rules` in force in the network namespace: one transaction, read back, verified.
    ///
    /// # Errors
    /// When they are not in force; then nothing of them is.
    pub fn install(namespace: BorrowedFd<'_>, rules: &RuleSet) -> Result<Self, InstallError> {
        let _ = (namespace, rules);
        Err(InstallError::Mismatch(String::new()))
    }

    /// Takes over tables that a monitor left behind (`OwnerPersist`), or makes them anew when they are gone; live
    /// grants and counters stay.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn adopt(
        namespace: BorrowedFd<'_>,
        name: &TableName,
        rules: &RuleSet,
    ) -> Result<Self, InstallError> {
        let _ = (namespace, name, rules);
        Err(InstallError::Mismatch(String::new()))
    }

    /// Reads everything back and compares it.
    ///
    /// # Errors
    /// When the kernel holds something else, with the first difference.
    pub fn verify(&self) -> Result<(), InstallError> {
        Ok(())
    }

    /// Replaces everything atomically; live grants and counters stay.
    ///
    /// # Errors
    /// When the old rules are still in force.
    pub fn replace(&self, rules: &RuleSet) -> Result<(), InstallError> {
        let _ = rules;
        Ok(())
    }

    /// Opens or prolongs all of `grants`, or none; blocks for some microseconds.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn add_grants(&self, grants: &[Grant]) -> Result<(), GrantError> {
        let _ = grants;
        Ok(())
    }

    /// Every open grant.
    ///
    /// # Errors
    /// When the kernel's answer can't be read.
    pub fn list_grants(&self) -> Result<Vec<LiveGrant>, InstallError> {
        Ok(Vec::new())
    }

    /// The counters of both tables.
    ///
    /// # Errors
    /// When the kernel's answer can't be read.
    pub fn counters(&self) -> Result<Vec<Counter>, InstallError> {
        Ok(Vec::new())
    }

    /// Sets the source ports of the resolver's upstream sockets.
    ///
    /// # Errors
    /// When the kernel refused; then the old ones are in force.
    pub fn set_upstream_ports(&self, ports: &[u16]) -> Result<(), InstallError> {
        let _ = ports;
        Ok(())
    }

    /// Our netlink port id: changes with it are ours (`ChangeWatcher`).
    pub fn port_id(&self) -> u32 {
        0
    }

    /// Removes both tables.
    ///
    /// # Errors
    /// When the kernel refused.
    pub fn remove(self) -> Result<(), InstallError> {
        Ok(())
    }
}

impl GrantSink for InstalledTable {
    fn grant(&self, grants: &[Grant]) -> Result<(), GrantError> {
        self.add_grants(grants)
    }
}

/// Tries in a scratch network namespace what the kernel can do.
pub fn probe() -> Vec<Feature> {
    Vec::new()
}
