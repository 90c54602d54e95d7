//! Unix sockets: which two belong together.

use super::{ANY_COOKIE, SocketDiagnostics, SocketError, is_absent};
use crate::sys::namespace::in_network_namespace;
use crate::watch::netlink::Connection;
use netlink_packet_core::{Emitable, NLM_F_DUMP};
use netlink_packet_sock_diag::unix::nlas::Nla;
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest};
use netlink_packet_sock_diag::{SOCK_DIAG_BY_FAMILY, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;

impl SocketDiagnostics {
    /// The connected Unix sockets of the network namespace: each with the inode of its other end.
    ///
    /// # Errors
    /// [`SocketError::Query`].
    pub fn unix_pairs(&self) -> Result<Vec<(u32, u32)>, SocketError> {
        let request = UnixRequest {
            state_flags: StateFlags::all(),
            inode: 0,
            show_flags: ShowFlags::PEER,
            cookie: ANY_COOKIE,
        };
        let mut payload = vec![0; request.buffer_len()];
        request.emit(&mut payload);
        let mut pairs = Vec::new();
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let result = connection.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &payload, |message| {
            if let SockDiagMessage::UnixResponse(response) = message {
                let peer = response.nlas.iter().find_map(|attribute| match attribute {
                    Nla::Peer(inode) => Some(*inode),
                    _ => None,
                });
                pairs.extend(peer.map(|peer| (response.header.inode, peer)));
            }
        });
        match result {
            Ok(()) => Ok(pairs),
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => Err(SocketError::Query(error)),
        }
    }
}

/// The inode of the socket at the other end of `socket`, a connected Unix socket made by a process in the network
/// namespace of `pid`; `None` when the other end is closed.
pub(crate) fn unix_peer_inode(socket: BorrowedFd<'_>, pid: u32) -> io::Result<Option<u32>> {
    let inode = nix::sys::stat::fstat(socket)?.st_ino;
    let request = UnixRequest {
        state_flags: StateFlags::all(),
        inode: u32::try_from(inode).map_err(io::Error::other)?,
        show_flags: ShowFlags::PEER,
        cookie: ANY_COOKIE,
    };
    let mut payload = vec![0; request.buffer_len()];
    request.emit(&mut payload);
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let mut connection =
        in_network_namespace(namespace.as_fd(), || Connection::open(NETLINK_SOCK_DIAG, None))??;
    let mut peer = None;
    let result = connection.request(SOCK_DIAG_BY_FAMILY, 0, &payload, |message| {
        if let SockDiagMessage::UnixResponse(response) = message {
            peer = response.nlas.iter().find_map(|attribute| match attribute {
                Nla::Peer(inode) => Some(*inode),
                _ => None,
            });
        }
    });
    match result {
        Ok(()) => Ok(peer),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
