//! Records every IP packet that reaches the attacker's network device, below TCP, firewall and everything else.

use crate::canary::Canary;
use crate::namespace::NetworkNamespace;
use crate::patience::wait_until;
use crate::sync::{Stopped, lock};
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Bytes of packets that are kept; what comes after is counted, and a search then fails instead of saying "no".
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// Packets that are described one by one.
const MAX_DESCRIBED: usize = 10_000;

/// `PACKET_OUTGOING` of `linux/if_packet.h`: a frame that this device sent.
const OUTGOING: u8 = 4;

/// An IP packet that arrived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// The source in its header, true or forged.
    pub source: IpAddr,
    /// The destination.
    pub destination: IpAddr,
    /// The protocol number: 6 is TCP.
    pub protocol: u8,
    /// The destination port of TCP, UDP, SCTP, DCCP or UDP-Lite.
    pub port: Option<u16>,
    /// The length of the IP packet in bytes.
    pub length: usize,
}

/// What has arrived so far.
#[derive(Debug, Default)]
struct Recorded {
    frames: u64,
    packets: u64,
    bytes: u64,
    described: Vec<Packet>,
    kept: Vec<u8>,
    /// Where each kept frame ends in `kept`.
    frame_ends: Vec<usize>,
    overflowed: bool,
}

/// The recorder of one network device.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    recorded: Arc<Mutex<Recorded>>,
    device: &'static str,
}

impl Recorder {
    /// Records what arrives at `device`; start it before the device is up, so that nothing is missed.
    pub(crate) fn start(
        namespace: &NetworkNamespace,
        device: &'static str,
        stopped: Stopped,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (socket, index) = namespace.run(|| open(device))??;
        let recorder = Self { recorded: Arc::default(), device };
        let recorded = Arc::clone(&recorder.recorded);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while stopped.wait_readable(&[socket.as_fd()]) {
                let received = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer);
                let Ok((length, Some(from))) = received else { continue };
                if from.ifindex() == index && from.pkttype() != OUTGOING {
                    lock(&recorded).add(&buffer[..length]);
                }
            }
        })?;
        Ok((recorder, thread))
    }

    /// Waits until everything that the device has received is recorded.
    pub(crate) fn settle(&self, namespace: &NetworkNamespace) -> Result<()> {
        let received = received_frames(namespace, self.device)?;
        wait_until("everything that the attacker's device received is recorded", || {
            lock(&self.recorded).frames >= received
        })
        .context("the recorder lost packets, so it can't say what did not arrive")
    }

    pub(crate) fn packets(&self) -> u64 {
        lock(&self.recorded).packets
    }

    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.recorded).bytes
    }

    pub(crate) fn described(&self) -> Vec<Packet> {
        lock(&self.recorded).described.clone()
    }

    /// The IP packets that hold the secret, each by itself; what was too much to be kept is not among them.
    pub(crate) fn packets_with(&self, canary: &Canary) -> Vec<Packet> {
        let recorded = lock(&self.recorded);
        let starts = std::iter::once(0).chain(recorded.frame_ends.iter().copied());
        starts
            .zip(&recorded.frame_ends)
            .map(|(start, end)| &recorded.kept[start..*end])
            .filter(|frame| canary.is_in(frame))
            .filter_map(parse)
            .collect()
    }

    pub(crate) fn saw(&self, canary: &Canary) -> Result<bool> {
        let recorded = lock(&self.recorded);
        if canary.is_in(&recorded.kept) {
            return Ok(true);
        }
        if recorded.overflowed {
            bail!(
                "more than {MAX_KEPT} bytes reached the attacker; the rest was not kept for a search"
            );
        }
        Ok(false)
    }
}

impl Recorded {
    fn add(&mut self, frame: &[u8]) {
        self.frames += 1;
        let Some(packet) = parse(frame) else { return };
        self.packets += 1;
        self.bytes += packet.length as u64;
        if self.described.len() < MAX_DESCRIBED {
            self.described.push(packet);
        }
        if self.kept.len() + frame.len() <= MAX_KEPT {
            self.kept.extend_from_slice(frame);
            self.frame_ends.push(self.kept.len());
        } else {
            self.overflowed = true;
        }
    }
}

fn open(device: &str) -> Result<(OwnedFd, usize)> {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .context("can't open a packet socket (needs root)")?;
    setsockopt(&socket, sockopt::RcvBufForce, &MAX_KEPT)?;
    let index = if_nametoindex(device)
        .with_context(|| format!("there is no device {device} in the attacker's namespace"))?;
    Ok((socket, usize::try_from(index)?))
}

/// Frames that the kernel counted at the device (man 5 `proc_pid_net`, `dev`).
fn received_frames(namespace: &NetworkNamespace, device: &str) -> Result<u64> {
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    text.lines()
        .find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))
        .and_then(|counters| counters.split_whitespace().nth(1)?.parse().ok())
        .with_context(|| format!("can't read the counters of {device}"))
}

/// The IP packet of an Ethernet frame; none for ARP and for the talk of neighbours (neighbour and router discovery,
/// multicast listeners: RFC 4861, RFC 3810), which never comes from beyond a router.
fn parse(frame: &[u8]) -> Option<Packet> {
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(IpAddr::V4(Ipv4Addr::from(bytes)))
            };
            let protocol = *packet.get(9)?;
            Some(Packet {
                source: address(12)?,
                destination: address(16)?,
                protocol,
                port: port(protocol, packet.get(header..)?),
                length: packet.len(),
            })
        }
        [0x86, 0xdd] => {
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(bytes)))
            };
            let (protocol, payload) = match *packet.get(6)? {
                // Hop-by-hop options; RFC 3810 puts a router alert of 8 bytes there.
                0 => (*packet.get(40)?, packet.get(48..)?),
                protocol => (protocol, packet.get(40..)?),
            };
            if protocol == 58 && matches!(payload.first()?, 130..=137 | 143) {
                return None;
            }
            Some(Packet {
                source: address(8)?,
                destination: address(24)?,
                protocol,
                port: port(protocol, payload),
                length: packet.len(),
            })
        }
        _ => None,
    }
}

/// The destination port of TCP, UDP, DCCP, SCTP and UDP-Lite, which all have it in the same place.
fn port(protocol: u8, payload: &[u8]) -> Option<u16> {
    matches!(protocol, 6 | 17 | 33 | 132 | 136).then_some(())?;
    Some(u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]))
}
