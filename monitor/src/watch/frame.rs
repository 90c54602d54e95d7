//! The link layer's header of a frame, out of bytes that the job chose.

use super::packet::{self, Headers};
use std::net::{IpAddr, Ipv4Addr};

/// `ETH_P_IP`, `ETH_P_IPV6`, `ETH_P_ARP`.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

/// 802.1Q and 802.1ad: a VLAN tag, the real type behind it.
const VLAN_TAGS: [u16; 2] = [0x8100, 0x88a8];

/// The most VLAN tags that are followed: more than two are no network's.
const MAXIMUM_TAGS: usize = 2;

/// What an Ethernet frame says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Whom it is for.
    pub destination: [u8; 6],
    /// Whom it says it is from.
    pub source: [u8; 6],
    /// The type behind all VLAN tags; below 1536 the length of an 802.3 frame.
    pub ether_type: u16,
    /// The IP packet in it.
    pub headers: Option<Headers>,
    /// Of ARP for IPv4, the address that is asked about or answered to.
    pub arp_target: Option<Ipv4Addr>,
}

impl Frame {
    /// The protocol's name for events, where it is not one of IP's.
    pub fn protocol(&self) -> String {
        match self.ether_type {
            ARP => "arp".to_owned(),
            other => format!("ethertype-{other:#06x}"),
        }
    }

    /// The address that it is about, `0.0.0.0` where there is none.
    pub fn address(&self) -> IpAddr {
        let of_packet = self.headers.map(|headers| headers.destination);
        let of_arp = self.arp_target.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4);
        of_packet.unwrap_or(of_arp)
    }
}

/// Reads a frame that may be cut anywhere. `None` when not even its type is there.
pub fn parse(frame: &[u8]) -> Option<Frame> {
    let destination = *frame.first_chunk::<6>()?;
    let source = *frame.get(6..)?.first_chunk::<6>()?;
    let (kind, mut rest) = frame.get(12..)?.split_first_chunk::<2>()?;
    let mut ether_type = u16::from_be_bytes(*kind);
    for _ in 0..MAXIMUM_TAGS {
        if !VLAN_TAGS.contains(&ether_type) {
            break;
        }
        let Some((kind, after)) = rest.get(2..).and_then(<[u8]>::split_first_chunk::<2>) else {
            break;
        };
        (ether_type, rest) = (u16::from_be_bytes(*kind), after);
    }
    let headers = packet::parse(rest).filter(|headers| match ether_type {
        IPV4 => headers.destination.is_ipv4(),
        IPV6 => headers.destination.is_ipv6(),
        _ => false,
    });
    let arp_target = (ether_type == ARP).then(|| parse_arp_target(rest)).flatten();
    Some(Frame { destination, source, ether_type, headers, arp_target })
}

/// The target's protocol address of ARP for IPv4 on Ethernet (RFC 826).
fn parse_arp_target(arp: &[u8]) -> Option<Ipv4Addr> {
    let is_for_ipv4 = arp.get(2..6)? == [0x08, 0x00, 6, 4];
    let target: [u8; 4] = *arp.get(24..)?.first_chunk()?;
    is_for_ipv4.then(|| Ipv4Addr::from(target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn frame(kind: &[u8], body: &[u8]) -> Vec<u8> {
        [&ADDRESSES, kind, body].concat()
    }

    fn udp() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7];
        packet.extend([0x9c, 0x40, 0x01, 0xbb, 0, 8, 0, 0]);
        packet
    }

    #[test]
    fn reads_ip_behind_vlan_tags() {
        for kind in
            [&[0x08, 0][..], &[0x81, 0, 0, 5, 0x08, 0], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 5, 0x08, 0]]
        {
            let frame = parse(&frame(kind, &udp())).unwrap();
            assert_eq!((frame.destination, frame.source), ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]));
            assert_eq!(frame.ether_type, 0x0800);
            let headers = frame.headers.unwrap();
            assert_eq!(headers.flow().destination, "192.0.2.7:443".parse().unwrap());
            assert_eq!(frame.address(), headers.destination);
        }
        // A type that does not fit what follows is believed: nobody reads it as IP.
        let other = parse(&frame(&[0x88, 0xb5], &udp())).unwrap();
        assert_eq!((other.headers, other.address()), (None, Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(other.protocol(), "ethertype-0x88b5");
        assert_eq!(parse(&frame(&[0x86, 0xdd], &udp())).unwrap().headers, None);
    }

    #[test]
    fn arp_tells_whom_it_asks_about() {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([2, 0, 0, 0, 0, 2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9]);
        let asked = parse(&frame(&[8, 6], &arp)).unwrap();
        assert_eq!(
            (asked.protocol().as_str(), asked.address()),
            ("arp", "192.0.2.9".parse().unwrap())
        );
        arp.pop();
        assert_eq!(parse(&frame(&[8, 6], &arp)).unwrap().arp_target, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let parsed = parse(&bytes);
            prop_assert_eq!(parsed.is_some(), bytes.len() >= 14);
            if let Some(frame) = parsed {
                let _ = (frame.protocol(), frame.address());
            }
        }
    }
}
