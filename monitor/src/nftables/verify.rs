//! Reads a rule set back and compares it with what was meant.

use super::decode::{self, FoundChain, FoundElement, FoundHook, FoundSet};
use super::encode::{
    chain_type, family_number, hook_number, key_type, owner_flags, policy_number, set_flags,
};
use super::error::InstallError;
use super::socket::NetfilterSocket;
use super::wire::{Attributes, Message, kernel, malformed};
use crate::egress::expression::Expression;
use crate::egress::rule_set::{Chain, Element, HookPoint, Rule, RuleSet, Set, SetKind, Table};
use crate::egress::target::OwnerMode;
use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// The most characters of an unexpected rule that a message shows.
const SHOWN_CHARACTERS: usize = 400;

/// Compares everything the kernel holds with `rules`.
pub(super) fn verify(socket: &mut NetfilterSocket, rules: &RuleSet) -> Result<(), InstallError> {
    rules.tables.iter().try_for_each(|table| verify_table(socket, rules, table))
}

fn verify_table(
    socket: &mut NetfilterSocket,
    rules: &RuleSet,
    table: &Table,
) -> Result<(), InstallError> {
    let name = rules.name.as_str();
    let family = family_number(table.family);
    let read = InstallError::Answer;
    verify_owner(socket, rules, family)?;

    let counters = list(socket, kernel::GETOBJ, family, name, |message| {
        message.attributes()?.text(2).ok_or_else(malformed)
    })
    .map_err(read)?;
    same("counters", &sorted(table.counters.iter().map(ToString::to_string)), &sorted(counters))?;

    let sets = list(socket, kernel::GETSET, family, name, decode::set).map_err(read)?;
    let by_name = |sets: Vec<FoundSet>| -> BTreeMap<String, FoundSet> {
        sets.into_iter().map(|set| (set.name.clone(), set)).collect()
    };
    same("sets", &by_name(table.sets.iter().map(expected_set).collect()), &by_name(sets))?;

    let chains = list(socket, kernel::GETCHAIN, family, name, decode::chain).map_err(read)?;
    let by_name = |chains: Vec<FoundChain>| -> BTreeMap<String, FoundChain> {
        chains.into_iter().map(|chain| (chain.name.clone(), chain)).collect()
    };
    same("chains", &by_name(table.chains.iter().map(expected_chain).collect()), &by_name(chains))?;

    verify_rules(table, list(socket, kernel::GETRULE, family, name, decode::rule).map_err(read)?)?;
    for set in &table.sets {
        if matches!(set.kind, SetKind::Exact | SetKind::Ranges | SetKind::Changing) {
            let found = elements(socket, family, name, &set.name).map_err(read)?;
            verify_elements(set, found)?;
        }
    }
    Ok(())
}

fn verify_owner(
    socket: &mut NetfilterSocket,
    rules: &RuleSet,
    family: u8,
) -> Result<(), InstallError> {
    let name = rules.name.as_str();
    let tables = list(socket, kernel::GETTABLE, family, name, |message| {
        let attributes = message.attributes()?;
        Ok((attributes.be32(2).unwrap_or_default(), attributes.be32(7)))
    })
    .map_err(InstallError::Answer)?;
    let owner = (rules.owner != OwnerMode::None).then(|| socket.port_id());
    same("tables (flags, owner)", &vec![(owner_flags(rules.owner), owner)], &tables)
}

fn verify_rules(table: &Table, found: Vec<(String, Vec<Expression>)>) -> Result<(), InstallError> {
    let mut by_chain: BTreeMap<String, Vec<Vec<Expression>>> = BTreeMap::new();
    for (chain, expressions) in found {
        by_chain.entry(chain).or_default().push(expressions);
    }
    for chain in &table.chains {
        let found = by_chain.remove(&chain.name).unwrap_or_default();
        for (index, Rule(expected)) in chain.rules.iter().enumerate() {
            let what = format!("rule {} of chain {}", index + 1, chain.name);
            same(&what, &Some(expected), &found.get(index))?;
        }
        if found.len() > chain.rules.len() {
            let extra = found.len() - chain.rules.len();
            return Err(InstallError::Mismatch(format!(
                "chain {} has {extra} rules more than it should",
                chain.name
            )));
        }
    }
    Ok(())
}

