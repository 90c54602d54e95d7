//! From the kernel's dumps back to the terms of a rule set.
//!
//! What no rule set of ours can hold decodes to [`Expression::Unknown`], so that comparing finds it.

use super::encode::{
    CONNTRACK_ZONE, LOGGED_BYTES, ORIGINAL_DIRECTION, comparison, conntrack_key, meta_key,
    payload_base,
};
use super::wire::{Message, Parsed, kernel, malformed};
use crate::egress::expression::{
    Comparison, ConntrackKey, Expression, MetaKey, PayloadBase, Register, Rejection, Verdict,
};
use std::io;
use std::time::Duration;

/// A chain as the kernel holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FoundChain {
    pub(super) name: String,
    pub(super) hook: Option<FoundHook>,
}

/// A hook as the kernel holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FoundHook {
    pub(super) kind: String,
    pub(super) number: u32,
    pub(super) priority: i32,
    pub(super) policy: u32,
    pub(super) device: Option<String>,
}

/// A set as the kernel holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FoundSet {
    pub(super) name: String,
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_bytes: u32,
    pub(super) size: Option<u32>,
}

/// An element as the kernel holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FoundElement {
    pub(super) key: Vec<u8>,
    pub(super) end: Option<Vec<u8>>,
    /// What is left of its timeout.
    pub(super) remaining: Option<Duration>,
}

pub(super) fn chain(message: Message<'_>) -> io::Result<FoundChain> {
    let attributes = message.attributes()?;
    let hook = attributes
        .nested(4)?
        .map(|hook| {
            Ok::<_, io::Error>(FoundHook {
                kind: attributes.text(7).unwrap_or_default(),
                number: hook.be32(1).ok_or_else(malformed)?,
                priority: hook.be32(2).ok_or_else(malformed)?.cast_signed(),
                policy: attributes.be32(5).ok_or_else(malformed)?,
                device: hook.text(3),
            })
        })
        .transpose()?;
    Ok(FoundChain { name: attributes.text(3).ok_or_else(malformed)?, hook })
}

pub(super) fn set(message: Message<'_>) -> io::Result<FoundSet> {
    let attributes = message.attributes()?;
    Ok(FoundSet {
        name: attributes.text(2).ok_or_else(malformed)?,
        flags: attributes.be32(3).unwrap_or_default(),
        key_type: attributes.be32(4).unwrap_or_default(),
        key_bytes: attributes.be32(5).ok_or_else(malformed)?,
        size: attributes.nested(9)?.and_then(|description| description.be32(1)),
    })
}

pub(super) fn elements(message: Message<'_>, found: &mut Vec<FoundElement>) -> io::Result<()> {
    let Some(list) = message.attributes()?.nested(3)? else { return Ok(()) };
    for (_, element) in list.iter() {
        let element = Parsed::parse(element)?;
        let key = element.nested(1)?.and_then(|key| key.get(1)).ok_or_else(malformed)?;
        let end = element.nested(10)?.and_then(|key| key.get(1)).map(<[u8]>::to_vec);
        let remaining = element.be64(5).map(Duration::from_millis);
        found.push(FoundElement { key: key.to_vec(), end, remaining });
    }
    Ok(())
}

/// The chain of a rule, and its expressions.
pub(super) fn rule(message: Message<'_>) -> io::Result<(String, Vec<Expression>)> {
    let attributes = message.attributes()?;
    let chain = attributes.text(2).ok_or_else(malformed)?;
    let mut expressions = Vec::new();
    if let Some(list) = attributes.nested(4)? {
        for (_, item) in list.iter() {
            let item = Parsed::parse(item)?;
            let name = item.text(1).ok_or_else(malformed)?;
            let data = item.nested(2)?.map_or_else(|| Parsed::parse(&[]), Ok)?;
            expressions.push(expression(&name, data).unwrap_or(Expression::Unknown(name)));
        }
    }
    Ok((chain, expressions))
}

/// An inverse of the numbers of [`super::encode`].
fn find<T: Copy>(values: &[T], number: impl Fn(T) -> u32, wanted: u32) -> Option<T> {
    values.iter().copied().find(|value| number(*value) == wanted)
}

const META_KEYS: [MetaKey; 13] = [
    MetaKey::Length,
    MetaKey::Protocol,
    MetaKey::InputIndex,
    MetaKey::OutputIndex,
    MetaKey::InputName,
    MetaKey::OutputName,
    MetaKey::SocketUser,
    MetaKey::RouteRealm,
    MetaKey::NetworkProtocol,
    MetaKey::TransportProtocol,
    MetaKey::PacketType,
    MetaKey::InputKind,
    MetaKey::OutputKind,
];

const BASES: [PayloadBase; 3] = [PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport];

const COMPARISONS: [Comparison; 4] =
    [Comparison::Equal, Comparison::NotEqual, Comparison::AtLeast, Comparison::AtMost];

