//! The only module that speaks netlink to nftables: apply a rule set in one transaction, read it back, verify.

mod conntrack;
mod decode;
mod encode;
mod error;
mod grants;
mod installed;
mod own_sockets;
mod probe;
mod socket;
mod verify;
mod watcher;
mod wire;

pub use conntrack::DnsFlows;
pub use error::InstallError;
pub use grants::LiveGrant;
pub use installed::{Counter, InstalledTable};
pub use probe::{Probed, probe};
pub use watcher::{Action, ActionKind, Change, ChangeWatcher, Notice, ObjectKind};
