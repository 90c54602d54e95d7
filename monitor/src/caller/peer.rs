//! The process at the other end of a Unix socket.

use super::CallerError;
use super::table::{ProcFs, ProcessKey};
use super::worker::open_verified;
use crate::sys::pidfd;
use crate::watch::sockets::unix_peer_inode;
use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The process that connected to our socket, held by a pidfd.
#[derive(Debug)]
pub struct Peer {
    /// Which process.
    key: ProcessKey,
    /// Its effective user id when it connected.
    uid: u32,
    /// Its effective group id when it connected.
    gid: u32,
    /// Its pidfd.
    pidfd: OwnedFd,
}

impl Peer {
    /// Which process it is.
    pub fn key(&self) -> ProcessKey {
        self.key
    }

    /// Its effective user id when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its effective group id when it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }
}

impl AsFd for Peer {
    /// The pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Finds out who connected to `socket`, an accepted `AF_UNIX` stream.
///
/// The kernel's pidfd of the peer (6.5 and newer) can't be fooled. On older kernels the pid may have been recycled
/// between `connect` and now, so the process that holds it must also hold the socket's other end.
///
/// # Errors
/// See [`CallerError`]; a peer that has exited is never identified.
pub fn identify_peer(socket: impl AsFd) -> Result<Peer, CallerError> {
    let socket = socket.as_fd();
    let credentials = getsockopt(&socket, PeerCredentials)
        .map_err(|errno| CallerError::Credentials(errno.into()))?;
    let pid = match u32::try_from(credentials.pid()) {
        Ok(0) | Err(_) => return Err(CallerError::ForeignPidNamespace),
        Ok(pid) => pid,
    };
    let gone = || CallerError::Gone { pid };
    let (uid, gid) = (credentials.uid(), credentials.gid());
    match getsockopt(&socket, PeerPidfd) {
        Ok(descriptor) => {
            let key = ProcFs.key(pid).ok_or_else(gone)?;
            // Alive after the start time was read: then it was this process' start time.
            match pidfd::has_exited(&descriptor) {
                Ok(false) => Ok(Peer { key, uid, gid, pidfd: descriptor }),
                Ok(true) => Err(gone()),
                Err(source) => Err(CallerError::Pidfd { pid, source }),
            }
        }
        Err(Errno::ENOPROTOOPT) => identify_by_inode(socket, pid, uid, gid),
        Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => Err(gone()),
        Err(errno) => Err(CallerError::Credentials(errno.into())),
    }
}

/// Identification before Linux 6.5.
pub(super) fn identify_by_inode(
    socket: BorrowedFd<'_>,
    pid: u32,
    uid: u32,
    gid: u32,
) -> Result<Peer, CallerError> {
    let gone = || CallerError::Gone { pid };
    let key = ProcFs.key(pid).ok_or_else(gone)?;
    let pidfd = open_verified(key)?;
    let inode = unix_peer_inode(socket, pid).map_err(CallerError::Credentials)?.ok_or_else(gone)?;
    let holds_other_end = crate::watch::inodes::socket_inodes(pid).contains(&inode);
    // Alive after its descriptors were read: then they were its descriptors.
    if pidfd::has_exited(&pidfd).map_err(|source| CallerError::Pidfd { pid, source })? {
        return Err(gone());
    }
    if holds_other_end {
        Ok(Peer { key, uid, gid, pidfd })
    } else {
        Err(CallerError::Recycled { pid })
    }
}
