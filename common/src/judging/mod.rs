//! What a policy says about names, addresses and calls. Pure.
//!
//! The monitor judges names by [`names`] when a job asks for them, and the addresses they lead to by [`addresses`]; the
//! kernel judges addresses by sets that hold the same rules. [`CallJudge`] puts both together for a call that is over, so
//! that a policy can be tried on what was recorded.

pub mod addresses;
mod call;
pub mod github_hosts;
pub mod names;

pub use call::{Call, CallJudge, CallVerdict};
