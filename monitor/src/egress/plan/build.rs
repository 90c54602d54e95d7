//! Small pieces that rules are made of.

use crate::egress::expression::{
    Comparison, ConntrackKey, Expression, MetaKey, PayloadBase, Register, Rejection, Verdict,
};
use crate::egress::log_prefix::{LogPrefix, Path, RuleKind};
use crate::egress::rule_set::Rule;
use crate::egress::target::{CgroupId, IpFamily, TableName};

/// IP protocol numbers (IANA).
pub(super) mod protocol {
    pub(in crate::egress::plan) const ICMP: u8 = 1;
    pub(in crate::egress::plan) const IGMP: u8 = 2;
    pub(in crate::egress::plan) const TCP: u8 = 6;
    pub(in crate::egress::plan) const UDP: u8 = 17;
    pub(in crate::egress::plan) const ICMPV6: u8 = 58;
}

/// Bits of `ct state` (`NF_CT_STATE_BIT` of the kernel).
pub(super) mod state {
    /// `new`: no packet came back yet.
    pub(in crate::egress::plan) const NEW: u32 = 8;
    pub(in crate::egress::plan) const ESTABLISHED: u32 = 2;
    pub(in crate::egress::plan) const RELATED: u32 = 4;
}

/// Bits of `ct status` (`enum ip_conntrack_status`).
pub(super) mod status {
    pub(in crate::egress::plan) const CONFIRMED: u32 = 8;
    pub(in crate::egress::plan) const DESTINATION_NAT: u32 = 32;
}

/// The index of the loopback interface, which the kernel makes first in each network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const fn network_protocol(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// The words of 4 bytes that an address takes in the registers.
const fn address_words(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 1,
        IpFamily::V6 => 4,
    }
}

/// The length of an address, and the offset of the source address in the IP header.
const fn address_layout(family: IpFamily) -> (u32, u32) {
    match family {
        IpFamily::V4 => (4, 12),
        IpFamily::V6 => (16, 8),
    }
}

