//! Sockets for queries that rules redirect from container bridges and other network namespaces: on every address of the
//! Worker's namespace, because bridges come while the job runs.
//!
//! An answer has to leave from the address that the query arrived at, or connection tracking does not know it for an
//! answer; a socket on every address would take the one that routing prefers. Who may ask is the rules' business.

use super::ResolverError;
use super::listen::{Listener, PORT_TRIES};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, bind, listen, recvmsg, sendmsg,
    setsockopt, socket, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tokio::io::Interest;

/// Connections that wait to be accepted, as for the other listeners (`std::net::TcpListener`).
const WAITING_CONNECTIONS: i32 = 128;

/// Where a query arrived, and so where its answer leaves from.
#[derive(Clone, Copy, Debug)]
pub(super) enum ArrivedAt {
    /// An IPv4 address.
    V4(libc::in_pktinfo),
    /// An IPv6 address.
    V6(libc::in6_pktinfo),
}

/// Binds UDP and TCP on every address of each family that the namespace has, all with one port that the kernel chooses.
pub(super) fn bind_all() -> Result<Vec<Listener>, ResolverError> {
    let mut last = None;
    for _ in 0..PORT_TRIES {
        match bind_once() {
            Ok(listeners) => return Ok(listeners),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(refused(error)),
        }
    }
    Err(refused(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into())))
}

fn refused(source: io::Error) -> ResolverError {
    ResolverError::Listen { address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), source }
}

fn bind_once() -> io::Result<Vec<Listener>> {
    let mut port = 0;
    let mut bound = Vec::new();
    for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let udp = match open(SocketAddr::new(address, port), SockType::Datagram) {
            Ok(udp) => UdpSocket::from(udp),
            // A kernel without the family has no containers of it.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
            Err(error) => return Err(error),
        };
        match address {
            IpAddr::V4(_) => setsockopt(&udp, sockopt::Ipv4PacketInfo, &true)?,
            IpAddr::V6(_) => setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        port = udp.local_addr()?.port();
        let tcp = open(SocketAddr::new(address, port), SockType::Stream)?;
        listen(&tcp, Backlog::new(WAITING_CONNECTIONS)?)?;
        bound.push(Listener { udp, tcp: TcpListener::from(tcp) });
    }
    Ok(bound)
}

fn open(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let opened = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if address.is_ipv6() {
        // IPv4 has sockets of its own.
        setsockopt(&opened, sockopt::Ipv6V6Only, &true)?;
    }
    bind(opened.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(opened)
}

/// Takes a datagram, with the address that it was sent from and the one that it arrived at.
pub(super) fn receive(
    socket: &tokio::net::UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<ArrivedAt>)> {
    socket.try_io(Interest::READABLE, || {
        let mut parts = [IoSliceMut::new(buffer)];
        let mut control = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
        let message = recvmsg::<SockaddrStorage>(
            socket.as_fd().as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let client = message.address.as_ref().and_then(socket_address);
        let arrived = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(ArrivedAt::V4(info)),
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(ArrivedAt::V6(info)),
            _ => None,
        });
        let client = client.ok_or(io::ErrorKind::InvalidData)?;
        Ok((message.bytes, client, arrived))
    })
}

/// Sends an answer from the address that the query arrived at.
pub(super) fn send(
    socket: &tokio::net::UdpSocket,
    answer: &[u8],
    client: SocketAddr,
    arrived: ArrivedAt,
) -> io::Result<usize> {
    let from = match arrived {
        // The interface is left to routing: what came from a bridge goes back by it.
        ArrivedAt::V4(info) => Source::V4(libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: info.ipi_addr,
            ipi_addr: info.ipi_addr,
        }),
        ArrivedAt::V6(info) => Source::V6(info),
    };
    let control = match &from {
        Source::V4(info) => ControlMessage::Ipv4PacketInfo(info),
        Source::V6(info) => ControlMessage::Ipv6PacketInfo(info),
    };
    socket.try_io(Interest::WRITABLE, || {
        let parts = [IoSlice::new(answer)];
        let to = SockaddrStorage::from(client);
        Ok(sendmsg(socket.as_fd().as_raw_fd(), &parts, &[control], MsgFlags::empty(), Some(&to))?)
    })
}

/// Kept while the control message refers to it.
enum Source {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    match address.family()? {
        AddressFamily::Inet => {
            let address: &SockaddrIn = address.as_sockaddr_in()?;
            Some(SocketAddrV4::new(address.ip(), address.port()).into())
        }
        AddressFamily::Inet6 => {
            let address: &SockaddrIn6 = address.as_sockaddr_in6()?;
            let port = address.port();
            Some(
                SocketAddrV6::new(address.ip(), port, address.flowinfo(), address.scope_id())
                    .into(),
            )
        }
        _ => None,
    }
}
