//! The sockets through which this process changes the packet filter: what is done by them is no news to its watchers.
//!
//! A watcher reads a notice some time after the change, when the socket may be closed already: a table that it has removed is
//! remembered for a while. Nobody else can have the port meanwhile and be taken for us, but for removing that same table.

use crate::caller::table::NetworkNamespaceId;
use std::collections::{HashMap, VecDeque};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a watcher may take to read a notice.
const NOTICE_DELAY: Duration = Duration::from_mins(1);

/// The most removed tables that are remembered.
const REMEMBERED: usize = 4_096;

/// What one process has in one table of the kernel: its netlink ports are unique in a network namespace.
static OWN_SOCKETS: LazyLock<Mutex<OwnSockets>> = LazyLock::new(Mutex::default);

/// A netlink port of one network namespace.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Port {
    namespace: NetworkNamespaceId,
    id: u32,
}

#[derive(Debug, Default)]
struct OwnSockets {
    /// How many descriptors of ours there are of each port: a kept socket can be resumed while its first owner still has it.
    open: HashMap<Port, usize>,
    removed: VecDeque<Removed>,
}

#[derive(Debug)]
struct Removed {
    port: Port,
    table: String,
    at: Instant,
}

fn own_sockets() -> MutexGuard<'static, OwnSockets> {
    OWN_SOCKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket of ours, for as long as this lives.
#[derive(Debug)]
pub(super) struct OwnSocket(Port);

impl OwnSocket {
    /// From before it is used for the first time.
    pub(super) fn register(namespace: NetworkNamespaceId, port_id: u32) -> Self {
        let port = Port { namespace, id: port_id };
        *own_sockets().open.entry(port).or_default() += 1;
        Self(port)
    }

    /// The socket's port id (`nl_pid`), by which the kernel names the owner of a table.
    pub(super) fn port_id(&self) -> u32 {
        self.0.id
    }

    /// The socket is about to remove `table`.
    pub(super) fn removes(&self, table: &str) {
        let mut sockets = own_sockets();
        let now = Instant::now();
        sockets.removed.retain(|removed| now.duration_since(removed.at) < NOTICE_DELAY);
        if sockets.removed.len() >= REMEMBERED {
            sockets.removed.pop_front();
        }
        let removed = Removed { port: self.0, table: table.to_owned(), at: now };
        sockets.removed.push_back(removed);
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        let mut sockets = own_sockets();
        if let Some(count) = sockets.open.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                sockets.open.remove(&self.0);
            }
        }
    }
}

/// Whether what the port did, did to `table`, and whether it was a deletion, was ours.
pub(super) fn is_ours(
    namespace: NetworkNamespaceId,
    port_id: u32,
    table: &str,
    is_deletion: bool,
) -> bool {
    let port = Port { namespace, id: port_id };
    let sockets = own_sockets();
    sockets.open.contains_key(&port)
        || is_deletion
            && sockets.removed.iter().any(|removed| {
                removed.port == port
                    && removed.table == table
                    && removed.at.elapsed() < NOTICE_DELAY
            })
}

#[cfg(test)]
mod tests {
    use super::{NetworkNamespaceId, OwnSocket, is_ours};

    #[test]
    fn a_port_is_ours_while_it_is_open_and_what_it_removed_a_little_longer() {
        let namespace = NetworkNamespaceId { device: 4, inode: 4_000_000_001 };
        let elsewhere = NetworkNamespaceId { device: 4, inode: 4_000_000_002 };
        assert!(!is_ours(namespace, 7, "portcullis_a", false));
        let first = OwnSocket::register(namespace, 7);
        let again = OwnSocket::register(namespace, 7);
        assert!(is_ours(namespace, 7, "anything", false));
        assert!(!is_ours(elsewhere, 7, "anything", false), "ports are counted by namespace");
        drop(first);
        assert!(is_ours(namespace, 7, "anything", false), "another descriptor is open");
        again.removes("portcullis_a");
        drop(again);
        assert!(is_ours(namespace, 7, "portcullis_a", true));
        assert!(!is_ours(namespace, 7, "portcullis_a", false), "it was removed, not made");
        assert!(!is_ours(namespace, 7, "portcullis_b", true));
        assert!(!is_ours(elsewhere, 7, "portcullis_a", true));
    }
}
