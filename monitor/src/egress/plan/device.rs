//! The backstop on uplinks against frames that bypass IP.
//!
//! A packet of the IP stack carries its route, so that its realm can be told (mostly 0); a frame of an `AF_PACKET`
//! socket, also with `PACKET_QDISC_BYPASS`, has none. A macvlan child in another network namespace keeps its route but
//! has an Ethernet address of its own.

use super::build::{RuleBuilder, protocol, rule};
use super::{Plan, chain};
use crate::egress::expression::{Comparison, MetaKey};
use crate::egress::log_prefix::{Path, RuleKind};
use crate::egress::rule_set::{
    Chain, ChainKind, ChainPolicy, Hook, HookPoint, Rule, Table, TableFamily,
};
use crate::egress::target::IpFamily;

/// `ETH_P_ARP` and `ETH_P_IP`.
const ARP: [u8; 2] = 0x0806_u16.to_be_bytes();
const IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();

/// The length of an ARP frame for IPv4 on Ethernet (RFC 826), header included, without padding.
const ARP_FRAME_BYTES: u32 = 14 + 28;

impl Plan<'_> {
    pub(super) fn netdev_table(&self) -> Table {
        let mut chains: Vec<Chain> = self
            .target
            .uplinks
            .iter()
            .map(|uplink| {
                let mut rules = Vec::new();
                if let Some(mac) = uplink.mac {
                    let foreign = rule().link_bytes(6, &mac, Comparison::NotEqual);
                    rules.push(self.stop_frame(foreign));
                }
                rules.push(rule().goto("frames"));
                Chain {
                    name: format!("egress_{}", uplink.interface.index),
                    hook: Some(Hook {
                        kind: ChainKind::Filter,
                        point: HookPoint::Egress(uplink.interface.name.clone()),
                        priority: super::FILTER_PRIORITY,
                        policy: ChainPolicy::Accept,
                    }),
                    rules,
                }
            })
            .collect();
        chains.push(chain(
            "frames",
            vec![
                rule().has(MetaKey::RouteRealm).accept(),
                // A process has no business making ARP; the kernel's own has no socket.
                self.stop_frame(rule().meta(MetaKey::Protocol, ARP).has(MetaKey::SocketUser)),
                // A socket of another network namespace can't be told, so that ARP of a macvlan child with a forged address
                // is bounded to what ARP says.
                rule()
                    .meta(MetaKey::Protocol, ARP)
                    .meta(MetaKey::Length, ARP_FRAME_BYTES.to_ne_bytes())
                    .accept(),
                // A DHCP client without an address yet: broadcast, never routed.
                rule()
                    .meta(MetaKey::Protocol, IPV4)
                    .link_bytes(0, &[0xff; 6], Comparison::Equal)
                    .destination(IpFamily::V4, &[0xff; 4])
                    .transport(protocol::UDP)
                    .source_port(68)
                    .destination_port(67)
                    .accept(),
                self.stop_frame(rule()),
            ],
        ));
        Table {
            family: TableFamily::Netdev,
            counters: RuleKind::FRAMES.map(RuleKind::counter).into(),
            sets: Vec::new(),
            chains,
        }
    }

    /// Counts and logs each frame, and drops it, or in audit mode accepts. Interfaces know no flows, so that frames that
    /// pass are logged one by one, too.
    fn stop_frame(&self, rule: RuleBuilder) -> Rule {
        let kind = if self.audit { RuleKind::WouldBlockFrame } else { RuleKind::Frame };
        self.stop(self.logger.log(rule, kind, Path::Device))
    }
}
