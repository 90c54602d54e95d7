//! Raw and ping sockets, by `/proc/net`: kernels are commonly built without their `sock_diag` table
//! (`CONFIG_INET_RAW_DIAG`).

use super::flow::{Flow, ICMP, ICMP_V6, is_bound_for};
use crate::sys::namespace::in_network_namespace;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// How much of a table is read, in bytes; a line has about 150.
const TABLE_LIMIT: u64 = 4 << 20;

/// `IPPROTO_RAW`: a socket that brings its own IP header, with whatever protocol.
const ANY_PROTOCOL: u8 = 255;

/// A raw or ping socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RawSocket {
    /// The protocol that it carries; 255 for any.
    pub(super) protocol: u8,
    /// The local address, unspecified when not bound.
    pub(super) local: IpAddr,
    /// The remote address, unspecified when not connected.
    pub(super) remote: IpAddr,
    /// The state.
    pub(super) state: u8,
    /// The user that made it.
    pub(super) uid: u32,
    /// The inode in `/proc/PID/fd`.
    pub(super) inode: u32,
}

/// The tables of one network namespace: an open file of `/proc/net` keeps showing the namespace that it was opened in.
#[derive(Debug)]
pub(super) struct RawTables {
    /// The tables that this kernel has.
    tables: Vec<Table>,
}

/// One table.
#[derive(Debug)]
struct Table {
    /// The file.
    file: File,
    /// The protocol of all its sockets; `None` where each line has its own.
    protocol: Option<u8>,
}

impl RawTables {
    /// Opens the tables of a namespace.
    pub(super) fn open(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        in_network_namespace(namespace, || {
            let tables =
                [("raw", None), ("raw6", None), ("icmp", Some(ICMP)), ("icmp6", Some(ICMP_V6))];
            let tables = tables
                .into_iter()
                .filter_map(|(name, protocol)| {
                    // A kernel without IPv6 lacks the tables of IPv6, and has no such sockets.
                    let file = File::open(format!("/proc/thread-self/net/{name}")).ok()?;
                    Some(Table { file, protocol })
                })
                .collect();
            Self { tables }
        })
    }

    /// The socket that fits a flow best: one that is connected to its destination, or bound, before one that is neither.
    pub(super) fn find(&mut self, flow: &Flow) -> io::Result<Option<RawSocket>> {
        let mut best: Option<RawSocket> = None;
        for table in &mut self.tables {
            let mut text = String::new();
            table.file.rewind()?;
            (&table.file).take(TABLE_LIMIT).read_to_string(&mut text)?;
            let sockets = text.lines().filter_map(|line| parse_line(line, table.protocol));
            best = sockets.filter(|socket| carries(socket, flow)).chain(best).max_by_key(rank);
        }
        Ok(best)
    }
}

/// How well a socket fits that can have sent a packet.
fn rank(socket: &RawSocket) -> (bool, bool, bool) {
    (
        !socket.remote.is_unspecified(),
        !socket.local.is_unspecified(),
        socket.protocol != ANY_PROTOCOL,
    )
}

/// Whether a packet of `flow` can come from the socket. One that brings its own header can send from any address.
fn carries(socket: &RawSocket, flow: &Flow) -> bool {
    let same_version = socket.local.is_ipv4() == flow.source.is_ipv4();
    if socket.protocol == ANY_PROTOCOL {
        return same_version;
    }
    socket.protocol == flow.protocol
        && same_version
        && is_bound_for(socket.local, flow.source.ip())
        && (socket.remote.is_unspecified() || socket.remote == flow.destination.ip())
}

/// One line of a table: `sl local:protocol remote:port state queues timer retransmits uid timeout inode …`.
fn parse_line(line: &str, protocol: Option<u8>) -> Option<RawSocket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, number) = parse_address(fields.next()?)?;
    let (remote, _) = parse_address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    let protocol = match protocol {
        Some(protocol) => protocol,
        None => u8::try_from(number).ok()?,
    };
    Some(RawSocket { protocol, local, remote, state, uid, inode })
}

/// `0100007F:0001`: an address as 32-bit words in this machine's byte order, and a number.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, number) = text.split_once(':')?;
    let number = u16::from_str_radix(number, 16).ok()?;
    let mut bytes = [0; 16];
    let words = address.len() / 8;
    if !address.is_ascii() || address.len() % 8 != 0 {
        return None;
    }
    for (index, place) in bytes.chunks_exact_mut(4).enumerate().take(words) {
        let word = u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16).ok()?;
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let address: IpAddr = match words {
        1 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        4 => Ipv6Addr::from(bytes).into(),
        _ => return None,
    };
    Some((address, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAW: &str = "    1: 0100007F:0001 0700C000:0000 07 00000000:00000000 00:00000000 00000000  1001        0 32961 2 0000000000000000 0";

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_a_line() {
        let socket = parse_line(RAW, None).unwrap();
        assert_eq!(
            socket,
            RawSocket {
                protocol: 1,
                local: "127.0.0.1".parse().unwrap(),
                remote: "0.192.0.7".parse().unwrap(),
                state: 7,
                uid: 1001,
                inode: 32961,
            }
        );
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops";
        assert_eq!(parse_line(header, None), None);
        let (address, number) = parse_address("00000000000000000000000001000000:003A").unwrap();
        assert_eq!((address, number), ("::1".parse().unwrap(), 58));
    }

    #[test]
    fn a_socket_with_its_own_header_fits_anything_but_comes_last() {
        let flow = Flow::new(ICMP, "10.0.0.1:0".parse().unwrap(), "192.0.2.7:0".parse().unwrap());
        let socket = |protocol, local: &str, remote: &str| RawSocket {
            protocol,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state: 7,
            uid: 0,
            inode: 1,
        };
        let any = socket(ANY_PROTOCOL, "0.0.0.0", "0.0.0.0");
        let plain = socket(ICMP, "0.0.0.0", "0.0.0.0");
        let connected = socket(ICMP, "0.0.0.0", "192.0.2.7");
        assert!([any, plain, connected].iter().all(|socket| carries(socket, &flow)));
        assert!(rank(&any) < rank(&plain) && rank(&plain) < rank(&connected));
        for other in [
            socket(ICMP, "0.0.0.0", "192.0.2.8"),
            socket(ICMP, "10.0.0.2", "0.0.0.0"),
            socket(47, "0.0.0.0", "0.0.0.0"),
            socket(ANY_PROTOCOL, "::", "::"),
        ] {
            assert!(!carries(&other, &flow), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC{0,80}", address in "[0-9A-Fa-fé]{0,40}:[0-9A-F]{0,5}") {
            let _ = parse_line(&line, None);
            let _ = parse_line(&format!("0: {address} {address} 07 0 0 0 1 0 2"), None);
        }
    }
}
