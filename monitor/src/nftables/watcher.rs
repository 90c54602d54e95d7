//! Who else changes the packet filter.

use super::own_sockets::is_ours;
use super::socket::NetfilterSocket;
use super::wire::{Message, kernel, messages};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The most actions that one change lists; more are counted.
const MAX_ACTIONS: usize = 64;

/// The longest name in bytes that is kept of an object that somebody else made.
const MAX_NAME_BYTES: usize = 256;

/// What was done to an object.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ActionKind {
    /// It was added, or changed.
    Added,
    /// It was deleted.
    Deleted,
}

/// The objects of nftables.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ObjectKind {
    /// A table.
    Table,
    /// A chain.
    Chain,
    /// A rule.
    Rule,
    /// A set.
    Set,
    /// Elements of a set.
    Elements,
    /// A counter, quota, or other named object.
    Object,
    /// A flow table, which can take flows past the rules.
    Flowtable,
}

/// One action of a transaction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Action {
    /// What was done.
    pub kind: ActionKind,
    /// To what.
    pub object: ObjectKind,
    /// The table it is in.
    pub table: String,
    /// Its name; for a rule that of its chain.
    pub name: String,
}

/// A transaction that was not ours.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// What was done, at most 64 actions.
    pub actions: Vec<Action>,
    /// How many more there were.
    pub more_actions: u64,
    /// The process, in the first pid namespace; it can have exited already.
    pub pid: Option<u32>,
    /// The process's name (`comm`, at most 15 bytes), which it chooses itself.
    pub process: Option<String>,
}

/// What the watcher saw.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notice {
    /// Somebody else changed the packet filter.
    Changed(Change),
    /// Notices were lost: too many changes at once. What is installed must be verified.
    Lost,
}

/// Sees every change of the packet filter in one network namespace that this process has not made itself.
#[derive(Debug)]
pub struct ChangeWatcher {
    socket: NetfilterSocket,
    /// The actions of the transaction that is not complete; the kernel tells one after the other.
    pending: Change,
}

impl ChangeWatcher {
    /// Watches `namespace` from now on.
    ///
    /// # Errors
    /// When no netlink socket can be opened there (needs `CAP_NET_ADMIN`).
    pub fn open(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = NetfilterSocket::open(namespace)?;
        socket.socket().add_membership(kernel::NFNLGRP_NFTABLES)?;
        socket.socket().set_non_blocking(true)?;
        Ok(Self { socket, pending: Change::default() })
    }

    /// Takes what has happened since the last call; empty when nothing has. Never blocks: wait until the descriptor
    /// ([`AsFd`]) is readable.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn take(&mut self) -> io::Result<Vec<Notice>> {
        let mut notices = Vec::new();
        loop {
            match self.socket.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(notices),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.pending = Change::default();
                    notices.push(Notice::Lost);
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in messages(self.socket.received()) {
                let message = message?;
                if message.kind >> 8 != kernel::NFNL_SUBSYS_NFTABLES {
                    continue;
                }
                if message.kind & 0xff == kernel::NEWGEN {
                    let mut change = std::mem::take(&mut self.pending);
                    let attributes = message.attributes()?;
                    change.pid = attributes.be32(2);
                    change.process = attributes.text(3);
                    if !change.actions.is_empty() {
                        notices.push(Notice::Changed(change));
                    }
                } else if let Some(action) = action(&message)? {
                    let is_deletion = action.kind == ActionKind::Deleted;
                    let namespace = self.socket.namespace();
                    if is_ours(namespace, message.port_id, &action.table, is_deletion) {
                        continue;
                    }
                    if self.pending.actions.len() < MAX_ACTIONS {
                        self.pending.actions.push(action);
                    } else {
                        self.pending.more_actions += 1;
                    }
                }
            }
        }
    }
}

impl AsFd for ChangeWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.socket().as_fd()
    }
}

fn action(message: &Message<'_>) -> io::Result<Option<Action>> {
    use ActionKind::{Added, Deleted};
    let (kind, object) = match message.kind & 0xff {
        0 => (Added, ObjectKind::Table),
        2 => (Deleted, ObjectKind::Table),
        3 => (Added, ObjectKind::Chain),
        5 => (Deleted, ObjectKind::Chain),
        6 => (Added, ObjectKind::Rule),
        8 => (Deleted, ObjectKind::Rule),
        9 => (Added, ObjectKind::Set),
        11 => (Deleted, ObjectKind::Set),
        12 => (Added, ObjectKind::Elements),
        14 => (Deleted, ObjectKind::Elements),
        18 => (Added, ObjectKind::Object),
        20 => (Deleted, ObjectKind::Object),
        22 => (Added, ObjectKind::Flowtable),
        24 => (Deleted, ObjectKind::Flowtable),
        _ => return Ok(None),
    };
    let attributes = message.attributes()?;
    let text = |kind| {
        let mut text = attributes.text(kind).unwrap_or_default();
        text.truncate(text.floor_char_boundary(MAX_NAME_BYTES));
        text
    };
    let name = text(match object {
        ObjectKind::Table => 1,
        ObjectKind::Chain => 3,
        _ => 2,
    });
    Ok(Some(Action { kind, object, table: text(1), name }))
}
