//! A held netlink socket: one request at a time, bounded in time.

use crate::sys::namespace::in_network_namespace;
use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The kernel answers netlink requests while they are sent; waiting longer than this means that something is broken.
const ANSWER_TIMEOUT_SECONDS: i64 = 2;

/// The kernel's own bound for one dump message is 32 KiB (`NLMSG_GOODSIZE` grown by the reader's buffer).
const BUFFER_SIZE: usize = 64 << 10;

/// Opens a netlink socket in a network namespace, or in the thread's own.
fn open(protocol: isize, namespace: Option<BorrowedFd<'_>>) -> io::Result<Socket> {
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

    /// Opens a connection in this thread's network namespace that also receives what is sent to multicast `groups`.
    pub(super) fn open_for_groups(protocol: isize, groups: u32) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, groups))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECONDS))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_SIZE) })
    }

    /// Sends bytes as they are.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        self.socket.send_to(message, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// Waits for a datagram, for a bounded time.
    pub(super) fn receive(&mut self) -> io::Result<&[u8]> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        Ok(&self.buffer)
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

/// How many datagrams are read before it is asked whether the thread is to end.
const DATAGRAMS_AT_ONCE: usize = 1_000;

/// When a [`Reader`] comes for what has arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pace {
    /// Whenever something has.
    AtOnce,
    /// The same, but in a burst, when it was woken less than so long ago, only after so long: being woken for each of
    /// thousands of datagrams costs those who cause them more than what is read costs.
    Bursts(Duration),
}

/// A thread that reads what the kernel sends unasked. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Reader {
    /// Closing it ends the thread.
    stop: Option<io::PipeWriter>,
    /// The thread.
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Starts a thread that hands each datagram to `take`, or `None` when the receive buffer ran over and some were lost.
    pub(super) fn start(
        name: &'static str,
        connection: Connection,
        pace: Pace,
        take: impl FnMut(Option<&[u8]>) + Send + 'static,
    ) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = read_until_stopped(connection, &stopped, pace, take) {
                tracing::error!(%error, reader = name, "reading netlink failed; events will be missing");
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Whether the thread still reads; it ends by itself only when the socket fails.
    pub(super) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a netlink reader panicked");
        }
    }
}

/// The thread.
fn read_until_stopped(
    mut connection: Connection,
    stopped: &io::PipeReader,
    pace: Pace,
    mut take: impl FnMut(Option<&[u8]>),
) -> io::Result<()> {
    let mut woken: Option<Instant> = None;
    loop {
        let mut descriptors = [
            PollFd::new(connection.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if descriptors[1].any().unwrap_or(true) {
            return Ok(());
        }
        let now = Instant::now();
        let before = woken.replace(now);
        // Not until nothing is left: in a flood that never comes, and the end of the thread would wait for it.
        for _ in 0..DATAGRAMS_AT_ONCE {
            match connection.receive_now() {
                Ok(datagram) => take(Some(datagram)),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => take(None),
                    _ => return Err(error),
                },
            }
        }
        if let Pace::Bursts(pause) = pace
            && before.is_some_and(|before| now.duration_since(before) < 2 * pause)
            && is_stopped_within(stopped, pause)?
        {
            return Ok(());
        }
    }
}

/// Waits for a while; whether the thread is to end.
fn is_stopped_within(stopped: &io::PipeReader, pause: Duration) -> io::Result<bool> {
    let mut descriptors = [PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
    match poll(&mut descriptors, timeout) {
        Ok(0) | Err(Errno::EINTR) => Ok(false),
        Ok(_) => Ok(true),
        Err(errno) => Err(errno.into()),
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
