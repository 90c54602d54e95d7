//! What the monitor asks of systemd: to know that it is ready, and to keep sockets over a restart.
//!
//! A table that has an owner vanishes with its owner's socket on kernels before 6.9, so such a socket lies in systemd's
//! descriptor store (`FileDescriptorStoreMax=`) while the monitor is down.

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use std::collections::HashMap;
use std::env;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The socket that `systemd` names (`sd_notify(3)`).
const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";

/// How many descriptors the service may leave: set by systemd from version 254 on, and by our unit beside the setting
/// itself, for older ones. Without it a descriptor would be closed at once, and nobody would say so.
const STORE_VARIABLE: &str = "FDSTORE";

/// The service manager that started this process, if one did.
#[derive(Debug)]
pub struct ServiceManager {
    address: Option<UnixAddr>,
    /// How many descriptors it keeps.
    room: usize,
    /// What it had kept for an earlier monitor and nobody has asked for yet.
    kept: Mutex<HashMap<String, OwnedFd>>,
}

impl ServiceManager {
    /// As the environment says; `kept` is what it passed at the start.
    pub fn of_this_process(kept: Vec<(String, OwnedFd)>) -> Self {
        let address = env::var_os(NOTIFY_VARIABLE).and_then(|path| {
            match path.as_bytes().strip_prefix(b"@") {
                Some(name) => UnixAddr::new_abstract(name).ok(),
                None => UnixAddr::new(Path::new(&path)).ok(),
            }
        });
        let room = env::var(STORE_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        Self { address, room, kept: Mutex::new(kept.into_iter().collect()) }
    }

    /// Tells it that the monitor is ready; nothing when there is none.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn ready(&self) -> io::Result<()> {
        if self.address.is_none() {
            return Ok(());
        }
        self.tell("READY=1", None)
    }

    /// Whether it keeps sockets over a restart of the monitor.
    pub fn can_keep(&self) -> bool {
        self.address.is_some() && self.room > 0
    }

    /// Gives it another descriptor of a socket to keep until [`Self::forget`]; `name` is of letters, digits and `_`.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn keep(&self, name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
        // Without FDPOLL=0 it drops a netlink socket whose buffer has once run over.
        self.tell(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(socket))
    }

    /// Lets it close what it keeps under this name.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        if !self.can_keep() {
            return Ok(());
        }
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    /// Takes what it had kept under this name for an earlier monitor.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// Lets go of everything that nobody has asked for.
    pub fn forget_the_rest(&self) {
        let rest: Vec<String> = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.drain().map(|(name, _)| name).collect()
        };
        for name in rest {
            tracing::warn!(name, "systemd kept a socket of rules that no job has any more");
            if let Err(error) = self.forget(&name) {
                tracing::error!(error = %error, "systemd could not be told to close a socket");
            }
        }
    }

    fn tell(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let address = self.address.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let descriptors: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let bytes = [IoSlice::new(text.as_bytes())];
        sendmsg(sender.as_raw_fd(), &bytes, control, MsgFlags::MSG_NOSIGNAL, Some(address))?;
        Ok(())
    }
}
