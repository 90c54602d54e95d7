//! From a rule set to the messages of one transaction.

use super::socket::Batch;
use super::wire::{Attributes, kernel};
use crate::egress::expression::{
    Comparison, ConntrackKey, Expression, MetaKey, PayloadBase, Register, Rejection, Verdict,
};
use crate::egress::rule_set::{
    Chain, ChainKind, ChainPolicy, Element, HookPoint, KeyField, Rule, RuleSet, Set, SetKind,
    Table, TableFamily,
};
use crate::egress::target::OwnerMode;
use std::time::Duration;

/// Elements go into one message until it has this size: an attribute has at most 65 535 bytes.
const MAX_ELEMENTS_BYTES: usize = 60_000;

/// A value to put into an element of a set.
#[derive(Clone, Copy, Debug)]
pub(super) struct ElementValue<'a> {
    pub(super) key: &'a [u8],
    pub(super) end: Option<&'a [u8]>,
    pub(super) timeout: Option<Duration>,
}

impl<'a> From<&'a Element> for ElementValue<'a> {
    fn from(element: &'a Element) -> Self {
        Self { key: &element.key, end: element.end.as_deref(), timeout: None }
    }
}

pub(super) const fn family_number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Inet => kernel::NFPROTO_INET,
        TableFamily::Netdev => kernel::NFPROTO_NETDEV,
    }
}

pub(super) const fn owner_flags(owner: OwnerMode) -> u32 {
    match owner {
        OwnerMode::None => 0,
        OwnerMode::Owner => kernel::TABLE_OWNER,
        OwnerMode::OwnerPersist => kernel::TABLE_OWNER | kernel::TABLE_PERSIST,
    }
}

/// Adds the table itself.
pub(super) fn add_table(batch: &mut Batch, family: TableFamily, name: &str, owner: OwnerMode) {
    let label = format!("table {name}");
    let flags = kernel::NLM_F_CREATE | kernel::NLM_F_EXCL;
    batch.message(kernel::NEWTABLE, flags, family_number(family), label, |body| {
        body.text(1, name).be32(2, owner_flags(owner));
    });
}

/// Deletes a table with everything in it.
pub(super) fn delete_table(batch: &mut Batch, family: TableFamily, name: &str) {
    let label = format!("old table {name}");
    batch.message(kernel::DELTABLE, 0, family_number(family), label, |body| {
        body.text(1, name);
    });
}

/// Adds a table and all it holds. `counted` gives the values that counters start from.
pub(super) fn add_all(
    batch: &mut Batch,
    rules: &RuleSet,
    table: &Table,
    counted: impl Fn(&str) -> (u64, u64),
) {
    let name = rules.name.as_str();
    let family = family_number(table.family);
    add_table(batch, table.family, name, rules.owner);
    for counter in &table.counters {
        let (packets, bytes) = counted(counter);
        let label = format!("counter {counter}");
        batch.message(kernel::NEWOBJ, kernel::NLM_F_CREATE, family, label, |body| {
            body.text(1, name).text(2, counter).be32(3, kernel::OBJECT_COUNTER).nest(4, |data| {
                data.be64(1, bytes).be64(2, packets);
            });
        });
    }
    for (index, set) in table.sets.iter().enumerate() {
        add_set(batch, family, name, set, index);
        add_elements(batch, family, name, &set.name, set.elements.iter().map(ElementValue::from));
    }
    for chain in &table.chains {
        add_chain(batch, family, name, chain);
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            add_rule(batch, family, name, chain, rule);
        }
    }
}

/// The kernel's flags of a set.
pub(super) const fn set_flags(kind: SetKind) -> u32 {
    match kind {
        SetKind::Exact | SetKind::Changing => 0,
        SetKind::Ranges => kernel::SET_INTERVAL | kernel::SET_CONCAT,
        SetKind::Granted => kernel::SET_TIMEOUT,
        SetKind::Active => kernel::SET_TIMEOUT | kernel::SET_EVAL,
    }
}

/// nftables' number of a key's data type, six bits for each field (`enum datatypes` of nft, for its listings).
pub(super) fn key_type(set: &Set) -> u32 {
    set.key.iter().fold(0, |number, field| {
        number << 6
            | match field {
                KeyField::Ipv4Address => 7,
                KeyField::Ipv6Address => 8,
                KeyField::Protocol => 12,
                KeyField::Port => 13,
                KeyField::IcmpType => 14,
                KeyField::InterfaceIndex => 20,
                KeyField::Icmpv6Type => 29,
                KeyField::InterfaceName => 41,
                KeyField::Cgroup => 46,
            }
    })
}

