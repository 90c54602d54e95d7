//! The interfaces of a network namespace: which lead out, which lead to containers.

use crate::sys::namespace::in_network_namespace;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

/// One interface.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own that the kernel tells"
)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name: `eth0`.
    pub name: String,
    /// Its Ethernet address, when it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is the loopback.
    pub is_loopback: bool,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// Whether it is a port of a bridge or bond, which has the addresses in its place.
    pub is_port: bool,
    /// Whether a default route leads through it.
    pub has_default_route: bool,
}

impl Interface {
    /// Whether packets leave the machine through it. A port of a bridge or bond is no uplink: what leaves through it
    /// left through its master before. A bridge without a default route is taken for one of a container engine.
    pub fn is_uplink(&self) -> bool {
        let leads_somewhere =
            self.has_default_route || !self.addresses.is_empty() && !self.is_bridge;
        !self.is_loopback && !self.is_port && leads_somewhere
    }

    /// Whether it is a bridge of a container engine.
    pub fn is_container_bridge(&self) -> bool {
        self.is_bridge && !self.has_default_route && !self.is_port
    }
}

/// The interfaces of the namespace, by index.
///
/// # Errors
/// When the namespace can't be entered or the kernel does not answer.
pub fn interfaces(namespace: BorrowedFd<'_>) -> io::Result<Vec<Interface>> {
    in_network_namespace(namespace, || {
        let mut connection = Connection::open()?;
        let mut found = BTreeMap::new();
        connection.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                let interface = from_link(&link);
                found.insert(interface.index, interface);
            }
        })?;
        connection.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
            if let RouteNetlinkMessage::NewAddress(address) = message
                && let Some(interface) = found.get_mut(&address.header.index)
            {
                interface.addresses.extend(addresses(&address));
            }
        })?;
        let mut defaults = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            connection.dump(RouteNetlinkMessage::GetRoute(request), |message| {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    defaults.extend(default_route(&route));
                }
            })?;
        }
        for index in defaults {
            if let Some(interface) = found.get_mut(&index) {
                interface.has_default_route = true;
            }
        }
        Ok(found.into_values().collect())
    })?
}

fn from_link(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: link.header.index,
        is_loopback: link.header.flags.contains(LinkFlags::Loopback),
        ..Interface::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(bytes) => interface.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => interface.is_port = *index != 0,
            LinkAttribute::LinkInfo(information) => {
                interface.is_bridge = information.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    interface
}

fn addresses(message: &AddressMessage) -> Option<IpAddr> {
    let pick = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On a point-to-point link `Address` is the other end.
    pick(true).or_else(|| pick(false))
}

fn default_route(route: &RouteMessage) -> Vec<u32> {
    let is_default =
        route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
    if !is_default {
        return Vec::new();
    }
    let mut indices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => indices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                indices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    indices
}

/// A socket that lists what the kernel has.
struct Connection {
    socket: Socket,
}

impl Connection {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    fn dump(
        &mut self,
        request: RouteNetlinkMessage,
        mut seen: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => seen(inner),
                    _ => {}
                }
                // Messages are aligned to 4 bytes (NLMSG_ALIGNTO).
                rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
            }
        }
    }
}
