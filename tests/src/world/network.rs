//! The wires of a world.
//!
//! ```text
//!  runner host            internet (router and servers)            attacker
//!  eth0 ──────────────── runner0            attacker0 ──────────── eth0
//!  192.0.2.10/24          192.0.2.1          203.0.113.65/26        203.0.113.66/26
//!  2001:db8:2::10/64      2001:db8:2::1      2001:db8::65/125       2001:db8::66/125
//!
//!  internet, on its loopback device: 203.0.113.53 and 2001:db8::53 (name server),
//!  198.51.100.0/24 and 2001:db8:1::/64 (every address of them is the web servers').
//! ```

use crate::attacker::DEVICE;
use crate::namespace::NetworkNamespace;
use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The runner host's IPv4 address.
pub const RUNNER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

/// The runner host's IPv6 address.
pub const RUNNER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);

/// The name server's IPv4 address.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);

/// The name server's IPv6 address.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

/// The runner host's device that leads to the internet.
pub const UPLINK: &str = "eth0";

/// Lays the wires between three new namespaces.
pub(super) fn connect(
    runner: &NetworkNamespace,
    internet: &NetworkNamespace,
    attacker: &NetworkNamespace,
) -> Result<()> {
    for namespace in [runner, internet, attacker] {
        // Addresses are usable at once, those without `nodad` too.
        namespace.sysctl("ipv6/conf/default/accept_dad", "0")?;
        namespace.sysctl("ipv6/conf/all/accept_dad", "0")?;
        // A new namespace has this machine's values: forged sources must not be dropped on the way.
        namespace.sysctl("ipv4/conf/default/rp_filter", "0")?;
        namespace.sysctl("ipv4/conf/all/rp_filter", "0")?;
        namespace.sysctl("ipv6/conf/default/disable_ipv6", "0")?;
        namespace.sysctl("ipv6/conf/all/disable_ipv6", "0")?;
    }
    internet.sysctl("ipv4/ip_forward", "1")?;
    internet.sysctl("ipv6/conf/all/forwarding", "1")?;
    for namespace in [internet, attacker] {
        // Servers take data in the first segment, with and without a cookie (ip-sysctl: 0x2, 0x200, 0x400).
        namespace.sysctl("ipv4/tcp_fastopen", "1539")?;
    }
    batch(
        internet,
        &[
            "addr add 203.0.113.53/32 dev lo",
            "addr add 2001:db8::53/128 dev lo nodad",
            "route add local 198.51.100.0/24 dev lo",
            "route add local 2001:db8:1::/64 dev lo",
            &format!(
                "link add runner0 type veth peer name {UPLINK} netns {}",
                runner.path().display()
            ),
            &format!(
                "link add attacker0 type veth peer name {DEVICE} netns {}",
                attacker.path().display()
            ),
            "addr add 192.0.2.1/24 dev runner0",
            "addr add 2001:db8:2::1/64 dev runner0 nodad",
            "addr add 203.0.113.65/26 dev attacker0",
            "addr add 2001:db8::65/125 dev attacker0 nodad",
            "link set runner0 up",
            "link set attacker0 up",
        ],
    )?;
    batch(
        runner,
        &[
            &format!("addr add {RUNNER_V4}/24 dev {UPLINK}"),
            &format!("addr add {RUNNER_V6}/64 dev {UPLINK} nodad"),
            &format!("link set {UPLINK} up"),
            "route add default via 192.0.2.1",
            "route add default via 2001:db8:2::1",
        ],
    )
}

/// Connects the attacker, whose recorder runs by now.
pub(super) fn connect_attacker(attacker: &NetworkNamespace) -> Result<()> {
    batch(
        attacker,
        &[
            &format!("addr add 203.0.113.66/26 dev {DEVICE}"),
            &format!("addr add 2001:db8::66/125 dev {DEVICE} nodad"),
            &format!("link set {DEVICE} up"),
            "route add default via 203.0.113.65",
            "route add default via 2001:db8::65",
        ],
    )
}

/// Adds an address to the internet, on which sockets can be bound.
pub(super) fn add_address(internet: &NetworkNamespace, address: IpAddr) -> Result<()> {
    // Without detection of duplicates the address can be bound at once.
    let prefix = if address.is_ipv4() { "32 dev lo" } else { "128 dev lo nodad" };
    internet.ip(&format!("addr replace {address}/{prefix}"))
}

fn batch(namespace: &NetworkNamespace, lines: &[&str]) -> Result<()> {
    namespace.tool("ip", &["-batch", "-"], Some(&lines.join("\n"))).map(drop)
}
