//! Forgets flows that connection tracking knows from before the rules.

use super::socket::NetfilterSocket;
use super::wire::{Parsed, kernel};
use crate::sys::namespace::in_network_namespace;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;

/// The port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// The kernel's numbers (`linux/netfilter/nfnetlink_conntrack.h`).
const GET: u16 = kernel::NFNL_SUBSYS_CTNETLINK << 8 | 1;
const DELETE: u16 = kernel::NFNL_SUBSYS_CTNETLINK << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// One flow: its family, tuple, id and zone as the kernel gave them.
#[derive(Debug)]
struct Flow {
    family: u8,
    source_port: Option<u16>,
    tuple: Vec<u8>,
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

/// The flows to port 53 that connection tracking knew at some time in a network namespace. Address translation is decided
/// with the first packet of a flow, so that an old one would go on past the DNS redirection, where it is blocked.
///
/// They are listed before a job's rules are in force and forgotten after: a flow that began behind the rules, whose answer
/// may be on its way, must not be taken for an old one.
#[derive(Debug)]
pub struct DnsFlows {
    /// Dropping it can take milliseconds: the `close` of a netfilter socket waits for an RCU grace period when a transaction
    /// has just been applied.
    socket: Option<NetfilterSocket>,
    flows: Vec<Flow>,
}

impl DnsFlows {
    /// Lists them in `namespace`. It takes milliseconds, for the kernel looks through its whole hash table.
    ///
    /// # Errors
    /// When the flows can't be listed (needs `CAP_NET_ADMIN`).
    pub fn list(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        if in_network_namespace(namespace, flow_count)? == Some(0) {
            return Ok(Self { socket: None, flows: Vec::new() });
        }
        let mut socket = NetfilterSocket::open(namespace)?;
        let flows: Vec<Flow> = socket.dump(
            GET,
            kernel::NFPROTO_UNSPEC,
            |_| (),
            |flows: &mut Vec<Flow>, message| {
                let attributes = message.attributes()?;
                let Some(tuple) = attributes.get(TUPLE_ORIGINAL) else { return Ok(()) };
                let protocol = Parsed::parse(tuple)?.nested(TUPLE_PROTOCOL)?;
                let port = |kind| protocol.as_ref().and_then(|protocol| protocol.be16(kind));
                if port(DESTINATION_PORT) == Some(DNS_PORT) {
                    flows.push(Flow {
                        family: message.family(),
                        source_port: port(SOURCE_PORT),
                        tuple: tuple.to_vec(),
                        id: attributes.get(ID).map(<[u8]>::to_vec),
                        zone: attributes.get(ZONE).map(<[u8]>::to_vec),
                    });
                }
                Ok(())
            },
        )?;
        Ok(Self { socket: Some(socket), flows })
    }

    /// Makes connection tracking forget them, but for those from a port of `spared`: resolvers of other jobs ask upstreams from
    /// there, and an answer on its way would come as a call from outside. Returns how many are forgotten.
    ///
    /// # Errors
    /// When one can't be deleted (needs `CAP_NET_ADMIN`).
    pub fn forget(&mut self, spared: &BTreeSet<u16>) -> io::Result<usize> {
        let Some(socket) = &mut self.socket else { return Ok(0) };
        let is_spared = |flow: &&Flow| flow.source_port.is_some_and(|port| spared.contains(&port));
        let mut forgotten = 0;
        for flow in self.flows.iter().filter(|flow| !is_spared(flow)) {
            let deleted = socket.request(DELETE, flow.family, |body| {
                body.nest(TUPLE_ORIGINAL, |tuple| tuple.raw(&flow.tuple));
                for (kind, value) in [(ID, &flow.id), (ZONE, &flow.zone)] {
                    if let Some(value) = value {
                        body.bytes(kind, value);
                    }
                }
            });
            match deleted {
                // It has ended by itself, and another one may have begun.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
            forgotten += 1;
        }
        Ok(forgotten)
    }
}

/// How many flows connection tracking knows in the calling thread's network namespace; `None` when it does not say.
fn flow_count() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse().ok()
}