fn add_set(batch: &mut Batch, family: u8, table: &str, set: &Set, index: usize) {
    let label = format!("set {}", set.name);
    let id = u32::try_from(index + 1).unwrap_or(u32::MAX);
    batch.message(kernel::NEWSET, kernel::NLM_F_CREATE, family, label, |body| {
        body.text(1, table).text(2, &set.name).be32(3, set_flags(set.kind));
        body.be32(4, key_type(set)).be32(5, set.key_bytes()).be32(10, id);
        let size = set.size();
        if set.kind == SetKind::Ranges || size.is_some() {
            body.nest(9, |description| {
                if let Some(size) = size {
                    description.be32(1, size);
                }
                if set.kind == SetKind::Ranges {
                    description.nest(2, |fields| {
                        for field in &set.key {
                            fields.nest(1, |length| {
                                length.be32(1, field.bytes());
                            });
                        }
                    });
                }
            });
        }
    });
}

/// Adds elements, in as many messages as they need.
pub(super) fn add_elements<'a>(
    batch: &mut Batch,
    family: u8,
    table: &str,
    set: &str,
    elements: impl IntoIterator<Item = ElementValue<'a>>,
) {
    change_elements(batch, kernel::NEWSETELEM, family, table, set, elements);
}

/// Deletes elements; each must be there.
pub(super) fn delete_elements<'a>(
    batch: &mut Batch,
    family: u8,
    table: &str,
    set: &str,
    elements: impl IntoIterator<Item = ElementValue<'a>>,
) {
    change_elements(batch, kernel::DELSETELEM, family, table, set, elements);
}

fn change_elements<'a>(
    batch: &mut Batch,
    kind: u16,
    family: u8,
    table: &str,
    set: &str,
    elements: impl IntoIterator<Item = ElementValue<'a>>,
) {
    let mut elements = elements.into_iter().peekable();
    while elements.peek().is_some() {
        let label = format!("elements of set {set}");
        batch.message(kind, kernel::NLM_F_CREATE, family, label, |body| {
            body.text(1, table).text(2, set).nest(3, |list| {
                let start = list.position();
                while list.position() - start < MAX_ELEMENTS_BYTES {
                    let Some(element) = elements.next() else { break };
                    list.nest(1, |body| element_body(body, element));
                }
            });
        });
    }
}

fn element_body(body: &mut Attributes<'_>, element: ElementValue<'_>) {
    body.nest(1, |key| {
        key.bytes(1, element.key);
    });
    if let Some(end) = element.end {
        body.nest(10, |key| {
            key.bytes(1, end);
        });
    }
    if let Some(timeout) = element.timeout {
        body.be64(4, milliseconds(timeout));
    }
}

/// A timeout in the kernel's unit, at least 1 (0 would mean forever).
fn milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)
}

pub(super) const fn chain_type(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}

pub(super) const fn hook_number(point: &HookPoint) -> u32 {
    match point {
        HookPoint::Prerouting => 0,
        HookPoint::Input | HookPoint::Egress(_) => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
    }
}

pub(super) const fn policy_number(policy: ChainPolicy) -> u32 {
    match policy {
        ChainPolicy::Drop => 0,
        ChainPolicy::Accept => 1,
    }
}

fn add_chain(batch: &mut Batch, family: u8, table: &str, chain: &Chain) {
    let label = format!("chain {}", chain.name);
    batch.message(kernel::NEWCHAIN, kernel::NLM_F_CREATE, family, label, |body| {
        body.text(1, table).text(3, &chain.name);
        let Some(hook) = &chain.hook else { return };
        body.nest(4, |attributes| {
            attributes.be32(1, hook_number(&hook.point)).be32(2, hook.priority.cast_unsigned());
            if let HookPoint::Egress(device) = &hook.point {
                attributes.text(3, device);
            }
        });
        body.be32(5, policy_number(hook.policy)).text(7, chain_type(hook.kind));
    });
}

fn add_rule(batch: &mut Batch, family: u8, table: &str, chain: &Chain, rule: &Rule) {
    let label = format!("a rule of chain {}", chain.name);
    let flags = kernel::NLM_F_CREATE | kernel::NLM_F_APPEND;
    batch.message(kernel::NEWRULE, flags, family, label, |body| {
        body.text(1, table).text(2, &chain.name).nest(4, |list| {
            for expression in &rule.0 {
                list.nest(1, |body| expression_body(body, expression));
            }
        });
    });
}

fn named(body: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    body.text(1, name).nest(2, data);
}

fn register(register: Register) -> u32 {
    // NFT_REG32_00 is 8.
    u32::from(register.number()) + 8
}

