//! From a socket's inode to the process that holds it, by `/proc/PID/fd`.

use super::bounded::BoundedCache;
use crate::caller::{ProcFs, ProcessKey, ProcessTable};
use std::os::unix::ffi::OsStrExt;

/// How many owners are remembered.
const REMEMBERED: usize = 8192;

/// The inodes of the sockets that a process holds; empty when it is gone.
pub fn socket_inodes(pid: u32) -> Vec<u32> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    descriptors
        .flatten()
        .filter_map(|descriptor| {
            let target = std::fs::read_link(descriptor.path()).ok()?;
            parse_socket_link(target.as_os_str().as_bytes())
        })
        .collect()
}

/// Reads `socket:[INODE]`.
fn parse_socket_link(target: &[u8]) -> Option<u32> {
    let inode = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

/// Finds the owners of sockets and remembers them: a socket often outlives the moment in which its owner can be seen.
#[derive(Debug)]
pub struct SocketOwners {
    /// Owners found before.
    known: BoundedCache<u32, ProcessKey>,
}

impl Default for SocketOwners {
    fn default() -> Self {
        Self { known: BoundedCache::new(REMEMBERED) }
    }
}

impl SocketOwners {
    /// The process that holds the socket `inode`. Looks through `likely` (the job's processes, in this order) first and through all
    /// processes only when none of them has it. When several processes hold it, it is one of them.
    pub fn find(
        &mut self,
        inode: u32,
        likely: impl FnOnce() -> Option<Vec<u32>>,
    ) -> Option<ProcessKey> {
        if inode == 0 {
            return None;
        }
        if let Some(owner) = self.known.get(&inode) {
            return Some(*owner);
        }
        let likely = likely().unwrap_or_default();
        let owner =
            likely.iter().copied().find_map(|pid| owner_if_holding(pid, inode)).or_else(|| {
                // The newest processes are the likeliest to have opened a new socket.
                let mut pids = ProcFs.pids();
                pids.sort_unstable_by(|left, right| right.cmp(left));
                pids.into_iter()
                    .filter(|pid| !likely.contains(pid))
                    .find_map(|pid| owner_if_holding(pid, inode))
            })?;
        self.known.insert(inode, owner);
        Some(owner)
    }

    /// Notes an owner that was found by other means.
    pub fn remember(&mut self, inode: u32, owner: ProcessKey) {
        if inode != 0 {
            self.known.insert(inode, owner);
        }
    }
}

/// The key of `pid` when it holds the socket.
fn owner_if_holding(pid: u32, inode: u32) -> Option<ProcessKey> {
    let key = ProcFs.key(pid)?;
    // The key is read before the descriptors and compared after them, so that it names the process they are of.
    (socket_inodes(pid).contains(&inode) && ProcFs.key(pid) == Some(key)).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn finds_the_owner_of_a_socket() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = u32::try_from(nix::sys::stat::fstat(socket.as_fd()).unwrap().st_ino).unwrap();
        let own = ProcFs.key(std::process::id());
        assert_eq!(SocketOwners::default().find(inode, || None), own);
        assert_eq!(SocketOwners::default().find(inode, || Some(vec![std::process::id()])), own);
        assert_eq!(SocketOwners::default().find(u32::MAX, || None), None);
    }

    #[test]
    fn reads_only_sockets() {
        for (target, inode) in [
            ("socket:[17]", Some(17)),
            ("pipe:[17]", None),
            ("/tmp/socket:[17]", None),
            ("socket:[x]", None),
            ("socket:[99999999999]", None),
        ] {
            assert_eq!(parse_socket_link(target.as_bytes()), inode, "{target}");
        }
    }
}
