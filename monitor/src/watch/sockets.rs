//! The kernel's socket tables, by `NETLINK_SOCK_DIAG`: who owns a flow, which flows are alive, and cutting them.

mod record;
mod tcp_table;
mod unix;

use super::flow::{Flow, TCP, UDP, UDP_LITE, canonical, is_bound_for};
use super::netlink::Connection;
use super::packet_sockets::PacketTable;
use super::raw_sockets::RawTables;
use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
pub use record::{SocketRecord, Traffic};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use tcp_table::{TCPDIAG_GETSOCK, TcpSocket};
pub(crate) use unix::unix_peer_inode;

/// "No cookie": any socket of the tuple (`INET_DIAG_NOCOOKIE`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// Why the socket tables could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No netlink socket in the namespace.
    #[error("can't open a sock_diag socket in the job's network namespace")]
    Open(#[source] io::Error),
    /// A look-up failed for another reason than that there is no such socket.
    #[error("sock_diag did not answer; is the module inet_diag loaded?")]
    Query(#[source] io::Error),
    /// A socket could not be destroyed.
    #[error("the kernel did not destroy a socket; it needs CONFIG_INET_DIAG_DESTROY")]
    Destroy(#[source] io::Error),
}

/// The socket tables of one network namespace, through a held netlink socket.
#[derive(Debug)]
pub struct SocketDiagnostics {
    /// The connection; a request and its answer belong together.
    connection: Mutex<Connection>,
    /// Raw and ping sockets.
    raw: Mutex<RawTables>,
    /// Packet sockets.
    packet: Mutex<PacketTable>,
}

impl SocketDiagnostics {
    /// Opens the tables of `namespace` (an open `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// [`SocketError::Open`].
    pub fn open(namespace: BorrowedFd<'_>) -> Result<Self, SocketError> {
        let connection =
            Connection::open(NETLINK_SOCK_DIAG, Some(namespace)).map_err(SocketError::Open)?;
        let raw = RawTables::open(namespace).map_err(SocketError::Open)?;
        let packet = PacketTable::open(namespace).map_err(SocketError::Open)?;
        Ok(Self {
            connection: Mutex::new(connection),
            raw: Mutex::new(raw),
            packet: Mutex::new(packet),
        })
    }

    /// The socket that sent, or receives, the packets of `flow`. An exact look-up (microseconds); only for raw sockets and
    /// for UDP sockets bound to a device a look through a table. TCP and UDP that no such socket sent can come from a raw
    /// socket, which forges what it likes.
    ///
    /// # Errors
    /// [`SocketError::Query`]; no such socket is `Ok(None)`.
    pub fn find(&self, flow: &Flow) -> Result<Option<SocketRecord>, SocketError> {
        let found = match flow.protocol {
            TCP => self.find_exact(flow, flow.source, flow.destination)?,
            // "src and dst are swapped for historical reasons" (net/ipv4/udp_diag.c).
            UDP | UDP_LITE => match self.find_exact(flow, flow.destination, flow.source)? {
                Some(found) => Some(found),
                None => self.find_in_table(flow)?,
            },
            _ => None,
        };
        let found = if found.is_some() {
            found
        } else {
            let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
            let found = raw.find(flow).map_err(SocketError::Query)?;
            found.map(|socket| SocketRecord::from_raw(flow.protocol, socket))
        };
        Ok(found.filter(|socket| !socket.is_listening()))
    }

    /// The inodes of the packet sockets that can have sent a frame by `interface` for the user `uid`, the likeliest first.
    ///
    /// # Errors
    /// [`SocketError::Query`].
    pub fn packet_sockets(
        &self,
        interface: Option<u32>,
        uid: Option<u32>,
    ) -> Result<Vec<u32>, SocketError> {
        let mut packet = self.packet.lock().unwrap_or_else(PoisonError::into_inner);
        packet.find(interface, uid).map_err(SocketError::Query)
    }

    /// The socket with this local side, whatever its remote side; of several the most specific.
    ///
    /// # Errors
    /// [`SocketError::Query`]; no such socket is `Ok(None)`.
    pub fn find_by_local(
        &self,
        protocol: u8,
        local: SocketAddr,
    ) -> Result<Option<SocketRecord>, SocketError> {
        let local = canonical(local);
        let mut candidates = self.dump(protocol, &StateFlags::all())?;
        candidates.retain(|socket| {
            let of_address = socket.local.ip() == local.ip() || socket.local.ip().is_unspecified();
            of_address && socket.local.port() == local.port() && !socket.is_listening()
        });
        Ok(candidates
            .into_iter()
            .max_by_key(|socket| (socket.local.ip() == local.ip(), socket.is_connected())))
    }

    /// Every TCP socket that is not listening and every connected UDP socket.
    ///
    /// # Errors
    /// [`SocketError::Query`].
    pub fn connected(&self) -> Result<Vec<SocketRecord>, SocketError> {
        self.connected_of(&[TCP, UDP, UDP_LITE])
    }

    /// Every TCP socket that is not listening. The kernel looks through a whole table for each protocol, which takes some
    /// hundred microseconds however few sockets there are.
    ///
    /// # Errors
    /// [`SocketError::Query`].
    pub fn connected_tcp(&self) -> Result<Vec<SocketRecord>, SocketError> {
        self.connected_of(&[TCP])
    }

    fn connected_of(&self, protocols: &[u8]) -> Result<Vec<SocketRecord>, SocketError> {
        let mut sockets = Vec::new();
        for protocol in protocols {
            sockets.extend(
                self.dump(*protocol, &(StateFlags::all() - StateFlags::LISTEN))?
                    .into_iter()
                    .filter(|socket| socket.is_connected() && !socket.is_listening()),
            );
        }
        Ok(sockets)
    }

    /// The connected sockets that `select` picks: of a cgroup, of a user.
    ///
    /// # Errors
    /// [`SocketError::Query`].
    pub fn connected_where(
        &self,
        select: impl Fn(&SocketRecord) -> bool,
    ) -> Result<Vec<SocketRecord>, SocketError> {
        let mut sockets = self.connected()?;
        sockets.retain(select);
        Ok(sockets)
    }

    /// Closes a socket under its owner, who then gets `ECONNABORTED`; `false` when it was gone already.
    ///
    /// # Errors
    /// [`SocketError::Destroy`].
    pub fn destroy(&self, socket: &SocketRecord) -> Result<bool, SocketError> {
        let Some((family, id)) = &socket.name else {
            return Err(SocketError::Destroy(io::ErrorKind::Unsupported.into()));
        };
        let payload = request(*family, socket.protocol, id.clone());
        match self.request(SOCK_DESTROY, NLM_F_ACK, &payload, |_| ()) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(SocketError::Destroy(error)),
        }
    }

    /// Ends the connection attempt of `flow`, whose SYN was dropped: the client's `connect` fails at once with
    /// `ECONNABORTED` instead of after minutes. `false` when there is no such attempt.
    ///
    /// A rule that rejects with a TCP reset ends the attempt before anybody can look up whose it is: the reset is
    /// delivered inside of `connect`. Dropping, attributing, and then refusing keeps the evidence. Only an attempt is
    /// ended, never an established connection: a forged SYN with the tuple of somebody else's connection cuts nothing.
    ///
    /// # Errors
    /// [`SocketError::Query`], [`SocketError::Destroy`].
    pub fn refuse(&self, flow: &Flow) -> Result<bool, SocketError> {
        match self.find(flow)? {
            Some(socket) if socket.is_connecting() => self.destroy(&socket),
            _ => Ok(false),
        }
    }

    /// What a TCP connection has received, and what it has sent and its peer has confirmed, in bytes since its beginning;
    /// `None` when there is no such connection any more, or it counts nothing (UDP).
    ///
    /// # Errors
    /// [`SocketError::Query`].
    pub fn traffic(&self, socket: &SocketRecord) -> Result<Option<Traffic>, SocketError> {
        let Some((family, id)) = socket.name.as_ref().filter(|_| socket.protocol == TCP) else {
            return Ok(None);
        };
        let payload =
            request_with(*family, TCP, id.clone(), ExtensionFlags::INFO, StateFlags::all());
        let mut traffic = None;
        let result = self.request(SOCK_DIAG_BY_FAMILY, 0, &payload, |response| {
            traffic = response.nlas.iter().find_map(|attribute| match attribute {
                Nla::TcpInfo(information) => Traffic::read(information),
                _ => None,
            });
        });
        match result {
            Ok(()) => Ok(traffic),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(SocketError::Query(error)),
        }
    }

    /// One request and its answer.
    fn request(
        &self,
        message_type: u16,
        flags: u16,
        payload: &[u8],
        mut take: impl FnMut(InetResponse),
    ) -> io::Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.request(message_type, flags, payload, |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                take(*response);
            }
        })
    }

    /// Asks for one socket by its tuple.
    fn find_exact(
        &self,
        flow: &Flow,
        first: SocketAddr,
        second: SocketAddr,
    ) -> Result<Option<SocketRecord>, SocketError> {
        let id = SocketId {
            source_port: first.port(),
            destination_port: second.port(),
            source_address: first.ip(),
            destination_address: second.ip(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        };
        let payload = request(family_of(first.ip()), flow.protocol, id);
        let mut found = None;
        let result = self.request(SOCK_DIAG_BY_FAMILY, 0, &payload, |response| {
            found = Some(SocketRecord::from_response(flow.protocol, response));
        });
        match result {
            Ok(()) => Ok(found.filter(|socket| carries(socket, flow))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(SocketError::Query(error)),
        }
    }

    /// Looks for the best match in a whole table.
    fn find_in_table(&self, flow: &Flow) -> Result<Option<SocketRecord>, SocketError> {
        let mut candidates = self.dump(flow.protocol, &StateFlags::all())?;
        candidates.retain(|socket| carries(socket, flow));
        Ok(candidates.into_iter().max_by_key(|socket| {
            (socket.is_connected(), !socket.local.ip().is_unspecified(), socket.inode != 0)
        }))
    }

    /// A whole table, IPv4 and IPv6.
    fn dump(&self, protocol: u8, states: &StateFlags) -> Result<Vec<SocketRecord>, SocketError> {
        if protocol == TCP {
            return self.dump_tcp(states);
        }
        let mut sockets = Vec::new();
        for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let payload =
                request_with(family, protocol, id, ExtensionFlags::empty(), states.clone());
            let result = self.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &payload, |response| {
                sockets.push(SocketRecord::from_response(protocol, response));
            });
            match result {
                Ok(()) => {}
                // The kernel has no such table (UDP-Lite, IPv6 off): then there are no such sockets.
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(SocketError::Query(error)),
            }
        }
        Ok(sockets)
    }

    /// The table of TCP.
    fn dump_tcp(&self, states: &StateFlags) -> Result<Vec<SocketRecord>, SocketError> {
        let payload = tcp_table::request(states);
        let mut sockets = Vec::new();
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection
            .request(TCPDIAG_GETSOCK, NLM_F_DUMP, &payload, |TcpSocket(socket)| {
                sockets.extend(socket.map(|socket| SocketRecord::from_response(TCP, *socket)));
            })
            .map_err(SocketError::Query)?;
        Ok(sockets)
    }
}

