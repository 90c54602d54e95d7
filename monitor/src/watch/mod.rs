//! Watchers: they gather facts and decide nothing.

pub mod attribution;
pub(crate) mod bounded;
pub mod flow;
pub mod frame;
pub mod inodes;
pub mod lifecycle;
mod netlink;
pub mod nflog;
pub mod packet;
mod packet_sockets;
pub mod process;
mod raw_sockets;
pub mod sockets;
pub mod worker_exit;

#[cfg(test)]
mod tests;