const CONNTRACK_KEYS: [ConntrackKey; 3] =
    [ConntrackKey::State, ConntrackKey::Direction, ConntrackKey::Status];

/// A register: the kernel gives those that start 16 bytes as 1 to 4, the others from 8 on.
fn register(data: Parsed<'_>, kind: u16) -> Option<Register> {
    let number = match data.be32(kind)? {
        number @ 1..=4 => (number - 1) * 4,
        number => number.checked_sub(8)?,
    };
    Register::from_number(u8::try_from(number).ok()?)
}

fn value(data: Parsed<'_>, kind: u16) -> Option<Vec<u8>> {
    data.nested(kind).ok()??.get(1).map(<[u8]>::to_vec)
}

fn absent(data: Parsed<'_>, kinds: &[u16]) -> Option<()> {
    kinds.iter().all(|kind| data.get(*kind).is_none()).then_some(())
}

/// Reads one expression; `None` when it is nothing that we write.
fn expression(name: &str, data: Parsed<'_>) -> Option<Expression> {
    Some(match name {
        "meta" => {
            absent(data, &[3])?;
            let key = find(&META_KEYS, meta_key, data.be32(2)?)?;
            Expression::Meta { key, to: register(data, 1)? }
        }
        "payload" => {
            absent(data, &[5])?;
            Expression::Payload {
                base: find(&BASES, payload_base, data.be32(2)?)?,
                offset: data.be32(3)?,
                length: data.be32(4)?,
                to: register(data, 1)?,
            }
        }
        "immediate" => immediate(data)?,
        "cmp" => Expression::Compare {
            from: register(data, 1)?,
            how: find(&COMPARISONS, comparison, data.be32(2)?)?,
            with: value(data, 3)?,
        },
        "bitwise" => bitwise(data)?,
        "byteorder" if data.be32(1)? == data.be32(2)? => {
            if [3, 4, 5].map(|kind| data.be32(kind)) != [Some(1), Some(8), Some(8)] {
                return None;
            }
            Expression::NetworkOrder { register: register(data, 1)? }
        }
        "lookup" => {
            absent(data, &[3])?;
            Expression::Lookup {
                set: data.text(1)?,
                from: register(data, 2)?,
                negated: match data.be32(5).unwrap_or_default() {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
            }
        }
        "dynset" => {
            absent(data, &[5, 7, 10])?;
            if data.be32(3)? != 1 || data.be32(9).unwrap_or_default() != 0 {
                return None;
            }
            let timeout = Duration::from_millis(data.be64(6)?);
            Expression::Update { set: data.text(1)?, from: register(data, 4)?, timeout }
        }
        "ct" if data.be32(2)? == CONNTRACK_ZONE => {
            absent(data, &[1])?;
            if data.get(3)? != [ORIGINAL_DIRECTION] {
                return None;
            }
            Expression::SetOriginalZone { from: register(data, 4)? }
        }
        "ct" => {
            absent(data, &[3, 4])?;
            let key = find(&CONNTRACK_KEYS, conntrack_key, data.be32(2)?)?;
            Expression::Conntrack { key, to: register(data, 1)? }
        }
        "socket" if data.be32(1)? == 3 => {
            Expression::SocketCgroup { level: data.be32(3)?, to: register(data, 2)? }
        }
        "objref" if data.be32(1)? == kernel::OBJECT_COUNTER => Expression::Count(data.text(2)?),
        "log" => {
            if data.be32(3)? != LOGGED_BYTES || data.be16(4)? != 1 {
                return None;
            }
            Expression::Log { group: data.be16(1)?, prefix: data.text(2)? }
        }
        "reject" => match (data.be32(1)?, data.get(2)) {
            (1, _) => Expression::Reject(Rejection::TcpReset),
            (2, Some([3])) => Expression::Reject(Rejection::AdministrativelyProhibited),
            _ => return None,
        },
        "redir" => Expression::Redirect { port: register(data, 1)? },
        _ => return None,
    })
}

fn immediate(data: Parsed<'_>) -> Option<Expression> {
    if data.be32(1)? != 0 {
        return Some(Expression::Load { to: register(data, 1)?, value: value(data, 2)? });
    }
    let verdict = data.nested(2).ok()??.nested(2).ok()??;
    Some(Expression::Verdict(match verdict.be32(1)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(verdict.text(2)?),
        -4 => Verdict::Goto(verdict.text(2)?),
        -5 => Verdict::Return,
        _ => return None,
    }))
}

fn bitwise(data: Parsed<'_>) -> Option<Expression> {
    let (from, to) = (register(data, 1)?, register(data, 2)?);
    let mask = value(data, 4)?;
    let plain = data.be32(6).unwrap_or_default() == 0;
    let xor = value(data, 5)?;
    if from != to || !plain || xor.iter().any(|byte| *byte != 0) {
        return None;
    }
    Some(Expression::Mask { register: to, mask })
}
