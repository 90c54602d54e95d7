//! Addresses of special use: those that are not reached over the internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 networks of special use: first address, prefix length, use.
///
/// From the IANA IPv4 Special-Purpose Address Registry (RFC 6890 and its updates), every entry that is not globally
/// reachable, and multicast (RFC 5771). Two kinds are left out on purpose: the documentation networks (192.0.2.0/24,
/// 198.51.100.0/24, 203.0.113.0/24), which lead nowhere and stand for the internet in tests; and the anycast entries that
/// are globally reachable.
const SPECIAL_IPV4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, "this-network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private-use"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 169, 254), 32, "cloud-metadata"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private-use"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "IETF-protocol"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4-relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private-use"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// IPv6 networks of special use: first address, prefix length, use.
///
/// From the IANA IPv6 Special-Purpose Address Registry (RFC 6890 and its updates), every entry that is not globally
/// reachable or that carries an IPv4 address inside, and multicast (RFC 4291). `2001:db8::/32` and
/// `3fff::/20` (documentation) are left out as for IPv4. `fd00:ec2::254` is EC2's instance metadata service.
const SPECIAL_IPV6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::UNSPECIFIED, 96, "IPv4-compatible"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4-mapped"),
    (Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96, "IPv4-translated"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "local-NAT64"),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, "discard-only"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, "Teredo"),
    (Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48, "benchmarking"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16, "segment-routing"),
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128, "cloud-metadata"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "unique-local"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// NAT64's well-known prefix (RFC 6052): the IPv4 address in its last 32 bits is what is reached.
const NAT64: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// The special use of `address`, or `None` when it is an ordinary one.
pub fn special_use(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_ipv4(address),
        IpAddr::V6(address) if in_ipv6(address, NAT64.0, NAT64.1) => {
            let [.., a, b, c, d] = address.octets();
            special_ipv4(Ipv4Addr::new(a, b, c, d))
        }
        IpAddr::V6(address) => SPECIAL_IPV6
            .iter()
            .find(|(network, prefix, _)| in_ipv6(address, *network, *prefix))
            .map(|(.., usage)| *usage),
    }
}

fn special_ipv4(address: Ipv4Addr) -> Option<&'static str> {
    SPECIAL_IPV4
        .iter()
        .find(|(network, prefix, _)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits()
        })
        .map(|(.., usage)| *usage)
}

fn in_ipv6(address: Ipv6Addr, network: Ipv6Addr, prefix: u8) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    address.to_bits() & mask == network.to_bits()
}

#[cfg(test)]
mod tests {
    use super::special_use;

    #[test]
    fn special_addresses_are_known() {
        for (address, usage) in [
            ("0.0.0.0", Some("this-network")),
            ("10.1.2.3", Some("private-use")),
            ("100.64.0.1", Some("shared")),
            ("100.128.0.1", None),
            ("127.0.0.53", Some("loopback")),
            ("169.254.169.254", Some("cloud-metadata")),
            ("169.254.170.2", Some("link-local")),
            ("172.15.255.255", None),
            ("172.16.0.1", Some("private-use")),
            ("172.31.255.255", Some("private-use")),
            ("172.32.0.1", None),
            ("192.168.1.1", Some("private-use")),
            ("203.0.113.7", None),
            ("224.0.0.251", Some("multicast")),
            ("255.255.255.255", Some("reserved")),
            ("140.82.112.3", None),
            ("::", Some("unspecified")),
            ("::1", Some("loopback")),
            ("::7f00:1", Some("IPv4-compatible")),
            ("::ffff:140.82.112.3", Some("IPv4-mapped")),
            ("64:ff9b::10.0.0.1", Some("private-use")),
            ("64:ff9b::169.254.169.254", Some("cloud-metadata")),
            ("64:ff9b::140.82.112.3", None),
            ("64:ff9b:1::1", Some("local-NAT64")),
            ("2001:0:1::1", Some("Teredo")),
            ("2001:db8::66", None),
            ("2002:a00:1::", Some("6to4")),
            ("fd00:ec2::254", Some("cloud-metadata")),
            ("fd12::1", Some("unique-local")),
            ("fe80::1", Some("link-local")),
            ("ff02::fb", Some("multicast")),
            ("2606:50c0:8000::153", None),
        ] {
            assert_eq!(special_use(address.parse().unwrap()), usage, "{address}");
        }
    }
}
