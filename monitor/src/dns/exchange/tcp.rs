//! Asking over TCP, from ports that are reserved for it.

use super::super::message::{Match, OutgoingQuery};
use super::super::observer::Transport;
use super::super::sockets::UpstreamSource;
use crate::sys::namespace::in_network_namespace;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket,
    sockopt::ReusePort,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;

/// Sockets that hold ports, not connected.
pub(super) type Reserved = Vec<(OwnedFd, u16)>;

/// The reserved ports of one upstream. Each carries one connection at a time.
///
/// The holding sockets set `SO_REUSEPORT`, which lets only processes of the same user bind the port too, and never listen;
/// each exchange binds a fresh socket to one of the ports.
#[derive(Debug)]
pub(in super::super) struct TcpPorts {
    upstream: SocketAddr,
    /// Holds the ports.
    reserved: Reserved,
    free: Mutex<Vec<u16>>,
    permits: Semaphore,
    namespace: Option<Arc<OwnedFd>>,
}

/// Reserves `count` ports for connections to `upstream`, in the calling thread's namespace.
pub(super) fn reserve(upstream: SocketAddr, count: usize) -> io::Result<Reserved> {
    (0..count)
        .map(|_| {
            let holder = open(upstream, 0)?;
            let name: SockaddrStorage = getsockname(holder.as_raw_fd())?;
            let port = name
                .as_sockaddr_in()
                .map(nix::sys::socket::SockaddrIn::port)
                .or_else(|| name.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port))
                .ok_or_else(|| io::Error::other("the kernel reported no port"))?;
            Ok((holder, port))
        })
        .collect()
}

/// A TCP socket of `upstream`'s family, bound to `port`.
fn open(upstream: SocketAddr, port: u16) -> io::Result<OwnedFd> {
    let (family, any): (_, IpAddr) = match upstream {
        SocketAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
    Ok(fd)
}

impl TcpPorts {
    pub(super) fn new(
        upstream: SocketAddr,
        reserved: Reserved,
        namespace: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let free: Vec<u16> = reserved.iter().map(|(_, port)| *port).collect();
        let namespace =
            namespace.map(|namespace| namespace.try_clone_to_owned()).transpose()?.map(Arc::new);
        let permits = Semaphore::new(free.len());
        Ok(Self { upstream, reserved, free: Mutex::new(free), permits, namespace })
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = UpstreamSource> {
        self.reserved.iter().map(|(_, port)| UpstreamSource {
            transport: Transport::Tcp,
            port: *port,
            upstream: self.upstream,
        })
    }

    /// Asks over a connection of its own. The caller bounds the time.
    pub(super) async fn exchange(&self, query: &OutgoingQuery) -> io::Result<Vec<u8>> {
        let _permit = self.permits.acquire().await.map_err(io::Error::other)?;
        let taken = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let port = taken.ok_or_else(|| io::Error::other("no reserved port is free"))?;
        let _returned = ReturnPort { ports: self, port };
        let socket = TcpSocket::from_std_stream(self.open(port).await?.into());
        // The port is used again at once: no TIME_WAIT.
        socket.set_zero_linger()?;
        let mut stream = socket.connect(self.upstream).await?;
        let length = u16::try_from(query.bytes().len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes(), query.bytes()].concat();
        stream.write_all(&message).await?;
        let length = stream.read_u16().await?;
        let mut response = vec![0; usize::from(length)];
        stream.read_exact(&mut response).await?;
        match query.compare(&response) {
            // A connection can't be forged from outside, so servers that change letters may do so here.
            Match::Exact | Match::LetterCase => Ok(response),
            Match::Foreign => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
            }
        }
    }

    /// Opens a socket in the Worker's namespace, on a thread that may wait.
    async fn open(&self, port: u16) -> io::Result<OwnedFd> {
        let upstream = self.upstream;
        match self.namespace.clone() {
            None => open(upstream, port),
            Some(namespace) => tokio::task::spawn_blocking(move || {
                in_network_namespace(namespace.as_fd(), || open(upstream, port))?
            })
            .await
            .map_err(io::Error::other)?,
        }
    }
}

/// Gives a port back when the exchange is over or given up. Declared before the stream, it is dropped after it: the port is
/// free again.
#[derive(Debug)]
struct ReturnPort<'ports> {
    ports: &'ports TcpPorts,
    port: u16,
}

impl Drop for ReturnPort<'_> {
    fn drop(&mut self) {
        self.ports.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.port);
    }
}
