//! A socket as the kernel's tables have it.

use crate::watch::flow::{Flow, TCP, canonical};
use crate::watch::raw_sockets::RawSocket;
use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{InetResponse, SocketId};
use std::net::SocketAddr;

/// `INET_DIAG_CGROUP_ID` of `linux/inet_diag.h` (5.8 and newer): the inode of the cgroup that the socket was made in.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// `TCP_SYN_SENT`.
const SYN_SENT: u8 = 2;

/// `TCP_LISTEN`.
const LISTEN: u8 = 10;

/// A socket as the kernel describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SocketRecord {
    /// The IP protocol; for raw sockets the protocol that they carry.
    pub protocol: u8,
    /// The local side, IPv4-mapped addresses as IPv4.
    pub local: SocketAddr,
    /// The remote side; unspecified when the socket is not connected.
    pub remote: SocketAddr,
    /// The state: 1 established, 2 SYN sent, 7 closed or not connected, 10 listening.
    pub state: u8,
    /// The inode in `/proc/PID/fd`; 0 when no process owns the socket any more.
    pub inode: u32,
    /// The user that made it.
    pub uid: u32,
    /// The cgroup v2 that it was made in, by inode; `None` before Linux 5.8.
    pub cgroup: Option<u64>,
    /// The family of the socket itself and how the kernel names it; `None` for raw sockets, which it can't name.
    pub(super) name: Option<(u8, SocketId)>,
}

impl SocketRecord {
    /// The five-tuple.
    pub fn flow(&self) -> Flow {
        Flow::new(self.protocol, self.local, self.remote)
    }

    /// Whether it has a peer.
    pub fn is_connected(&self) -> bool {
        !self.remote.ip().is_unspecified()
    }

    /// Whether it listens.
    pub fn is_listening(&self) -> bool {
        self.protocol == TCP && self.state == LISTEN
    }

    /// Whether it is a TCP connection attempt that has no answer yet.
    pub fn is_connecting(&self) -> bool {
        self.protocol == TCP && self.state == SYN_SENT
    }

    /// Reads an answer of the kernel.
    pub(super) fn from_response(protocol: u8, response: InetResponse) -> Self {
        let header = response.header;
        let cgroup = response.nlas.iter().find_map(|attribute| match attribute {
            Nla::Other(attribute) if attribute.kind() == INET_DIAG_CGROUP_ID => {
                let mut value = [0; 8];
                if attribute.value_len() != value.len() {
                    return None;
                }
                attribute.emit_value(&mut value);
                Some(u64::from_ne_bytes(value))
            }
            _ => None,
        });
        let id = header.socket_id;
        Self {
            protocol,
            local: canonical(SocketAddr::new(id.source_address, id.source_port)),
            remote: canonical(SocketAddr::new(id.destination_address, id.destination_port)),
            state: header.state,
            inode: header.inode,
            uid: header.uid,
            cgroup,
            name: Some((header.family, id)),
        }
    }

    /// A raw socket.
    pub(super) fn from_raw(protocol: u8, socket: RawSocket) -> Self {
        Self {
            protocol,
            local: SocketAddr::new(socket.local, 0),
            remote: SocketAddr::new(socket.remote, 0),
            state: socket.state,
            inode: socket.inode,
            uid: socket.uid,
            cgroup: None,
            name: None,
        }
    }
}

/// Bytes that a TCP connection has moved since its beginning.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    /// Received.
    pub received: u64,
    /// Sent, and confirmed by the peer.
    pub sent: u64,
}

impl Traffic {
    /// From `struct tcp_info` (linux/tcp.h): `tcpi_bytes_acked` and `tcpi_bytes_received`, since Linux 4.1.
    pub(super) fn read(information: &[u8]) -> Option<Self> {
        let field = |offset: usize| {
            Some(u64::from_ne_bytes(*information.get(offset..)?.first_chunk::<8>()?))
        };
        Some(Self { sent: field(120)?, received: field(128)? })
    }
}
