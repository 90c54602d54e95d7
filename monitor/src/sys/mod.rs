//! Small safe wrappers around system calls. All `unsafe` of this crate lives here, each with its reason.

pub mod activation;
pub mod namespace;
