//! The attacker's host: takes everything, answers everything, and remembers all that reached it.

mod recorder;
mod sink;

use crate::canary::Canary;
use crate::namespace::NetworkNamespace;
use crate::server::certificates::Authority;
use crate::server::dns::NameServer;
use crate::sync::Stopped;
use anyhow::{Context, Result, bail};
pub use recorder::Packet;
use recorder::Recorder;
use sink::Sink;
pub use sink::Stream;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The attacker's IPv4 address.
pub const ATTACKER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

/// The attacker's IPv6 address.
pub const ATTACKER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x66);

/// The zone that the attacker serves.
pub const ATTACKER_ZONE: &str = "evil.test";

/// The protocol number of TCP.
const TCP: u8 = 6;

/// The device of the attacker's host.
pub(crate) const DEVICE: &str = "eth0";

/// The attacker's host.
#[derive(Debug)]
pub struct Attacker {
    namespace: NetworkNamespace,
    recorder: Recorder,
    sink: Arc<Sink>,
    dns: NameServer,
}

impl Attacker {
    /// Starts to record; the device must exist and be down.
    pub(crate) fn new(
        namespace: NetworkNamespace,
        stopped: &Stopped,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (recorder, thread) = Recorder::start(&namespace, DEVICE, stopped.clone())?;
        let attacker = Self { namespace, recorder, sink: Arc::default(), dns: NameServer::new() };
        Ok((attacker, thread))
    }

    /// Starts the servers; the device must be up.
    pub(crate) fn serve(
        &self,
        authority: &Arc<Authority>,
        stopped: &Stopped,
    ) -> Result<Vec<JoinHandle<()>>> {
        let addresses = [IpAddr::V4(ATTACKER_V4), IpAddr::V6(ATTACKER_V6)];
        self.dns.catch_all(&addresses);
        let mut threads = self.sink.serve(&self.namespace, authority, stopped)?;
        threads.extend(self.dns.serve(&self.namespace, &addresses, stopped)?);
        Ok(threads)
    }

    /// The network namespace of the attacker's host.
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// How many IP packets reached the attacker; neighbour discovery and the like are not counted.
    ///
    /// # Errors
    /// When packets were lost and the number is not known.
    pub fn packets(&self) -> Result<u64> {
        self.recorder.settle(&self.namespace)?;
        Ok(self.recorder.packets())
    }

    /// How many bytes of IP packets, headers included, reached the attacker.
    ///
    /// # Errors
    /// When packets were lost and the number is not known.
    pub fn received_bytes(&self) -> Result<u64> {
        self.recorder.settle(&self.namespace)?;
        Ok(self.recorder.bytes())
    }

    /// The first 10 000 packets, for the message of a failed assertion.
    pub fn described_packets(&self) -> Vec<Packet> {
        self.recorder.described()
    }

    /// Whether the secret reached the attacker: in a packet, across the packets of a connection, inside TLS that the
    /// attacker ended, or in the labels of names that it was asked for.
    ///
    /// # Errors
    /// When packets were lost or too many to be kept, so that "no" would be a guess.
    pub fn saw(&self, canary: &Canary) -> Result<bool> {
        self.recorder.settle(&self.namespace)?;
        let in_names = || {
            self.dns
                .queries()
                .iter()
                .any(|query| canary.is_in(query.name.replace('.', "").as_bytes()))
        };
        let in_streams = || self.streams().iter().any(|stream| canary.is_in(&stream.received));
        Ok(self.recorder.saw(canary)? || in_names() || in_streams())
    }

    /// How many bytes that hold the secret reached the attacker: TCP connections as the attacker read them (inside TLS,
    /// where it was spoken), and every other packet, headers included. When the secret arrived in a way that no single
    /// message shows, everything that arrived counts.
    ///
    /// # Errors
    /// When packets were lost or too many to be kept, so that a number would be a guess.
    pub fn leaked_bytes(&self, canary: &Canary) -> Result<u64> {
        if !self.saw(canary)? {
            return Ok(0);
        }
        let streams: Vec<Stream> =
            self.streams().into_iter().filter(|stream| canary.is_in(&stream.received)).collect();
        // A packet of a connection that was read is in that connection's bytes already.
        let is_of_stream = |packet: &Packet| {
            packet.protocol == TCP && streams.iter().any(|stream| packet.port == Some(stream.port))
        };
        let in_streams: usize = streams.iter().map(|stream| stream.received.len()).sum();
        let in_packets: usize = self
            .recorder
            .packets_with(canary)
            .iter()
            .filter(|packet| !is_of_stream(packet))
            .map(|packet| packet.length)
            .sum();
        match in_streams + in_packets {
            0 => Ok(self.recorder.bytes()),
            bytes => Ok(u64::try_from(bytes)?),
        }
    }

    /// Fails when the secret or anything else reached the attacker.
    ///
    /// # Errors
    /// With what arrived.
    pub fn assert_untouched(&self, canary: &Canary) -> Result<()> {
        if self.saw(canary)? {
            bail!("the secret reached the attacker; packets: {:?}", self.described_packets());
        }
        let packets = self.packets()?;
        if packets > 0 {
            bail!(
                "{packets} packets ({} bytes) reached the attacker: {:?}",
                self.received_bytes()?,
                self.described_packets()
            );
        }
        Ok(())
    }

    /// The TCP connections that the attacker accepted.
    pub fn streams(&self) -> Vec<Stream> {
        self.sink.streams()
    }

    /// The attacker's name server, which answers every name with the attacker's addresses.
    pub fn dns(&self) -> &NameServer {
        &self.dns
    }

    /// Sends these bytes to whoever connects to this port, at once: a command for a reverse shell, say.
    pub fn greet(&self, port: u16, greeting: &[u8]) {
        self.sink.greet(port, greeting);
    }

    /// Connects to an address from the attacker's host.
    ///
    /// # Errors
    /// When the connection is refused or not answered within `patience`.
    pub fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        self.namespace
            .run(|| TcpStream::connect_timeout(&address, crate::patience::patience()))?
            .with_context(|| format!("the attacker can't connect to {address}"))
    }
}
