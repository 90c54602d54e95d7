//! A rule set as a value: tables, chains, sets and rules in the kernel's own terms.

use super::expression::Expression;
use super::target::{OwnerMode, TableName};
use portcullis_common::endpoint::{PortRange, Protocol};
use std::collections::BTreeSet;
use std::time::Duration;

use super::target::IpFamily;

/// What one job's enforcement consists of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuleSet {
    /// The name of every table.
    pub name: TableName,
    /// Who may change the tables.
    pub owner: OwnerMode,
    /// The tables: `inet`, and `netdev` when the egress backstop is possible.
    pub tables: Vec<Table>,
    /// Which sets hold the grants.
    pub grants: Vec<GrantSets>,
    /// Whether adding an element again sets its timeout anew on this kernel.
    pub element_update: bool,
    /// What this rule set can't enforce on this host, in words for the posture.
    pub gaps: Vec<String>,
}

impl RuleSet {
    /// The named counters of the rules.
    pub fn counters(&self) -> impl Iterator<Item = &'static str> {
        self.tables.iter().flat_map(|table| table.counters.iter().copied())
    }
}

/// The address families of nftables that are used.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum TableFamily {
    /// IPv4 and IPv6.
    Inet,
    /// Frames of one interface.
    Netdev,
}

/// One table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// Its family; its name is that of the rule set.
    pub family: TableFamily,
    /// Named counters.
    pub counters: Vec<&'static str>,
    /// Sets with their permanent elements.
    pub sets: Vec<Set>,
    /// Chains with their rules; a chain stands before the chains that jump to it.
    pub chains: Vec<Chain>,
}

/// One chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where it is hooked in; `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule(pub Vec<Expression>);

/// Where a base chain is hooked in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hook {
    /// The kind of chain.
    pub kind: ChainKind,
    /// The hook.
    pub point: HookPoint,
    /// Chains of one hook run in ascending order of their priorities.
    pub priority: i32,
    /// What becomes of a packet that no rule decided.
    pub policy: ChainPolicy,
}

/// The kinds of base chain.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ChainKind {
    /// Every packet.
    Filter,
    /// The first packet of each flow.
    Nat,
}

/// The hooks that are used.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HookPoint {
    /// Packets that arrive, before routing.
    Prerouting,
    /// Packets for this host.
    Input,
    /// Packets that pass through this host.
    Forward,
    /// Packets that this host sends.
    Output,
    /// Frames that leave by an interface, with its name.
    Egress(String),
}

/// What becomes of a packet at the end of a base chain.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ChainPolicy {
    /// It passes.
    Accept,
    /// It is dropped.
    Drop,
}

/// One field of a set's key, with nftables' own data type, so that `nft list` prints it well.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyField {
    /// An IPv4 address.
    Ipv4Address,
    /// An IPv6 address.
    Ipv6Address,
    /// The number of an IP protocol.
    Protocol,
    /// A type of ICMP.
    IcmpType,
    /// A type of `ICMPv6`.
    Icmpv6Type,
    /// A port.
    Port,
    /// The index of an interface.
    InterfaceIndex,
    /// The name of an interface, or its kind: `bridge`.
    InterfaceName,
    /// The inode number of a cgroup.
    Cgroup,
}

impl KeyField {
    /// Its length in bytes; in a key of several fields it takes whole words of 4 bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Ipv4Address | Self::InterfaceIndex => 4,
            Self::Ipv6Address | Self::InterfaceName => 16,
            Self::Protocol | Self::IcmpType | Self::Icmpv6Type => 1,
            Self::Port => 2,
            Self::Cgroup => 8,
        }
    }
}

/// What a set is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SetKind {
    /// Exact keys, permanent; they are the rule set's own and verified.
    Exact,
    /// Ranges of each field, permanent, not overlapping; they are the rule set's own and verified.
    Ranges,
    /// Exact keys that the monitor changes while the job runs; the rule set holds the first ones.
    Changing,
    /// Exact keys with timeouts, added by the monitor: grants.
    Granted,
    /// Exact keys with timeouts, added and prolonged by packets: grants in use.
    Active,
}

/// One named set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: SetKind,
    /// The fields of its key.
    pub key: Vec<KeyField>,
    /// The most elements it can hold, where they change.
    pub limit: Option<u32>,
    /// Its permanent elements.
    pub elements: BTreeSet<Element>,
}

impl Set {
    /// The size that the kernel is told. A set of exact keys with a size and no timeouts gets a hash table of that size:
    /// one that grows by itself can be read back with elements missing while it does. A set of ranges needs none.
    pub fn size(&self) -> Option<u32> {
        match self.kind {
            SetKind::Ranges => None,
            SetKind::Exact => Some(u32::try_from(self.elements.len()).unwrap_or(u32::MAX).max(1)),
            SetKind::Changing | SetKind::Granted | SetKind::Active => self.limit,
        }
    }

    /// The length of a key in bytes; a lone short field is not padded.
    pub fn key_bytes(&self) -> u32 {
        match self.key.as_slice() {
            [field] => field.bytes(),
            fields => fields.iter().map(|field| field.bytes().next_multiple_of(4)).sum(),
        }
    }
}

/// An element of a set: its key's fields in network byte order (host byte order for indices and cgroups), each of several
/// padded with zeroes to a whole number of words.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Element {
    /// The key, or the first of a range.
    pub key: Vec<u8>,
    /// The last of a range.
    pub end: Option<Vec<u8>>,
}

/// The calls that a pair of grant sets is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum GrantClass {
    /// One port of TCP or UDP, or ICMP echo with port 0: the key is address, protocol, port.
    Exact,
    /// A range of ports: the key is the address.
    Ports(Protocol, PortRange),
}

/// The sets that hold the grants of one family and class.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GrantSets {
    /// The family.
    pub family: IpFamily,
    /// The class.
    pub class: GrantClass,
    /// The set that the monitor adds to; an element lives for its grant's lifetime.
    pub granted: String,
    /// The set that packets add to and prolong; an element lives for `grace` after the last packet.
    pub active: String,
    /// The lifetime in the set `active`.
    pub grace: Duration,
    /// The most elements of each set.
    pub limit: u32,
}
