//! A netlink socket to netfilter: transactions and dumps, one at a time.

use super::own_sockets::OwnSocket;
use super::wire::{
    Attributes, HEADER_BYTES, Message, Parsed, add_flags, kernel, malformed, messages,
    write_message,
};
use crate::caller::table::NetworkNamespaceId;
use crate::sys::namespace::in_network_namespace;
use crate::sys::netlink::socket_from;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, SndBufForce};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Room for a transaction of 100 000 IPv6 elements and its answers.
const BUFFER_BYTES: usize = 32 << 20;

/// The kernel gives dumps in pieces of at most 32 KiB.
const RECEIVE_BYTES: usize = 64 << 10;

/// The kernel answers before `send` returns; this only bounds a kernel that does not.
const ANSWER_TIMEOUT_SECONDS: i64 = 5;

/// How often a dump that a concurrent change interrupted is tried again.
const DUMP_ATTEMPTS: usize = 16;

/// Why a transaction failed.
#[derive(Debug)]
pub(super) struct Refused {
    /// What was refused: `set granted4`.
    pub(super) what: String,
    /// The kernel's own words.
    pub(super) message: Option<String>,
    /// The error number.
    pub(super) source: io::Error,
}

/// Messages that the kernel applies together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// What each message is about, by its sequence number.
    labels: Vec<String>,
    last_start: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut bytes = Vec::with_capacity(16 << 10);
        let subsystem = kernel::NFNL_SUBSYS_NFTABLES;
        write_message(&mut bytes, kernel::NFNL_MSG_BATCH_BEGIN, 0, 0, 0, subsystem, |_| ());
        Self { bytes, labels: vec!["the transaction".to_owned()], last_start: 0 }
    }

    /// Adds a message of nftables. The label says what it is about.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        label: impl Into<String>,
        body: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.last_start = self.bytes.len();
        let sequence = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        let kind = kernel::NFNL_SUBSYS_NFTABLES << 8 | kind;
        write_message(&mut self.bytes, kind, flags, sequence, family, 0, body);
        self.labels.push(label.into());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.len() == 1
    }
}

/// A socket to netfilter in one network namespace.
#[derive(Debug)]
pub(super) struct NetfilterSocket {
    socket: Socket,
    /// Changes by this socket are ours.
    own: OwnSocket,
    /// Where it was opened.
    namespace: NetworkNamespaceId,
    buffer: Vec<u8>,
}

impl NetfilterSocket {
    /// Opens a socket in `namespace`.
    pub(super) fn open(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        in_network_namespace(namespace, Self::open_here)?
    }

    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open_here() -> io::Result<Self> {
        Self::set_up(Socket::new(NETLINK_NETFILTER)?)
    }

    /// Goes on with a socket that was opened in `namespace` before.
    pub(super) fn resume(descriptor: OwnedFd, namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let namespace = NetworkNamespaceId::of(namespace)?;
        let socket = socket_from(descriptor);
        let mut address = SocketAddr::new(0, 0);
        socket.get_address(&mut address)?;
        let own = OwnSocket::register(namespace, address.port_number());
        let buffer = Vec::with_capacity(RECEIVE_BYTES);
        let mut resumed = Self { socket, own, namespace, buffer };
        // Answers to what the earlier monitor asked last.
        resumed.drain();
        Ok(resumed)
    }

