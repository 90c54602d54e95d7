//! A held netlink socket: one request at a time, bounded in time.

use crate::sys::namespace::in_network_namespace;
use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The kernel answers netlink requests while they are sent; waiting longer than this means that something is broken.
const ANSWER_TIMEOUT_SECONDS: i64 = 2;

/// The kernel's own bound for one dump message is 32 KiB (`NLMSG_GOODSIZE` grown by the reader's buffer).
const BUFFER_SIZE: usize = 64 << 10;

/// Opens a netlink socket in a network namespace, or in the thread's own.
pub(super) fn open(protocol: isize, namespace: Option<BorrowedFd<'_>>) -> io::Result<Socket> {
    let open_here = || {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(socket)
    };
    match namespace {
        Some(namespace) => in_network_namespace(namespace, open_here)?,
        None => open_here(),
    }
}

/// A socket with a counter of requests.
#[derive(Debug)]
pub(super) struct Connection {
    /// The socket.
    socket: Socket,
    /// The sequence number of the last request.
    sequence: u32,
    /// Where answers are received, kept to save allocations.
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a connection in a network namespace, or in the thread's own.
    pub(super) fn open(protocol: isize, namespace: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let socket = open(protocol, namespace)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECONDS))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_SIZE) })
    }

    /// Makes room for `size` bytes of messages that wait to be read, beyond the machine's limit for users.
    pub(super) fn set_receive_buffer(&self, size: usize) -> io::Result<()> {
        Ok(setsockopt(&self.socket, RcvBufForce, &size)?)
    }

    /// A datagram that has arrived already; `EAGAIN` when there is none.
    pub(super) fn receive_now(&mut self) -> io::Result<&[u8]> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT)?;
        Ok(&self.buffer)
    }

    /// Sends one request of `message_type` and hands each message of the answer to `take`, until an acknowledgement, the end of a
    /// dump, or, for a request that is neither a dump nor asks for an acknowledgement, the first message.
    pub(super) fn request<M: NetlinkDeserializable>(
        &mut self,
        message_type: u16,
        flags: u16,
        payload: &[u8],
        mut take: impl FnMut(M),
    ) -> io::Result<()> {
        use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP};
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER_LENGTH + payload.len();
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(length).map_err(io::Error::other)?;
        header.message_type = message_type;
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = vec![0; length];
        header.emit(&mut message);
        message[HEADER_LENGTH..].copy_from_slice(payload);
        self.socket.send(&message, 0)?;
        let one_answer = flags & (NLM_F_DUMP | NLM_F_ACK) == 0;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for bytes in messages(&self.buffer) {
                let message = NetlinkMessage::<M>::deserialize(bytes).map_err(io::Error::other)?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            Some(code) => {
                                Err(io::Error::from_raw_os_error(code.get().saturating_neg()))
                            }
                            None => Ok(()),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(inner) => {
                        take(inner);
                        if one_answer {
                            return Ok(());
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `sizeof(struct nlmsghdr)`.
pub(super) const HEADER_LENGTH: usize = 16;

/// Splits a datagram into its netlink messages; stops at the first length that can't be right.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(NetlinkBuffer::new_checked(&datagram).ok()?.length()).ok()?;
        let (message, _) = datagram.split_at_checked(length)?;
        if length < HEADER_LENGTH {
            return None;
        }
        let aligned = length.checked_add(3)? & !3;
        datagram = datagram.get(aligned..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splits_at_aligned_lengths() {
        let mut datagram = vec![17, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0, 0, 0];
        datagram.extend([16, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let lengths: Vec<usize> = messages(&datagram).map(<[u8]>::len).collect();
        assert_eq!(lengths, [17, 16]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&datagram).map(<[u8]>::len).sum::<usize>() <= datagram.len());
        }
    }
}