/// The name of an interface, or of a kind of interfaces, as a key: padded with zeroes to 16 bytes.
pub(super) fn text_key(text: &str) -> Vec<u8> {
    let mut key = text.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// A rule in the making: conditions first, then what is done.
#[derive(Debug, Default)]
pub(super) struct RuleBuilder(Vec<Expression>);

/// Starts a rule.
pub(super) fn rule() -> RuleBuilder {
    RuleBuilder::default()
}

impl RuleBuilder {
    pub(super) fn with(mut self, expression: Expression) -> Self {
        self.0.push(expression);
        self
    }

    fn compare(self, how: Comparison, with: impl Into<Vec<u8>>) -> Self {
        self.with(Expression::Compare { from: Register::FIRST, how, with: with.into() })
    }

    /// Only if the fact can be told at all.
    pub(super) fn has(self, key: MetaKey) -> Self {
        self.with(Expression::Meta { key, to: Register::FIRST })
    }

    pub(super) fn meta(self, key: MetaKey, value: impl Into<Vec<u8>>) -> Self {
        self.has(key).compare(Comparison::Equal, value)
    }

    pub(super) fn meta_not(self, key: MetaKey, value: impl Into<Vec<u8>>) -> Self {
        self.has(key).compare(Comparison::NotEqual, value)
    }

    pub(super) fn meta_in(self, key: MetaKey, set: &str) -> Self {
        self.has(key).lookup(set)
    }

    pub(super) fn meta_not_in(self, key: MetaKey, set: &str) -> Self {
        self.has(key).with(Expression::Lookup {
            set: set.to_owned(),
            from: Register::FIRST,
            negated: true,
        })
    }

    pub(super) fn lookup(self, set: &str) -> Self {
        self.with(Expression::Lookup { set: set.to_owned(), from: Register::FIRST, negated: false })
    }

    pub(super) fn family(self, family: IpFamily) -> Self {
        self.meta(MetaKey::NetworkProtocol, [network_protocol(family)])
    }

    pub(super) fn transport(self, protocol: u8) -> Self {
        self.meta(MetaKey::TransportProtocol, [protocol])
    }

    pub(super) fn arrives_by_loopback(self) -> Self {
        self.meta(MetaKey::InputIndex, LOOPBACK_INDEX.to_ne_bytes())
    }

    pub(super) fn leaves_by_loopback(self) -> Self {
        self.meta(MetaKey::OutputIndex, LOOPBACK_INDEX.to_ne_bytes())
    }

    pub(super) fn leaves_otherwise(self) -> Self {
        self.meta_not(MetaKey::OutputIndex, LOOPBACK_INDEX.to_ne_bytes())
    }

    fn load(self, base: PayloadBase, offset: u32, length: u32, to: Register) -> Self {
        self.with(Expression::Payload { base, offset, length, to })
    }

    pub(super) fn link_bytes(self, offset: u32, value: &[u8], how: Comparison) -> Self {
        let length = u32::try_from(value.len()).unwrap_or(0);
        self.load(PayloadBase::Link, offset, length, Register::FIRST).compare(how, value)
    }

    pub(super) fn transport_bytes(self, offset: u32, value: &[u8]) -> Self {
        let length = u32::try_from(value.len()).unwrap_or(0);
        self.load(PayloadBase::Transport, offset, length, Register::FIRST)
            .compare(Comparison::Equal, value)
    }

    pub(super) fn load_source(self, family: IpFamily, to: Register) -> Self {
        let (length, offset) = address_layout(family);
        self.load(PayloadBase::Network, offset, length, to)
    }

    pub(super) fn load_destination(self, family: IpFamily, to: Register) -> Self {
        let (length, offset) = address_layout(family);
        self.load(PayloadBase::Network, offset + length, length, to)
    }

    /// Whether the first two bytes of the destination lie in the range.
    pub(super) fn destination_starts(
        self,
        family: IpFamily,
        first: [u8; 2],
        last: [u8; 2],
    ) -> Self {
        let (length, offset) = address_layout(family);
        self.family(family)
            .load(PayloadBase::Network, offset + length, 2, Register::FIRST)
            .compare(Comparison::AtLeast, first)
            .compare(Comparison::AtMost, last)
    }

    pub(super) fn load_source_port(self, to: Register) -> Self {
        self.load(PayloadBase::Transport, 0, 2, to)
    }

    pub(super) fn load_destination_port(self, to: Register) -> Self {
        self.load(PayloadBase::Transport, 2, 2, to)
    }

    pub(super) fn destination(self, family: IpFamily, address: &[u8]) -> Self {
        self.load_destination(family, Register::FIRST).compare(Comparison::Equal, address)
    }

    pub(super) fn source_port(self, port: u16) -> Self {
        self.load_source_port(Register::FIRST).compare(Comparison::Equal, port.to_be_bytes())
    }

    pub(super) fn destination_port(self, port: u16) -> Self {
        self.load_destination_port(Register::FIRST).compare(Comparison::Equal, port.to_be_bytes())
    }

    pub(super) fn destination_ports(self, first: u16, last: u16) -> Self {
        self.load_destination_port(Register::FIRST)
            .compare(Comparison::AtLeast, first.to_be_bytes())
            .compare(Comparison::AtMost, last.to_be_bytes())
    }

    /// The type of ICMP or `ICMPv6`.
    pub(super) fn load_icmp_type(self) -> Self {
        self.load(PayloadBase::Transport, 0, 1, Register::FIRST)
    }

    pub(super) fn icmp_type_is(self, value: u8) -> Self {
        self.load_icmp_type().compare(Comparison::Equal, [value])
    }

    /// SYN and ACK, whatever else.
    pub(super) fn tcp_syn_ack(self) -> Self {
        self.load(PayloadBase::Transport, 13, 1, Register::FIRST)
            .with(Expression::Mask { register: Register::FIRST, mask: vec![0x12] })
            .compare(Comparison::Equal, [0x12])
    }

    /// Loads the key of the sets of exact endpoints: destination, protocol, port.
    pub(super) fn load_endpoint_key(self, family: IpFamily, key: KeySource) -> Self {
        let words = address_words(family);
        let loaded = self.load_destination(family, Register::FIRST).with(Expression::Meta {
            key: MetaKey::TransportProtocol,
            to: Register::FIRST.plus(words),
        });
        let port = Register::FIRST.plus(words + 1);
        match key {
            KeySource::Port => loaded.load_destination_port(port),
            KeySource::Echo => {
                loaded.with(Expression::Load { to: port, value: 0_u32.to_ne_bytes().to_vec() })
            }
        }
    }

    /// Loads the key of the adopted flows: our address, our port, their address, their port.
    pub(super) fn load_flow_key(self, family: IpFamily, outgoing: bool) -> Self {
        let words = address_words(family);
        let [local_address, local_port, remote_address, remote_port] =
            [0, words, words + 1, 2 * words + 1].map(|word| Register::FIRST.plus(word));
        if outgoing {
            self.load_source(family, local_address)
                .load_source_port(local_port)
                .load_destination(family, remote_address)
                .load_destination_port(remote_port)
        } else {
            self.load_destination(family, local_address)
                .load_destination_port(local_port)
                .load_source(family, remote_address)
                .load_source_port(remote_port)
        }
    }

    fn conntrack_bits(self, key: ConntrackKey, bits: u32, how: Comparison) -> Self {
        self.with(Expression::Conntrack { key, to: Register::FIRST })
            .with(Expression::Mask { register: Register::FIRST, mask: bits.to_ne_bytes().to_vec() })
            .compare(how, 0_u32.to_ne_bytes())
    }

    pub(super) fn state_any(self, bits: u32) -> Self {
        self.conntrack_bits(ConntrackKey::State, bits, Comparison::NotEqual)
    }

    pub(super) fn status_none(self, bits: u32) -> Self {
        self.conntrack_bits(ConntrackKey::Status, bits, Comparison::Equal)
    }

    pub(super) fn status_any(self, bits: u32) -> Self {
        self.conntrack_bits(ConntrackKey::Status, bits, Comparison::NotEqual)
    }

    /// A packet towards the side that opened the flow.
    pub(super) fn reply(self) -> Self {
        self.with(Expression::Conntrack { key: ConntrackKey::Direction, to: Register::FIRST })
            .compare(Comparison::Equal, [1])
    }

    pub(super) fn cgroup(self, cgroup: CgroupId) -> Self {
        self.with(Expression::SocketCgroup { level: cgroup.level, to: Register::FIRST })
            .compare(Comparison::Equal, cgroup.id.to_ne_bytes())
    }

    pub(super) fn cgroup_in(self, level: u32, set: &str) -> Self {
        self.with(Expression::SocketCgroup { level, to: Register::FIRST }).lookup(set)
    }

    /// A socket whose cgroup at `level` is younger than `cgroup`: the kernel numbers groups in the order in which they are
    /// made, and never uses a number twice (`idr_alloc_cyclic` with a generation, fs/kernfs/dir.c).
    pub(super) fn cgroup_younger_than(self, level: u32, cgroup: CgroupId) -> Self {
        self.with(Expression::SocketCgroup { level, to: Register::FIRST })
            .with(Expression::NetworkOrder { register: Register::FIRST })
            .compare(Comparison::AtLeast, cgroup.id.saturating_add(1).to_be_bytes())
    }

    /// A packet of a full socket: neither a connection request nor TIME-WAIT, nor without a socket.
    pub(super) fn full_socket(self) -> Self {
        self.with(Expression::SocketCgroup { level: 0, to: Register::FIRST })
    }

    pub(super) fn user(self, uid: u32) -> Self {
        self.meta(MetaKey::SocketUser, uid.to_ne_bytes())
    }

    pub(super) fn count(self, counter: &str) -> Self {
        self.with(Expression::Count(counter.to_owned()))
    }

    fn end(mut self, verdict: Verdict) -> Rule {
        self.0.push(Expression::Verdict(verdict));
        Rule(self.0)
    }

    pub(super) fn accept(self) -> Rule {
        self.end(Verdict::Accept)
    }

    pub(super) fn drop(self) -> Rule {
        self.end(Verdict::Drop)
    }

    pub(super) fn jump(self, chain: impl Into<String>) -> Rule {
        self.end(Verdict::Jump(chain.into()))
    }

    pub(super) fn goto(self, chain: impl Into<String>) -> Rule {
        self.end(Verdict::Goto(chain.into()))
    }

    pub(super) fn reject(self, how: Rejection) -> Rule {
        Rule(self.with(Expression::Reject(how)).0)
    }

    /// A rule that decides nothing.
    pub(super) fn done(self) -> Rule {
        Rule(self.0)
    }
}

/// Where the port of an endpoint's key comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum KeySource {
    /// The destination port.
    Port,
    /// ICMP echo: port 0.
    Echo,
}

/// What the rules of one table log with.
#[derive(Clone, Debug)]
pub(super) struct Logger {
    /// The table.
    pub(super) table: TableName,
    /// The NFLOG group.
    pub(super) group: u16,
}

impl Logger {
    /// Counts and logs.
    pub(super) fn log(&self, rule: RuleBuilder, kind: RuleKind, path: Path) -> RuleBuilder {
        let prefix = LogPrefix { table: self.table.clone(), kind, path }.to_string();
        rule.count(kind.counter()).with(Expression::Log { group: self.group, prefix })
    }
}
