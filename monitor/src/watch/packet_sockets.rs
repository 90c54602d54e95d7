//! Packet sockets, by `/proc/net/packet`: kernels are commonly built without their `sock_diag` table
//! (`CONFIG_PACKET_DIAG`).

use crate::sys::namespace::in_network_namespace;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::BorrowedFd;

/// How much of the table is read, in bytes; a line has about 70.
const TABLE_LIMIT: u64 = 1 << 20;

/// How many sockets are looked at for one frame: a job can open as many as it likes.
const MAXIMUM_CANDIDATES: usize = 64;

/// A packet socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct PacketSocket {
    /// The interface that it is bound to; 0 for any.
    interface: u32,
    /// The user that made it.
    uid: u32,
    /// The inode in `/proc/PID/fd`.
    inode: u32,
}

/// The table of one network namespace: an open file of `/proc/net` keeps showing the namespace that it was opened in.
#[derive(Debug)]
pub(super) struct PacketTable {
    /// Absent when the kernel knows no packet sockets.
    file: Option<File>,
}

impl PacketTable {
    /// Opens the table of a namespace.
    pub(super) fn open(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        in_network_namespace(namespace, || Self {
            file: File::open("/proc/thread-self/net/packet").ok(),
        })
    }

    /// The inodes of the sockets that can have sent a frame by this interface for this user, the likeliest first: those
    /// bound to the interface, then the newest.
    pub(super) fn find(
        &mut self,
        interface: Option<u32>,
        uid: Option<u32>,
    ) -> io::Result<Vec<u32>> {
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        let mut text = String::new();
        file.rewind()?;
        file.take(TABLE_LIMIT).read_to_string(&mut text)?;
        Ok(likeliest(text.lines().filter_map(parse_line), interface, uid))
    }
}

fn likeliest(
    sockets: impl Iterator<Item = PacketSocket>,
    interface: Option<u32>,
    uid: Option<u32>,
) -> Vec<u32> {
    let sends_by = |socket: &PacketSocket| {
        socket.interface == 0 || interface.is_none_or(|index| index == socket.interface)
    };
    let mut found: Vec<PacketSocket> = sockets
        .filter(sends_by)
        .filter(|socket| uid.is_none_or(|uid| uid == socket.uid) && socket.inode != 0)
        .collect();
    found.sort_by_key(|socket| std::cmp::Reverse((socket.interface != 0, socket.inode)));
    found.iter().take(MAXIMUM_CANDIDATES).map(|socket| socket.inode).collect()
}

/// One line of the table: `sk references type protocol interface running memory user inode`.
fn parse_line(line: &str) -> Option<PacketSocket> {
    let mut fields = line.split_ascii_whitespace().skip(4);
    let interface = fields.next()?.parse().ok()?;
    let uid = fields.nth(2)?.parse().ok()?;
    let inode = fields.next()?.parse().ok()?;
    Some(PacketSocket { interface, uid, inode })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "\
sk               RefCnt Type Proto  Iface R Rmem   User   Inode
00000000a1b2c3d4 3      3    0003   2     1 0      0      4711
00000000a1b2c3d5 3      2    0800   0     0 0      0      4999
00000000a1b2c3d6 3      3    0003   3     1 0      0      5000
00000000a1b2c3d7 3      3    0000   2     1 0      1001   4900
";

    fn find(interface: Option<u32>, uid: Option<u32>) -> Vec<u32> {
        likeliest(TABLE.lines().filter_map(parse_line), interface, uid)
    }

    #[test]
    fn the_likeliest_sender_comes_first() {
        assert_eq!(find(Some(2), Some(0)), [4711, 4999]);
        assert_eq!(find(Some(2), None), [4900, 4711, 4999]);
        assert_eq!(find(Some(7), Some(0)), [4999]);
        assert!(find(Some(3), Some(1001)).is_empty());
        assert_eq!(find(None, Some(1001)), [4900]);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC{0,80}") {
            let _ = parse_line(&line);
        }
    }
}