/// `AF_INET` as the tables have it.
const AF_INET: u8 = netlink_packet_sock_diag::constants::AF_INET;
/// `AF_INET6` as the tables have it.
const AF_INET6: u8 = netlink_packet_sock_diag::constants::AF_INET6;

/// The address family of an address.
fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// Whether the packets of `flow` can come from `socket`.
fn carries(socket: &SocketRecord, flow: &Flow) -> bool {
    socket.local.port() == flow.source.port()
        && is_bound_for(socket.local.ip(), flow.source.ip())
        && (!socket.is_connected() || socket.remote == flow.destination)
}

/// Whether the answer means "there is none".
fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

/// A request's payload.
fn request(family: u8, protocol: u8, socket_id: SocketId) -> Vec<u8> {
    request_with(family, protocol, socket_id, ExtensionFlags::empty(), StateFlags::all())
}

/// A request's payload that asks for more than the socket itself, or for sockets in some states only.
fn request_with(
    family: u8,
    protocol: u8,
    socket_id: SocketId,
    extensions: ExtensionFlags,
    states: StateFlags,
) -> Vec<u8> {
    let request = InetRequest { family, protocol, extensions, states, socket_id };
    let mut payload = vec![0; request.buffer_len()];
    request.emit(&mut payload);
    payload
}
