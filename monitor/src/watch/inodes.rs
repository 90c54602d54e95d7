//! From a socket's inode to the process that holds it, by `/proc/PID/fd`.

use super::bounded::BoundedCache;
use crate::caller::{ProcFs, ProcessKey, ProcessTable};
use nix::dir::Dir;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use procfs::FromRead;
use procfs::process::Stat;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// How many owners are remembered.
const REMEMBERED: usize = 8192;

/// The inodes of the sockets that a process holds; empty when it is gone.
pub fn socket_inodes(pid: u32) -> Vec<u32> {
    let mut inodes = Vec::new();
    if let Some(process) = open_process(pid) {
        visit_sockets(&process, |inode| {
            inodes.push(inode);
            ControlFlow::<()>::Continue(())
        });
    }
    inodes
}

/// Opens `/proc/PID`: what is read through it is of this process or of none.
fn open_process(pid: u32) -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(format!("/proc/{pid}").as_str(), flags, Mode::empty()).ok()
}

/// Shows the inode of each socket to `visit`, until it breaks.
fn visit_sockets<B>(process: &OwnedFd, mut visit: impl FnMut(u32) -> ControlFlow<B>) -> Option<B> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut descriptors = Dir::openat(process, "fd", flags, Mode::empty()).ok()?;
    let directory = descriptors.as_fd().try_clone_to_owned().ok()?;
    for descriptor in descriptors.iter().flatten() {
        let inode = readlinkat(&directory, descriptor.file_name())
            .ok()
            .and_then(|target| parse_socket_link(target.as_bytes()));
        if let Some(inode) = inode
            && let ControlFlow::Break(value) = visit(inode)
        {
            return Some(value);
        }
    }
    None
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
    /// The process that holds the socket `inode`. Looks through `likely` first, lists of processes in the order of their
    /// likelihood, and through all processes only when none of them has it. When several processes hold it, it is one
    /// of them.
    pub fn find(
        &mut self,
        inode: u32,
        likely: impl IntoIterator<Item = Vec<u32>>,
    ) -> Option<ProcessKey> {
        if inode == 0 {
            return None;
        }
        if let Some(owner) = self.known.get(&inode) {
            return Some(*owner);
        }
        let all = std::iter::once_with(|| ProcFs.pids());
        let owner = likely.into_iter().chain(all).find_map(|mut pids| {
            // The newest processes are the likeliest to have opened a new socket.
            pids.sort_unstable_by(|left, right| right.cmp(left));
            pids.into_iter().find_map(|pid| owner_if_holding(pid, inode))
        })?;
        self.known.insert(inode, owner);
        Some(owner)
    }
}

/// A process that holds one of several sockets: lists of processes are looked through in their order, and in each the
/// first of `inodes` that somebody holds wins.
pub fn owner_of_any(
    inodes: &[u32],
    likely: impl IntoIterator<Item = Vec<u32>>,
) -> Option<ProcessKey> {
    if inodes.is_empty() {
        return None;
    }
    let all = std::iter::once_with(|| ProcFs.pids());
    likely.into_iter().chain(all).find_map(|mut pids| {
        pids.sort_unstable_by(|left, right| right.cmp(left));
        let rank = |held: u32| inodes.iter().position(|inode| *inode == held);
        let best = pids.into_iter().filter_map(|pid| {
            let held = socket_inodes(pid).into_iter().filter_map(rank).min()?;
            Some((held, pid))
        });
        let (rank, pid) = best.min_by_key(|(rank, _)| *rank)?;
        owner_if_holding(pid, *inodes.get(rank)?)
    })
}

/// The key of `pid` when it holds the socket.
fn owner_if_holding(pid: u32, inode: u32) -> Option<ProcessKey> {
    let process = open_process(pid)?;
    visit_sockets(&process, |held| {
        if held == inode { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let stat = File::from(openat(&process, "stat", flags, Mode::empty()).ok()?);
    let start_time = Stat::from_read(stat).ok()?.starttime;
    Some(ProcessKey { pid, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn finds_the_owner_of_a_socket() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = u32::try_from(nix::sys::stat::fstat(socket.as_fd()).unwrap().st_ino).unwrap();
        let own = ProcFs.key(std::process::id());
        assert_eq!(SocketOwners::default().find(inode, []), own);
        assert_eq!(SocketOwners::default().find(inode, [vec![1, std::process::id()]]), own);
        assert_eq!(SocketOwners::default().find(u32::MAX, []), None);
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