fn verify_elements(set: &Set, found: Vec<FoundElement>) -> Result<(), InstallError> {
    let mut found: Vec<Element> =
        found.into_iter().map(|FoundElement { key, end, .. }| Element { key, end }).collect();
    found.sort_unstable();
    if found.iter().eq(set.elements.iter()) {
        return Ok(());
    }
    let missing =
        set.elements.iter().filter(|element| found.binary_search(element).is_err()).count();
    Err(InstallError::Mismatch(format!(
        "set {} has {} elements instead of {}, {missing} are missing",
        set.name,
        found.len(),
        set.elements.len()
    )))
}

fn expected_set(set: &Set) -> FoundSet {
    FoundSet {
        name: set.name.clone(),
        flags: set_flags(set.kind),
        key_type: key_type(set),
        key_bytes: set.key_bytes(),
        size: set.size(),
    }
}

fn expected_chain(chain: &Chain) -> FoundChain {
    let hook = chain.hook.as_ref().map(|hook| FoundHook {
        kind: chain_type(hook.kind).to_owned(),
        number: hook_number(&hook.point),
        priority: hook.priority,
        policy: policy_number(hook.policy),
        device: match &hook.point {
            HookPoint::Egress(device) => Some(device.clone()),
            _ => None,
        },
    });
    FoundChain { name: chain.name.clone(), hook }
}

fn sorted(values: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut values: Vec<String> = values.into_iter().collect();
    values.sort_unstable();
    values
}

fn same<T: fmt::Debug + PartialEq>(
    what: &str,
    expected: &T,
    found: &T,
) -> Result<(), InstallError> {
    if expected == found {
        return Ok(());
    }
    let show = |value: &dyn fmt::Debug| -> String {
        format!("{value:?}").chars().take(SHOWN_CHARACTERS).collect()
    };
    Err(InstallError::Mismatch(format!(
        "{what}: found {}, expected {}",
        show(found),
        show(expected)
    )))
}

/// Dumps one kind of object of a table.
pub(super) fn list<T>(
    socket: &mut NetfilterSocket,
    kind: u16,
    family: u8,
    table: &str,
    decode: impl Fn(Message<'_>) -> io::Result<T>,
) -> io::Result<Vec<T>> {
    let body = |body: &mut Attributes<'_>| {
        // Every object names its table in attribute 1; a dump of tables takes no attributes.
        if kind != kernel::GETTABLE {
            body.text(1, table);
        }
    };
    let kind = kernel::NFNL_SUBSYS_NFTABLES << 8 | kind;
    socket.dump(kind, family, body, |found: &mut Vec<T>, message| {
        if message.family() == family && message.attributes()?.text(1).as_deref() == Some(table) {
            found.push(decode(message)?);
        }
        Ok(())
    })
}

/// How often a set that packets and grants change is read, at most.
const READINGS: usize = 8;

/// The live elements of a set with timeouts, by key. Such a set grows by itself, and the kernel can leave elements out of a
/// dump while it does; so it is read until nothing new turns up.
pub(super) fn live_elements(
    socket: &mut NetfilterSocket,
    family: u8,
    table: &str,
    set: &str,
) -> io::Result<Vec<FoundElement>> {
    let mut found: BTreeMap<Vec<u8>, FoundElement> = BTreeMap::new();
    for reading in 0..READINGS {
        let before = found.len();
        for element in elements(socket, family, table, set)? {
            found.insert(element.key.clone(), element);
        }
        if reading > 0 && found.len() == before {
            break;
        }
    }
    Ok(found.into_values().collect())
}

/// Dumps the elements of a set.
pub(super) fn elements(
    socket: &mut NetfilterSocket,
    family: u8,
    table: &str,
    set: &str,
) -> io::Result<Vec<FoundElement>> {
    let kind = kernel::NFNL_SUBSYS_NFTABLES << 8 | kernel::GETSETELEM;
    let body = |body: &mut Attributes<'_>| {
        body.text(1, table).text(2, set);
    };
    socket.dump(kind, family, body, |found, message| decode::elements(message, found))
}
