//! The sockets that a job's queries arrive on: UDP and TCP, one port number for all addresses.

use super::super::sockets::{ResolverError, SkippedListener};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

/// Times a port chosen by the kernel for one socket may turn out to be taken for another.
pub(super) const PORT_TRIES: usize = 64;

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

/// All listening sockets and what was left out.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) port: u16,
    pub(super) bound: Vec<Listener>,
    pub(super) skipped: Vec<SkippedListener>,
}

/// Binds UDP and TCP on each of `addresses`, all with the same port: `port`, or one that the kernel chooses when it is 0.
pub(super) fn bind(addresses: &[IpAddr], port: u16) -> Result<Listeners, ResolverError> {
    let tries = if port == 0 { PORT_TRIES } else { 1 };
    let mut taken = None;
    for _ in 0..tries {
        match bind_once(addresses, port) {
            Ok(listeners) if listeners.bound.is_empty() => {
                return Err(ResolverError::NoAddress { skipped: listeners.skipped });
            }
            Ok(listeners) => return Ok(listeners),
            Err((address, source)) if source.kind() == io::ErrorKind::AddrInUse => {
                taken = Some((address, source));
            }
            Err((address, source)) => return Err(ResolverError::Listen { address, source }),
        }
    }
    Err(match taken {
        Some((address, source)) => ResolverError::Listen { address, source },
        None => ResolverError::NoAddress { skipped: Vec::new() },
    })
}

fn bind_once(addresses: &[IpAddr], port: u16) -> Result<Listeners, (SocketAddr, io::Error)> {
    let mut listeners = Listeners { port, bound: Vec::new(), skipped: Vec::new() };
    for &address in addresses {
        let wanted = SocketAddr::new(address, listeners.port);
        let udp = match UdpSocket::bind(wanted) {
            Ok(socket) => socket,
            Err(error) if is_missing(&error) => {
                listeners.skipped.push(SkippedListener { address, error });
                continue;
            }
            Err(error) => return Err((wanted, error)),
        };
        let chosen = udp.local_addr().map_err(|error| (wanted, error))?;
        let tcp = TcpListener::bind(chosen).map_err(|error| (chosen, error))?;
        for result in [udp.set_nonblocking(true), tcp.set_nonblocking(true)] {
            result.map_err(|error| (chosen, error))?;
        }
        listeners.port = chosen.port();
        listeners.bound.push(Listener { udp, tcp });
    }
    Ok(listeners)
}

/// Whether the namespace simply does not have the address or its family.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
