//! The names that every world has; tests add and change what they need.

use crate::attacker::{ATTACKER_V4, ATTACKER_ZONE};
use crate::server::dns::NameServer;
use crate::server::git::GIT_HOST;
use crate::server::github;
use crate::server::package_index::{FILES_HOST, INDEX_HOST};
use anyhow::Result;
use std::net::SocketAddr;

/// Names, their IPv4 and their IPv6 addresses. Addresses in `198.51.100.0/24` and `2001:db8:1::/64` have web servers.
const ADDRESSES: &[(&str, &[&str])] = &[
    ("ok.test", &["198.51.100.10", "2001:db8:1::10"]),
    ("api.ok.test", &["198.51.100.11", "2001:db8:1::11"]),
    ("v4.ok.test", &["198.51.100.12"]),
    ("v6.ok.test", &["2001:db8:1::13"]),
    ("many.ok.test", &["198.51.100.14", "198.51.100.15", "198.51.100.16", "2001:db8:1::14"]),
    ("other.test", &["198.51.100.18", "2001:db8:1::18"]),
    (GIT_HOST, &["198.51.100.20", "2001:db8:1::20"]),
    (INDEX_HOST, &["198.51.100.21", "2001:db8:1::21"]),
    (FILES_HOST, &["198.51.100.22", "2001:db8:1::22"]),
    ("*.wild.test", &["198.51.100.30", "2001:db8:1::30"]),
    // A content delivery network: one address for many customers.
    ("edge.cdn.test", &["198.51.100.40", "2001:db8:1::40"]),
    ("tenant.cdn.test", &["198.51.100.40", "2001:db8:1::40"]),
    // Addresses that no name of the internet should have.
    ("loopback.special.test", &["127.0.0.1", "::1"]),
    ("private.special.test", &["10.0.0.1", "fd00::1"]),
    ("carrier.special.test", &["100.64.0.1"]),
    ("link-local.special.test", &["169.254.1.1", "fe80::1"]),
    ("metadata.special.test", &["169.254.169.254", "fd00:ec2::254"]),
    ("multicast.special.test", &["224.0.0.1", "ff02::1"]),
    ("unspecified.special.test", &["0.0.0.0", "::"]),
    ("mapped.special.test", &["::ffff:127.0.0.1", "::ffff:10.0.0.1"]),
    ("mixed.special.test", &["198.51.100.51", "127.0.0.1"]),
];

/// Aliases.
const ALIASES: &[(&str, &str)] = &[
    ("www.ok.test", "ok.test."),
    ("shop.test", "shop.cdn.test."),
    ("shop.cdn.test", "edge.cdn.test."),
    ("loop.test", "pool.test."),
    ("pool.test", "loop.test."),
    ("dangling.test", "nowhere.test."),
    // An allowed name that leads to the attacker.
    ("detour.test", "www.evil.test."),
];

/// Fills the zone.
pub(super) fn fill(dns: &NameServer) -> Result<()> {
    for (name, addresses) in ADDRESSES {
        dns.addresses(name, addresses)?;
    }
    dns.addresses_with_ttl("short.test", 1, &["198.51.100.50", "2001:db8:1::50"])?;
    for (name, target) in ALIASES {
        dns.alias(name, target)?;
    }
    for (host, number) in github::HOSTS.iter().zip(100..) {
        let (v4, v6) = (format!("198.51.100.{number}"), format!("2001:db8:1::{number}"));
        dns.addresses(host, &[&v4, &v6])?;
    }
    dns.text("text.ok.test", "a text");
    dns.delegate(ATTACKER_ZONE, SocketAddr::from((ATTACKER_V4, 53)));
    Ok(())
}
