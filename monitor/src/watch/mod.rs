//! Watchers: they gather facts and decide nothing.

pub mod attribution;
pub mod descriptors;
pub mod flow;
pub mod inodes;
pub mod lifecycle;
mod netlink;
pub mod nflog;
pub mod packet;
pub mod process;
pub mod programs;
mod raw_sockets;
pub mod shells;
pub mod sockets;
pub mod worker_exit;

pub(crate) mod bounded;

#[cfg(test)]
mod tests;
