//! The headers of a packet, out of bytes that the job chose.

use super::flow::{Flow, ICMP, ICMP_V6, TCP, UDP, UDP_LITE};
use super::frame::Frame;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `IPPROTO_SCTP`.
const SCTP: u8 = 132;
/// `IPPROTO_DCCP`.
const DCCP: u8 = 33;

/// The most extension headers that are followed; the kernel accepts eight options headers by default, honest packets
/// have one or two.
const MAXIMUM_EXTENSIONS: usize = 16;

/// What the network and transport headers say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Headers {
    /// The transport protocol; of an IPv6 packet whose chain of headers is cut, the last header that was read.
    pub protocol: u8,
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The ports, where the protocol has some and the packet shows them.
    pub ports: Option<Ports>,
    /// Type and code of ICMP in both versions of IP.
    pub icmp: Option<IcmpKind>,
    /// Whether it is a fragment behind the first one: it has no transport header.
    pub is_later_fragment: bool,
    /// The length of the whole packet as its header says, in bytes.
    pub length: u32,
}

/// The ports of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
}

/// Type and code of an ICMP message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IcmpKind {
    /// The type: 8 and 128 are echo requests.
    pub kind: u8,
    /// The code.
    pub code: u8,
}

impl Headers {
    /// What stands for the headers of a frame that has no IP packet.
    pub(super) fn of_frame(frame: &Frame) -> Self {
        Self {
            protocol: 0,
            source: Ipv4Addr::UNSPECIFIED.into(),
            destination: frame.address(),
            ports: None,
            icmp: None,
            is_later_fragment: false,
            length: 0,
        }
    }

    /// The flow of an outgoing packet; ports are 0 where there are none.
    pub fn flow(&self) -> Flow {
        let ports = self.ports.unwrap_or(Ports { source: 0, destination: 0 });
        Flow::new(
            self.protocol,
            SocketAddr::new(self.source, ports.source),
            SocketAddr::new(self.destination, ports.destination),
        )
    }
}

/// Reads a packet that begins with its IPv4 or IPv6 header and may be cut anywhere. `None` when not even the
/// addresses are there.
pub fn parse(packet: &[u8]) -> Option<Headers> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => None,
    }
}

/// RFC 791.
fn parse_v4(packet: &[u8]) -> Option<Headers> {
    let header = packet.first_chunk::<20>()?;
    let [b0, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let header_length = usize::from(b0 & 0xf) * 4;
    let is_later_fragment = u16::from_be_bytes([f0, f1]) & 0x1fff != 0;
    let transport = if is_later_fragment || header_length < header.len() {
        &[]
    } else {
        packet.get(header_length..).unwrap_or_default()
    };
    Some(Headers {
        protocol,
        source: Ipv4Addr::new(s0, s1, s2, s3).into(),
        destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
        ports: parse_ports(protocol, transport),
        icmp: parse_icmp(protocol, transport),
        is_later_fragment,
        length: u32::from(u16::from_be_bytes([l0, l1])),
    })
}

/// RFC 8200.
fn parse_v6(packet: &[u8]) -> Option<Headers> {
    let header = packet.first_chunk::<40>()?;
    let source: [u8; 16] = header.get(8..24)?.try_into().ok()?;
    let destination: [u8; 16] = header.get(24..40)?.try_into().ok()?;
    let mut protocol = header[6];
    let mut rest = packet.get(40..).unwrap_or_default();
    let mut is_later_fragment = false;
    for _ in 0..MAXIMUM_EXTENSIONS {
        let [next, size, ..] = *rest else { break };
        let length = match protocol {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: units of 8 bytes, the first not counted.
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(size) + 1) * 8,
            // Fragment: fixed.
            44 => {
                let Some([_, _, o0, o1]) = rest.first_chunk::<4>() else { break };
                is_later_fragment = u16::from_be_bytes([*o0, *o1]) & 0xfff8 != 0;
                8
            }
            // Authentication: units of 4 bytes, the first two not counted (RFC 4302).
            51 => (usize::from(size) + 2) * 4,
            _ => break,
        };
        protocol = next;
        rest = rest.get(length..).unwrap_or_default();
        if is_later_fragment {
            rest = &[];
        }
    }
    Some(Headers {
        protocol,
        source: Ipv6Addr::from(source).into(),
        destination: Ipv6Addr::from(destination).into(),
        ports: parse_ports(protocol, rest),
        icmp: parse_icmp(protocol, rest),
        is_later_fragment,
        length: 40 + u32::from(u16::from_be_bytes([header[4], header[5]])),
    })
}

