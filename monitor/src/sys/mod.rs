//! Small safe wrappers around system calls. All `unsafe` of this crate lives here, each with its reason.
#![expect(unsafe_code, reason = "the one module for it; each block says why it is sound")]

pub mod namespace;
pub(crate) mod netlink;
pub(crate) mod rtnetlink;
