//! Small safe wrappers around system calls. All `unsafe` of this crate lives here, each with its reason.
#![expect(unsafe_code, reason = "the one module for it; each block says why it is sound")]

pub mod activation;
pub mod credentials;
pub(crate) mod fanotify;
#[expect(unsafe_code, reason = "only the C library knows its allocator")]
pub mod memory;
pub mod namespace;
pub(crate) mod netlink;
#[expect(unsafe_code, reason = "no safe wrapper knows pidfd_open and pidfd_send_signal")]
pub mod pidfd;
pub mod ptrace;
#[expect(unsafe_code, reason = "the runtime can't check that a descriptor stays open")]
pub mod readiness;
pub(crate) mod renames;
pub(crate) mod rtnetlink;
pub(crate) mod statx;
