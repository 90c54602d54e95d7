//! Watchers: they gather facts and decide nothing.

pub mod attribution;
pub(crate) mod audit;
pub mod backend;
pub(crate) mod bounded;
pub mod descriptors;
pub mod flow;
pub mod frame;
pub mod inodes;
pub mod kernel;
pub mod lifecycle;
mod netlink;
pub mod nflog;
pub mod packet;
mod packet_sockets;
pub mod process;
pub mod programs;
mod raw_sockets;
pub mod shells;
pub mod sockets;
pub mod worker_exit;

#[cfg(test)]
mod tests;