/// Writes one expression.
fn expression_body(body: &mut Attributes<'_>, expression: &Expression) {
    match expression {
        Expression::Meta { key, to } => named(body, "meta", |data| {
            data.be32(1, register(*to)).be32(2, meta_key(*key));
        }),
        Expression::Payload { base, offset, length, to } => named(body, "payload", |data| {
            data.be32(1, register(*to));
            data.be32(2, payload_base(*base)).be32(3, *offset).be32(4, *length);
        }),
        Expression::Load { to, value } => named(body, "immediate", |data| {
            data.be32(1, register(*to)).nest(2, |value_body| {
                value_body.bytes(1, value);
            });
        }),
        Expression::Compare { from, how, with } => named(body, "cmp", |data| {
            data.be32(1, register(*from)).be32(2, comparison(*how)).nest(3, |value| {
                value.bytes(1, with);
            });
        }),
        Expression::Mask { register: masked, mask } => named(body, "bitwise", |data| {
            let length = u32::try_from(mask.len()).unwrap_or(0);
            data.be32(1, register(*masked)).be32(2, register(*masked)).be32(3, length);
            data.nest(4, |value| {
                value.bytes(1, mask);
            });
            data.nest(5, |value| {
                value.bytes(1, &vec![0; mask.len()]);
            });
        }),
        Expression::NetworkOrder { register: swapped } => named(body, "byteorder", |data| {
            // NFT_BYTEORDER_HTON, 8 bytes in numbers of 8 bytes.
            data.be32(1, register(*swapped)).be32(2, register(*swapped));
            data.be32(3, 1).be32(4, 8).be32(5, 8);
        }),
        Expression::Lookup { set, from, negated } => named(body, "lookup", |data| {
            data.text(1, set).be32(2, register(*from));
            if *negated {
                data.be32(5, 1);
            }
        }),
        Expression::Update { set, from, timeout } => named(body, "dynset", |data| {
            data.text(1, set).be32(3, 1).be32(4, register(*from)).be64(6, milliseconds(*timeout));
        }),
        Expression::Conntrack { key, to } => named(body, "ct", |data| {
            data.be32(1, register(*to)).be32(2, conntrack_key(*key));
        }),
        Expression::SetOriginalZone { from } => named(body, "ct", |data| {
            data.be32(2, CONNTRACK_ZONE).bytes(3, &[ORIGINAL_DIRECTION]).be32(4, register(*from));
        }),
        Expression::SocketCgroup { level, to } => named(body, "socket", |data| {
            data.be32(1, 3).be32(2, register(*to)).be32(3, *level);
        }),
        Expression::Count(counter) => named(body, "objref", |data| {
            data.be32(1, kernel::OBJECT_COUNTER).text(2, counter);
        }),
        Expression::Log { group, prefix } => named(body, "log", |data| {
            data.be16(1, *group).text(2, prefix).be32(3, LOGGED_BYTES).be16(4, 1);
        }),
        Expression::Reject(rejection) => named(body, "reject", |data| match rejection {
            Rejection::TcpReset => {
                data.be32(1, 1);
            }
            Rejection::AdministrativelyProhibited => {
                data.be32(1, 2).bytes(2, &[3]);
            }
        }),
        Expression::Redirect { port } => named(body, "redir", |data| {
            data.be32(1, register(*port));
        }),
        Expression::Verdict(verdict) => named(body, "immediate", |data| {
            data.be32(1, 0).nest(2, |value| {
                value.nest(2, |body| verdict_body(body, verdict));
            });
        }),
        Expression::Unknown(name) => named(body, name, |_| ()),
    }
}

/// `NFT_CT_ZONE`.
pub(super) const CONNTRACK_ZONE: u32 = 17;

/// `IP_CT_DIR_ORIGINAL`.
pub(super) const ORIGINAL_DIRECTION: u8 = 0;

/// The bytes of a logged packet that are copied: the headers, and the first bytes of a TLS or DNS message.
pub(super) const LOGGED_BYTES: u32 = 128;

fn verdict_body(body: &mut Attributes<'_>, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5_i32, None),
    };
    body.be32(1, code.cast_unsigned());
    if let Some(chain) = chain {
        body.text(2, chain);
    }
}

/// The kernel's numbers of the keys of `meta`.
pub(super) const fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::Length => 0,
        MetaKey::Protocol => 1,
        MetaKey::InputIndex => 4,
        MetaKey::OutputIndex => 5,
        MetaKey::InputName => 6,
        MetaKey::OutputName => 7,
        MetaKey::SocketUser => 10,
        MetaKey::RouteRealm => 13,
        MetaKey::NetworkProtocol => 15,
        MetaKey::TransportProtocol => 16,
        MetaKey::PacketType => 19,
        MetaKey::InputKind => 26,
        MetaKey::OutputKind => 27,
    }
}

pub(super) const fn payload_base(base: PayloadBase) -> u32 {
    match base {
        PayloadBase::Link => 0,
        PayloadBase::Network => 1,
        PayloadBase::Transport => 2,
    }
}

pub(super) const fn comparison(how: Comparison) -> u32 {
    match how {
        Comparison::Equal => 0,
        Comparison::NotEqual => 1,
        Comparison::AtMost => 3,
        Comparison::AtLeast => 5,
    }
}

pub(super) const fn conntrack_key(key: ConntrackKey) -> u32 {
    match key {
        ConntrackKey::State => 0,
        ConntrackKey::Direction => 1,
        ConntrackKey::Status => 2,
    }
}