/// The ports are the first four bytes of every transport that has ports.
fn parse_ports(protocol: u8, transport: &[u8]) -> Option<Ports> {
    if !matches!(protocol, TCP | UDP | UDP_LITE | SCTP | DCCP) {
        return None;
    }
    let [s0, s1, d0, d1] = *transport.first_chunk::<4>()?;
    Some(Ports { source: u16::from_be_bytes([s0, s1]), destination: u16::from_be_bytes([d0, d1]) })
}

/// Type and code are the first two bytes.
fn parse_icmp(protocol: u8, transport: &[u8]) -> Option<IcmpKind> {
    if !matches!(protocol, ICMP | ICMP_V6) {
        return None;
    }
    let [kind, code] = *transport.first_chunk::<2>()?;
    Some(IcmpKind { kind, code })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 header without options, then `transport`.
    fn v4(protocol: u8, fragment: u16, transport: &[u8]) -> Vec<u8> {
        let length = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
        let fragment = fragment.to_be_bytes();
        let mut packet =
            vec![0x45, 0, length[0], length[1], 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0];
        packet.extend([10, 0, 0, 1, 192, 0, 2, 7]);
        packet.extend(transport);
        packet
    }

    /// An IPv6 header, then `rest`.
    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
        packet.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(rest);
        packet
    }

    const PORTS: [u8; 8] = [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 0];

    #[test]
    fn reads_ports_and_icmp() {
        let headers = parse(&v4(TCP, 0, &PORTS)).unwrap();
        assert_eq!(headers.flow().destination, "192.0.2.7:443".parse().unwrap());
        assert_eq!(headers.flow().source, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(headers.length, 28);
        let headers = parse(&v6(UDP, &PORTS)).unwrap();
        assert_eq!(headers.flow().destination, "[2001:db8::7]:443".parse().unwrap());
        assert_eq!(headers.length, 48);
        let headers = parse(&v4(ICMP, 0, &[8, 0])).unwrap();
        assert_eq!(headers.icmp, Some(IcmpKind { kind: 8, code: 0 }));
        assert_eq!(headers.ports, None);
        assert_eq!(parse(&v4(SCTP, 0, &PORTS)).unwrap().ports.unwrap().destination, 443);
    }

    #[test]
    fn options_and_extension_headers_are_skipped() {
        let mut packet = v4(UDP, 0, &[]);
        packet[0] = 0x46;
        packet.extend([1, 1, 1, 0]);
        packet.extend(PORTS);
        assert_eq!(parse(&packet).unwrap().ports.unwrap().destination, 443);

        let mut rest = vec![60, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop, then destination options
        rest.extend([44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // 16 bytes, then fragment
        rest.extend([TCP, 0, 0, 1, 0, 0, 0, 9]); // the first fragment
        rest.extend(PORTS);
        let headers = parse(&v6(0, &rest)).unwrap();
        assert_eq!((headers.protocol, headers.ports.unwrap().source), (TCP, 40000));
        assert!(!headers.is_later_fragment);
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let headers = parse(&v4(UDP, 0x2001, &PORTS)).unwrap();
        assert!(headers.is_later_fragment);
        assert_eq!(headers.ports, None);
        let mut rest = vec![UDP, 0, 0, 8, 0, 0, 0, 9];
        rest.extend(PORTS);
        let headers = parse(&v6(44, &rest)).unwrap();
        assert!(headers.is_later_fragment);
        assert_eq!((headers.protocol, headers.ports), (UDP, None));
    }

    #[test]
    fn cut_packets_show_what_is_there() {
        let whole = v4(TCP, 0, &PORTS);
        assert_eq!(parse(&whole[..19]), None);
        assert_eq!(parse(&whole[..22]).unwrap().ports, None);
        assert_eq!(parse(&whole[..24]).unwrap().ports.unwrap().destination, 443);
        let mut lying = whole;
        lying[0] = 0x41;
        assert_eq!(parse(&lying).unwrap().ports, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6 in any::<bool>()) {
            if let Some(first) = bytes.first_mut() {
                *first = (*first & 0xf) | if v6 { 0x60 } else { 0x40 };
            }
            prop_assert_eq!(parse(&bytes).is_some(), bytes.len() >= if v6 { 40 } else { 20 });
        }
    }
}
