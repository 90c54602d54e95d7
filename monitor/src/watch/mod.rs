//! Watchers: they gather facts and decide nothing.

pub mod attribution;
pub mod backend;
pub mod descriptors;
pub mod flow;
pub mod inodes;
pub mod kernel;
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

mod bounded;

#[cfg(test)]
mod tests;
