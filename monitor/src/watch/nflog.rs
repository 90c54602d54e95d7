//! Packets that rules logged, by NFLOG.

use super::flow::Flow;
use super::frame::{self, Frame};
use super::netlink::{Connection, Pace, Reader, messages};
use super::packet::{self, Headers};
use netlink_packet_core::{NLM_F_ACK, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nflog::{
    ConfigCmd, ConfigFlags, ConfigMode, ConfigNla, PacketNla, Timeout, ULogMessage, config_request,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How much of each packet is copied: enough for IPv6 with some extension headers and the start of a transport header.
const COPY_RANGE: u32 = 128;

/// The receive buffer, in bytes: some ten thousand logged packets while the reader waits for a processor.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long logged packets wait in a burst. A blocked connection attempt is ended when its packet is read, and its program
/// waits for that.
const BURST_PAUSE: Duration = Duration::from_millis(2);

/// Why logged packets can't be read.
#[derive(Debug, thiserror::Error)]
pub enum NflogError {
    /// No netlink socket in the namespace.
    #[error("can't open a netfilter socket in the job's network namespace")]
    Open(#[source] io::Error),
    /// The group could not be bound.
    #[error("can't read NFLOG group {group}; is the module nfnetlink_log there?")]
    Bind {
        /// The group.
        group: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Every group is in use.
    #[error("NFLOG groups {first} to {last} are all in use by other programs")]
    NoFreeGroup {
        /// The first group that was tried.
        first: u16,
        /// The last one.
        last: u16,
    },
    /// The reader's thread could not be started.
    #[error("can't start the thread that reads NFLOG")]
    Thread(#[source] io::Error),
}

/// A packet that a rule logged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoggedPacket {
    /// The rule's prefix; empty when it has none.
    pub prefix: String,
    /// What the packet's headers say; of a frame without an IP packet only what an event needs.
    pub headers: Headers,
    /// What the link layer's header says, at an interface that has one.
    pub frame: Option<Frame>,
    /// The user of the socket that sent it, for packets of this machine.
    pub uid: Option<u32>,
    /// The group of the socket that sent it.
    pub gid: Option<u32>,
    /// The firewall mark.
    pub mark: Option<u32>,
    /// The index of the interface that it came in by.
    pub input_interface: Option<u32>,
    /// The index of the interface that it goes out by.
    pub output_interface: Option<u32>,
    /// Its number in the group, from 0; a gap is a loss.
    pub sequence: Option<u32>,
}

impl LoggedPacket {
    /// The flow, for a packet that leaves this machine.
    pub fn flow(&self) -> Flow {
        self.headers.flow()
    }
}

/// What was lost on the way: each count only grows.
#[derive(Debug, Default)]
pub struct NflogLosses {
    /// Packets missing in the sequence: the kernel had no room for them.
    missing: AtomicU64,
    /// How often the kernel said that the receive buffer ran over.
    overruns: AtomicU64,
    /// Packets that can't be read: neither IPv4 nor IPv6.
    unreadable: AtomicU64,
    /// Packets that the consumer's channel had no room for.
    unconsumed: AtomicU64,
}

/// The counts of [`NflogLosses`] at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NflogLossCounts {
    /// Packets missing in the sequence: the kernel had no room for them.
    pub missing: u64,
    /// How often the kernel said that the receive buffer ran over.
    pub overruns: u64,
    /// Packets that can't be read: neither IPv4 nor IPv6.
    pub unreadable: u64,
    /// Packets that the consumer's channel had no room for.
    pub unconsumed: u64,
}

impl NflogLosses {
    /// The counts now.
    pub fn counts(&self) -> NflogLossCounts {
        NflogLossCounts {
            missing: self.missing.load(Ordering::Relaxed),
            overruns: self.overruns.load(Ordering::Relaxed),
            unreadable: self.unreadable.load(Ordering::Relaxed),
            unconsumed: self.unconsumed.load(Ordering::Relaxed),
        }
    }
}

/// A bound NFLOG group; from now on the kernel keeps its packets.
#[derive(Debug)]
pub struct NflogGroup {
    /// The socket.
    connection: Connection,
    /// The group.
    group: u16,
    /// Interfaces whose frames begin with the IP header.
    without_link_header: Vec<u32>,
    /// When packets are read.
    pace: Pace,
}

/// A running reader. Dropping it ends the thread and frees the group.
#[derive(Debug)]
pub struct NflogReader {
    /// The group.
    group: u16,
    /// What was lost.
    losses: Arc<NflogLosses>,
    /// The thread.
    reader: Reader,
}

impl NflogGroup {
    /// Binds the first free group of `groups` in `namespace` (an open `/proc/PID/ns/net`).
    ///
    /// # Errors
    /// See [`NflogError`].
    pub fn bind(
        namespace: BorrowedFd<'_>,
        groups: std::ops::RangeInclusive<u16>,
    ) -> Result<Self, NflogError> {
        let (first, last) = (*groups.start(), *groups.end());
        let mut connection =
            Connection::open(NETLINK_NETFILTER, Some(namespace)).map_err(NflogError::Open)?;
        connection.set_receive_buffer(RECEIVE_BUFFER).map_err(NflogError::Open)?;
        for group in groups {
            match configure(&mut connection, group, vec![ConfigNla::Cmd(ConfigCmd::Bind)]) {
                Ok(()) => {
                    let result = set_up(&mut connection, group);
                    return match result {
                        Ok(()) => Ok(Self {
                            connection,
                            group,
                            without_link_header: Vec::new(),
                            pace: Pace::AtOnce,
                        }),
                        Err(source) => Err(NflogError::Bind { group, source }),
                    };
                }
                // Somebody else's; EPERM is what the kernel answers for that, too.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM)) => {}
                Err(source) => return Err(NflogError::Bind { group, source }),
            }
        }
        Err(NflogError::NoFreeGroup { first, last })
    }

    /// The group's number, for the rules.
    pub fn group(&self) -> u16 {
        self.group
    }

    /// Names the interfaces, by index, whose frames have no Ethernet header: tunnels. What they log can't be told from its
    /// bytes, which the job chose.
    #[must_use]
    pub fn without_link_header(mut self, interfaces: Vec<u32>) -> Self {
        self.without_link_header = interfaces;
        self
    }

    /// Reads packets that follow one another quickly some at a time, a little later. For when it is known otherwise who sent
    /// a packet, so that nobody has to be looked up while they live.
    #[must_use]
    pub fn in_bursts(mut self) -> Self {
        self.pace = Pace::Bursts(BURST_PAUSE);
        self
    }

    /// Starts a thread that hands each packet to `handle` at once: the sooner the sender is looked up, the likelier it
    /// still lives.
    ///
    /// # Errors
    /// [`NflogError::Thread`].
    pub fn start(
        self,
        handle: impl FnMut(LoggedPacket) + Send + 'static,
    ) -> Result<NflogReader, NflogError> {
        self.run(Arc::default(), handle)
    }

    /// Starts a thread that sends each packet into a channel of `capacity` packets; what doesn't fit is counted.
    ///
    /// # Errors
    /// [`NflogError::Thread`].
    pub fn start_channel(
        self,
        capacity: usize,
    ) -> Result<(NflogReader, mpsc::Receiver<LoggedPacket>), NflogError> {
        let (sender, receiver) = mpsc::channel(capacity);
        let losses = Arc::<NflogLosses>::default();
        let counted = Arc::clone(&losses);
        let reader = self.run(losses, move |packet| {
            if sender.try_send(packet).is_err() {
                counted.unconsumed.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok((reader, receiver))
    }

    /// Starts the thread.
    fn run(
        self,
        losses: Arc<NflogLosses>,
        mut handle: impl FnMut(LoggedPacket) + Send + 'static,
    ) -> Result<NflogReader, NflogError> {
        let counted = Arc::clone(&losses);
        let mut expected = None;
        let plain = self.without_link_header;
        let reader = Reader::start("nflog", self.connection, self.pace, move |datagram| {
            let Some(datagram) = datagram else {
                counted.overruns.fetch_add(1, Ordering::Relaxed);
                return;
            };
            for message in messages(datagram) {
                if let Some(packet) = parse_message(message, &plain, &mut expected, &counted) {
                    handle(packet);
                }
            }
        });
        Ok(NflogReader { group: self.group, losses, reader: reader.map_err(NflogError::Thread)? })
    }
}

impl NflogReader {
    /// The group's number, for the rules.
    pub fn group(&self) -> u16 {
        self.group
    }

    /// What was lost.
    pub fn losses(&self) -> &Arc<NflogLosses> {
        &self.losses
    }

    /// Whether the thread still reads; it ends by itself only when the socket fails.
    pub fn is_running(&self) -> bool {
        self.reader.is_running()
    }
}

/// Everything but the binding itself.
fn set_up(connection: &mut Connection, group: u16) -> io::Result<()> {
    configure(connection, group, vec![ConfigNla::Mode(ConfigMode::new_packet(COPY_RANGE))])?;
    configure(
        connection,
        group,
        vec![
            // Each packet at once: a sender may live for less than a millisecond.
            ConfigNla::QThresh(1),
            ConfigNla::Timeout(Timeout::new(1)),
            ConfigNla::Flags(ConfigFlags::SEQ),
        ],
    )
}

/// Sends one configuration request.
fn configure(
    connection: &mut Connection,
    group: u16,
    attributes: Vec<ConfigNla>,
) -> io::Result<()> {
    let message = config_request(NetfilterProtoFamily::Unspec, group, attributes);
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let payload = bytes.get(super::netlink::HEADER_LENGTH..).unwrap_or_default();
    connection.request(message.header.message_type, NLM_F_ACK, payload, |_: NetfilterMessage| ())
}

/// Counts what is missing before `sequence`.
fn note_gap(expected: &mut Option<u32>, sequence: Option<u32>, losses: &NflogLosses) {
    let Some(sequence) = sequence else { return };
    if let Some(expected) = *expected {
        // Numbers never go back; a "gap" of more than half of all numbers is one that does.
        let missing = sequence.wrapping_sub(expected);
        if missing < u32::MAX / 2 {
            losses.missing.fetch_add(u64::from(missing), Ordering::Relaxed);
        }
    }
    *expected = Some(sequence.wrapping_add(1));
}

/// Reads one netlink message and counts what it shows to be lost; `None` when it is no readable packet.
fn parse_message(
    message: &[u8],
    without_link_header: &[u32],
    expected: &mut Option<u32>,
    losses: &NflogLosses,
) -> Option<LoggedPacket> {
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(message).ok();
    let packet = message.and_then(|message| {
        let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
        let NetfilterMessageInner::ULog(ULogMessage::Packet(attributes)) = message.inner else {
            return None;
        };
        let sequence = attributes.iter().find_map(|attribute| match attribute {
            PacketNla::Seq(sequence) => Some(*sequence),
            _ => None,
        });
        note_gap(expected, sequence, losses);
        parse_attributes(message.header.family, &attributes, without_link_header)
    });
    if packet.is_none() {
        losses.unreadable.fetch_add(1, Ordering::Relaxed);
    }
    packet
}

/// Reads a packet's attributes.
fn parse_attributes(
    family: NetfilterProtoFamily,
    attributes: &[PacketNla],
    without_link_header: &[u32],
) -> Option<LoggedPacket> {
    let payload = attributes.iter().find_map(|attribute| match attribute {
        PacketNla::Payload(payload) => Some(payload.as_slice()),
        _ => None,
    })?;
    let output_interface = attributes.iter().find_map(|attribute| match attribute {
        PacketNla::IfIndexOutDev(index) => Some(*index),
        _ => None,
    });
    // At a device's egress hook the packet begins with its Ethernet header, everywhere else with the IP header.
    let has_link_header = family == NetfilterProtoFamily::NetDev
        && output_interface.is_none_or(|index| !without_link_header.contains(&index));
    let frame = if has_link_header { Some(frame::parse(payload)?) } else { None };
    let headers = match &frame {
        Some(frame) => frame.headers.unwrap_or_else(|| Headers::of_frame(frame)),
        None => packet::parse(payload)?,
    };
    let mut packet = LoggedPacket {
        prefix: String::new(),
        headers,
        frame,
        uid: None,
        gid: None,
        mark: None,
        input_interface: None,
        output_interface,
        sequence: None,
    };
    for attribute in attributes {
        match attribute {
            PacketNla::Prefix(prefix) => packet.prefix = prefix.to_string_lossy().into_owned(),
            PacketNla::Uid(uid) => packet.uid = Some(*uid),
            PacketNla::Gid(gid) => packet.gid = Some(*gid),
            PacketNla::Mark(mark) => packet.mark = Some(*mark),
            PacketNla::IfIndexInDev(index) => packet.input_interface = Some(*index),
            PacketNla::Seq(sequence) => packet.sequence = Some(*sequence),
            _ => {}
        }
    }
    Some(packet)
}
