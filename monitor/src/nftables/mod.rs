//! The only module that speaks netlink to nftables: apply a rule set in one transaction, read it back, verify.

mod decode;
mod encode;
mod error;
mod grants;
mod installed;
mod socket;
mod verify;
mod wire;

pub use error::InstallError;
pub use grants::LiveGrant;
pub use installed::{Counter, InstalledTable};
