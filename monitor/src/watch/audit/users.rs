//! Who uses our rules: a rule for each that matches nothing and says so by its key. The kernel keeps them as long as the rules
//! themselves: also when a monitor is killed, and not over a restart of the machine.

use super::{
    AUDIT_ADD_RULE, AUDIT_DEL_RULE, AUDIT_LIST_RULES, Bytes, FIELD_PID, FILTER_USER, KEY,
    MASK_WORDS, MAX_FIELDS, NEVER, Status, change, enable, put_in_force, resting, rule, rules,
    status,
};
use crate::caller::{ProcFs, ProcessKey};
use crate::watch::netlink::Connection;
use netlink_packet_core::NLM_F_DUMP;
use std::io;

/// Where `values` and `buflen` of `struct audit_rule_data` are, in words: behind `flags`, `action`, `field_count`, `mask` and
/// `fields`, and behind `values` and `fieldflags`.
const VALUES: usize = 3 + MASK_WORDS + MAX_FIELDS;
const KEY_LENGTH: usize = VALUES + 2 * MAX_FIELDS;

/// A monitor that uses the rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct User {
    pub(super) key: ProcessKey,
    /// Audit was off before the first of those that use it now.
    pub(super) was_off: bool,
}

impl User {
    /// What it is known by: a rule about what it tells the audit daemon itself, which is nothing.
    pub(super) fn rule(self) -> Vec<u8> {
        let before = if self.was_off { "off" } else { "on" };
        let key = format!("{KEY}-user-{}-audit-was-{before}", self.key.start_time);
        rule(FILTER_USER, NEVER, &[], &[(FIELD_PID, self.key.pid)], &key)
    }

    /// The user that a rule stands for; `None` for any other rule.
    fn parse(rule: &[u8]) -> Option<Self> {
        let word = |at: usize| rule.get(at * 4..)?.first_chunk().copied().map(u32::from_ne_bytes);
        if word(0)? != FILTER_USER {
            return None;
        }
        let length = usize::try_from(word(KEY_LENGTH)?).ok()?;
        let key = rule.get((KEY_LENGTH + 1) * 4..)?.get(..length)?;
        let key = str::from_utf8(key).ok()?.strip_prefix(KEY)?.strip_prefix("-user-")?;
        let (start_time, before) = key.split_once("-audit-was-")?;
        let key = ProcessKey { pid: word(VALUES)?, start_time: start_time.parse().ok()? };
        Some(Self { key, was_off: before == "off" })
    }

    pub(super) fn is_alive(self) -> bool {
        ProcFs.key(self.key.pid) == Some(self.key)
    }
}

/// All that are listed, also those that were killed.
pub(super) fn listed(control: &mut Connection) -> io::Result<Vec<User>> {
    let mut users = Vec::new();
    control.request::<Bytes>(AUDIT_LIST_RULES, NLM_F_DUMP, &[], |Bytes(rule)| {
        users.extend(User::parse(&rule));
    })?;
    Ok(users)
}

/// `user` needs the rules no longer; the last one takes them back.
pub(super) fn leave(control: &mut Connection, user: User) -> io::Result<()> {
    let users = listed(control)?;
    if users.iter().any(|other| *other != user && other.is_alive()) {
        return change(control, AUDIT_DEL_RULE, &user.rule());
    }
    // It stays listed until audit is off: who comes meanwhile has to know that it was.
    take_back(control, &users, user.was_off)
}

/// Takes back what is left of those that were killed.
pub(super) fn clear(control: &mut Connection) -> io::Result<()> {
    let users = listed(control)?;
    if users.is_empty() || users.iter().any(|user| user.is_alive()) {
        return Ok(());
    }
    tracing::info!(
        "taking back rules of the audit subsystem that a monitor left behind that was killed"
    );
    take_back(control, &users, users.iter().any(|user| user.was_off))
}

/// Everything is done, whatever fails before; the first error is what is told. Who is listed is the last to go, so that it can
/// be tried again.
fn take_back(control: &mut Connection, left: &[User], was_off: bool) -> io::Result<()> {
    let mut outcomes: Vec<_> =
        rules().iter().map(|rule| change(control, AUDIT_DEL_RULE, rule)).collect();
    if was_off {
        outcomes.push(switch_off(control));
    }
    outcomes.extend(left.iter().map(|user| change(control, AUDIT_DEL_RULE, &user.rule())));
    // Somebody may have come meanwhile, and found rules that were on their way out.
    if listed(control)?.iter().any(|user| user.is_alive()) {
        outcomes.push(put_in_force(control));
    }
    outcomes.into_iter().collect()
}

/// Switches audit off, but for a daemon that came meanwhile.
fn switch_off(control: &mut Connection) -> io::Result<()> {
    let Status { daemon, .. } = status(control)?;
    if daemon != 0 {
        return Ok(());
    }
    enable(control, false)?;
    change(control, AUDIT_ADD_RULE, &resting())
}

#[cfg(test)]
mod tests;
