//! The expressions of rules, in the kernel's own terms.

use std::time::Duration;

/// One of the sixteen 4-byte registers.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Register(u8);

impl Register {
    /// The first register.
    pub const FIRST: Self = Self(0);

    /// The register `words` behind this one.
    ///
    /// # Panics
    /// When there is none: a mistake in the plan, not in its input.
    #[must_use]
    pub const fn plus(self, words: u8) -> Self {
        assert!(self.0 + words < 16, "nftables has 16 registers");
        Self(self.0 + words)
    }

    /// Its number, from 0.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The register with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        if number < 16 { Some(Self(number)) } else { None }
    }
}

/// Facts about a packet outside its bytes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MetaKey {
    /// The length of the packet, or of the frame at an interface, 4 bytes.
    Length,
    /// The link layer's protocol, 2 bytes, network byte order.
    Protocol,
    /// The index of the incoming interface, 4 bytes.
    InputIndex,
    /// The index of the outgoing interface, 4 bytes.
    OutputIndex,
    /// The name of the incoming interface, 16 bytes.
    InputName,
    /// The name of the outgoing interface, 16 bytes.
    OutputName,
    /// The user that opened the socket, 4 bytes; breaks the rule for packets without a process's socket.
    SocketUser,
    /// The routing realm, 4 bytes; breaks the rule for packets that were not routed.
    RouteRealm,
    /// IPv4 (2) or IPv6 (10), 1 byte.
    NetworkProtocol,
    /// The number of the IP protocol, 1 byte.
    TransportProtocol,
    /// To this host, broadcast, multicast, 1 byte.
    PacketType,
    /// The kind of the incoming interface, 16 bytes: `bridge`.
    InputKind,
    /// The kind of the outgoing interface, 16 bytes.
    OutputKind,
}

/// Where a payload's offset counts from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PayloadBase {
    /// The link layer's header.
    Link,
    /// The IP header.
    Network,
    /// The header of TCP, UDP, ICMP.
    Transport,
}

/// How a register is compared.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// At least.
    AtLeast,
    /// At most.
    AtMost,
}

/// Facts of connection tracking.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ConntrackKey {
    /// A bit set, 4 bytes: invalid 1, established 2, related 4, new 8, untracked 64.
    State,
    /// 0 for the opener's direction, 1 for replies; 1 byte; breaks the rule for untracked packets.
    Direction,
    /// A bit set, 4 bytes: confirmed 8, destination translated 32; breaks the rule for untracked packets.
    Status,
}

/// What becomes of a packet.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// It passes this base chain.
    Accept,
    /// It is dropped.
    Drop,
    /// The calling chain goes on.
    Return,
    /// Another chain decides, then this one goes on.
    Jump(String),
    /// Another chain decides.
    Goto(String),
}

/// How a sender is told that its packet was stopped.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rejection {
    /// A TCP reset.
    TcpReset,
    /// ICMP or `ICMPv6` "administratively prohibited".
    AdministrativelyProhibited,
}

/// One expression of a rule.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Expression {
    /// Loads a fact about the packet.
    Meta {
        /// The fact.
        key: MetaKey,
        /// Where to.
        to: Register,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Where `offset` counts from.
        base: PayloadBase,
        /// The first byte.
        offset: u32,
        /// How many bytes.
        length: u32,
        /// Where to.
        to: Register,
    },
    /// Loads a constant.
    Load {
        /// Where to.
        to: Register,
        /// The constant.
        value: Vec<u8>,
    },
    /// Ends the rule unless the comparison holds.
    Compare {
        /// The register.
        from: Register,
        /// How.
        how: Comparison,
        /// With what.
        with: Vec<u8>,
    },
    /// Ands a register with a mask, in place.
    Mask {
        /// The register.
        register: Register,
        /// The mask.
        mask: Vec<u8>,
    },
    /// Turns a number of 8 bytes in a register into network byte order, in place: only then comparisons mean more and less.
    NetworkOrder {
        /// The register.
        register: Register,
    },
    /// Ends the rule unless the set has the key that starts in the register.
    Lookup {
        /// The set.
        set: String,
        /// Where the key starts.
        from: Register,
        /// Ends the rule if it has.
        negated: bool,
    },
    /// Adds the key that starts in the register, or sets its timeout anew; ends the rule when the set is full.
    Update {
        /// The set.
        set: String,
        /// Where the key starts.
        from: Register,
        /// The timeout.
        timeout: Duration,
    },
    /// Loads a fact of connection tracking.
    Conntrack {
        /// The fact.
        key: ConntrackKey,
        /// Where to.
        to: Register,
    },
    /// Has connection tracking look the packet's flow up, and keep it, in another zone than other flows, as far as the opener's
    /// direction goes; replies are looked up as always. Only in front of connection tracking.
    SetOriginalZone {
        /// The register with the zone's number: 2 bytes, host byte order; 0 is the zone of everything else.
        from: Register,
    },
    /// Loads the inode number (8 bytes) of the ancestor at `level` of the socket's cgroup; ends the rule for packets
    /// without a full socket, and when the cgroup is not that deep.
    SocketCgroup {
        /// The depth in the v2 hierarchy.
        level: u32,
        /// Where to.
        to: Register,
    },
    /// Counts in the table's counter of this name.
    Count(String),
    /// Sends the packet's start to an NFLOG group.
    Log {
        /// The group.
        group: u16,
        /// The prefix.
        prefix: String,
    },
    /// Drops the packet and tells the sender.
    Reject(Rejection),
    /// Sends the flow to a port of this host: on the loopback address for what this host sends, else on the first address
    /// of the interface that the packet came by.
    Redirect {
        /// The register with the port.
        port: Register,
    },
    /// Decides.
    Verdict(Verdict),
    /// An expression that no rule set of ours has, as read back: its name.
    Unknown(String),
}