    fn set_up(mut socket: Socket) -> io::Result<Self> {
        let namespace = NetworkNamespaceId::at("/proc/thread-self/ns/net")?;
        let own = OwnSocket::register(namespace, socket.bind_auto()?.port_number());
        setsockopt(&socket, SndBufForce, &BUFFER_BYTES)?;
        setsockopt(&socket, RcvBufForce, &BUFFER_BYTES)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECONDS))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, own, namespace, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Our port id, by which the kernel names the owner of a table.
    pub(super) fn port_id(&self) -> u32 {
        self.own.port_id()
    }

    /// The socket is about to remove `table`.
    pub(super) fn removes(&self, table: &str) {
        self.own.removes(table);
    }

    /// The network namespace that it was opened in.
    pub(super) fn namespace(&self) -> NetworkNamespaceId {
        self.namespace
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// What [`Self::receive`] got last.
    pub(super) fn received(&self) -> &[u8] {
        &self.buffer
    }

    /// Receives one datagram.
    pub(super) fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Applies a batch.
    pub(super) fn apply(&mut self, mut batch: Batch) -> Result<(), Refused> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.labels.len() - 1;
        add_flags(&mut batch.bytes, batch.last_start, kernel::NLM_F_ACK);
        let end = kernel::NFNL_MSG_BATCH_END;
        let end_sequence = u32::try_from(last + 1).unwrap_or(u32::MAX);
        let subsystem = kernel::NFNL_SUBSYS_NFTABLES;
        write_message(&mut batch.bytes, end, 0, end_sequence, 0, subsystem, |_| ());
        let fail = |source| Refused { what: "the transaction".to_owned(), message: None, source };
        self.socket.send(&batch.bytes, 0).map_err(fail)?;
        let mut first_error: Option<Refused> = None;
        loop {
            // After an error the acknowledgement may be missing; a quiet socket ends the answers too, since the kernel
            // has queued all of them before `send` returned.
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(first_error.unwrap_or_else(|| fail(malformed())));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(fail(error)),
            }
            let mut acknowledged = false;
            for message in messages(&self.buffer) {
                let message = message.map_err(fail)?;
                if message.kind != kernel::NLMSG_ERROR {
                    continue;
                }
                let index = usize::try_from(message.sequence).unwrap_or(usize::MAX);
                if let Some((source, text)) = error_of(&message).map_err(fail)? {
                    first_error.get_or_insert_with(|| Refused {
                        what: batch.labels.get(index).cloned().unwrap_or_default(),
                        message: text,
                        source,
                    });
                } else {
                    acknowledged |= index == last;
                }
            }
            if acknowledged {
                let Some(error) = first_error else { return Ok(()) };
                self.drain();
                return Err(error);
            }
        }
    }

    /// Throws away answers of a failed transaction.
    fn drain(&mut self) {
        self.buffer.clear();
        while self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT).is_ok() {
            self.buffer.clear();
        }
    }

    /// Sends one request outside a transaction (connection tracking) and waits for its acknowledgement.
    pub(super) fn request(
        &mut self,
        kind: u16,
        family: u8,
        body: impl FnOnce(&mut Attributes<'_>),
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(256);
        write_message(&mut bytes, kind, kernel::NLM_F_ACK, 1, family, 0, body);
        self.socket.send(&bytes, 0)?;
        self.receive()?;
        for message in messages(&self.buffer) {
            let message = message?;
            if message.kind == kernel::NLMSG_ERROR {
                return error_of(&message)?.map_or(Ok(()), |(error, _)| Err(error));
            }
        }
        Err(malformed())
    }

    /// Dumps, giving each message to `visit`. When the dump was interrupted by a change it starts again, after `reset`.
    pub(super) fn dump<T: Default>(
        &mut self,
        kind: u16,
        family: u8,
        body: impl Fn(&mut Attributes<'_>),
        mut visit: impl FnMut(&mut T, Message<'_>) -> io::Result<()>,
    ) -> io::Result<T> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut bytes = Vec::with_capacity(256);
            write_message(&mut bytes, kind, kernel::NLM_F_DUMP, 1, family, 0, &body);
            self.socket.send(&bytes, 0)?;
            let mut result = T::default();
            let mut interrupted = false;
            let outcome = 'answers: loop {
                self.receive()?;
                for message in messages(&self.buffer) {
                    let message = message?;
                    interrupted |= message.flags & kernel::NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        kernel::NLMSG_DONE => break 'answers Ok(()),
                        kernel::NLMSG_ERROR => {
                            break 'answers match error_of(&message)? {
                                Some((error, _)) => Err(error),
                                None => Ok(()),
                            };
                        }
                        _ => visit(&mut result, message)?,
                    }
                }
            };
            match outcome {
                Ok(()) if !interrupted => return Ok(result),
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the rules changed again and again while they were read",
        ))
    }
}

/// The error of an `NLMSG_ERROR`, with the kernel's words; `None` for an acknowledgement.
fn error_of(message: &Message<'_>) -> io::Result<Option<(io::Error, Option<String>)>> {
    let code: &[u8; 4] = message.payload.first_chunk().ok_or_else(malformed)?;
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(None);
    }
    let mut text = None;
    if message.flags & kernel::NLM_F_ACK_TLVS != 0 && message.flags & kernel::NLM_F_CAPPED != 0 {
        let attributes = message.payload.get(4 + HEADER_BYTES..).unwrap_or_default();
        text = Parsed::parse(attributes)?.text(kernel::NLMSGERR_ATTR_MSG);
    }
    Ok(Some((io::Error::from_raw_os_error(code.wrapping_neg()), text)))
}
