//! The runner's own connections, which must survive when old flows are cut.

use super::table::ProcessKey;
use crate::watch::flow::Flow;
use crate::watch::inodes::socket_inodes;
use crate::watch::sockets::{SocketDiagnostics, SocketError};
use std::collections::HashSet;

/// The TCP flows of `processes` (a Worker and its Listener) now, with the local side as the source.
///
/// # Errors
/// When the kernel does not list the sockets.
pub fn runner_flows(
    processes: &[ProcessKey],
    diagnostics: &SocketDiagnostics,
) -> Result<Vec<Flow>, SocketError> {
    let inodes: HashSet<u32> =
        processes.iter().flat_map(|process| socket_inodes(process.pid)).collect();
    let sockets = diagnostics.connected_tcp()?;
    Ok(sockets
        .into_iter()
        .filter(|socket| inodes.contains(&socket.inode))
        .map(|socket| socket.flow())
        .collect())
}
