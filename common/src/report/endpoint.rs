//! Where a call went, as people and policies write it.

use crate::event::{Direction, NetworkEvent};
use std::net::IpAddr;

/// The rule of frames that bypass IP. It stops them whatever they hold: what no endpoint can be looked up for is no call.
pub const FRAME_RULE: &str = "frames that bypass IP do not leave, wherever they go";

/// The destination as an endpoint of the policy grammar, as far as the grammar can say it.
pub fn endpoint(event: &NetworkEvent) -> String {
    if event.direction == Direction::Inbound {
        return format!("from {}", peer(event));
    }
    if event.rule == FRAME_RULE {
        // No endpoint of a policy could allow it.
        return match event.address {
            address if address.is_unspecified() => format!("frame of {}", event.protocol),
            _ => format!("frame to {}", peer(event)),
        };
    }
    peer(event)
}

fn peer(event: &NetworkEvent) -> String {
    let host = match (&event.name, event.address) {
        (Some(name), _) => name.clone(),
        (None, IpAddr::V4(address)) => address.to_string(),
        (None, IpAddr::V6(address)) => format!("[{address}]"),
    };
    match (event.protocol.as_str(), event.port) {
        ("tcp", Some(port)) => format!("{host}:{port}"),
        ("icmp" | "icmpv6", _) => format!("icmp://{host}"),
        (protocol, Some(port)) => format!("{protocol}://{host}:{port}"),
        (protocol, None) => format!("{protocol}://{host}"),
    }
}
