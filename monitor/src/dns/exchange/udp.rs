//! A connected UDP socket to an upstream, shared by the questions under way.

use super::super::message::{Match, OutgoingQuery, read_u16};
use super::super::observer::Transport;
use super::super::sockets::UpstreamSource;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

/// The largest datagram taken; we announce less.
const MAXIMUM_RESPONSE: usize = 4096;

/// Messages that answer no question of ours, seen while a question waits, after which it is asked over TCP instead. Late
/// answers to questions given up are a few; a forger needs tens of thousands.
const MAXIMUM_STRAYS: u32 = 32;

/// Questions under way on one socket; ids have 16 bits, and finding a free one must stay quick.
const MAXIMUM_PENDING: usize = 4096;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The socket failed.
    Network(io::Error),
    /// Somebody seems to be guessing at answers, or the upstream changes the case of letters.
    Suspicious,
}

/// A question under way.
#[derive(Debug)]
struct Pending {
    query: Arc<OutgoingQuery>,
    strays: u32,
    answer: oneshot::Sender<Result<Vec<u8>, Failure>>,
}

/// A socket and the questions under way on it.
#[derive(Debug)]
pub(in super::super) struct Channel {
    socket: UdpSocket,
    source: UpstreamSource,
    connected: AtomicBool,
    pending: Mutex<HashMap<u16, Pending>>,
}

/// Opens a socket for `upstream` on a port that the kernel chooses at random. A network that is not up yet is no error: the
/// socket is then connected when it is first used.
pub(super) fn bind(upstream: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Channel {
    pub(super) fn new(socket: std::net::UdpSocket, upstream: SocketAddr) -> io::Result<Self> {
        let port = socket.local_addr()?.port();
        let connected = socket.connect(upstream).is_ok();
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            source: UpstreamSource { transport: Transport::Udp, port, upstream },
            connected: AtomicBool::new(connected),
            pending: Mutex::default(),
        })
    }

    pub(super) fn source(&self) -> UpstreamSource {
        self.source
    }

    /// Sends `query` and waits until `deadline` for the answer that matches it.
    pub(super) async fn exchange(
        &self,
        query: OutgoingQuery,
        deadline: Instant,
    ) -> Result<Result<Vec<u8>, Failure>, Elapsed> {
        let (answer, receiver) = oneshot::channel();
        let registered = match self.register(query, answer) {
            Ok(registered) => registered,
            Err(error) => return Ok(Err(Failure::Network(error))),
        };
        if let Err(error) = self.send(registered.query.bytes()).await {
            return Ok(Err(Failure::Network(error)));
        }
        let received = tokio::time::timeout_at(deadline, receiver).await?;
        Ok(received.unwrap_or_else(|_| {
            Err(Failure::Network(io::Error::other("the resolver is shutting down")))
        }))
    }

    async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        if !self.connected.load(Ordering::Relaxed) {
            self.socket.connect(self.source.upstream).await?;
            self.connected.store(true, Ordering::Relaxed);
        }
        match self.socket.send(bytes).await {
            // An ICMP error about an earlier datagram is delivered once; the next call sends.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.socket.send(bytes).await.map(|_| ())
            }
            result => result.map(|_| ()),
        }
    }

    /// Enters the question under an id that no other one has; taken out when the guard is dropped.
    fn register(
        &self,
        mut query: OutgoingQuery,
        answer: oneshot::Sender<Result<Vec<u8>, Failure>>,
    ) -> io::Result<Registered<'_>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() >= MAXIMUM_PENDING {
            return Err(io::Error::other("too many questions are under way"));
        }
        while pending.contains_key(&query.id()) {
            query.renew_id();
        }
        let id = query.id();
        let query = Arc::new(query);
        pending.insert(id, Pending { query: Arc::clone(&query), strays: 0, answer });
        Ok(Registered { channel: self, id, query })
    }

    /// Hands a datagram to the question that it answers.
    fn deliver(&self, response: &[u8]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let id = read_u16(response, 0).unwrap_or(0);
        let relation =
            pending.get(&id).map_or(Match::Foreign, |pending| pending.query.compare(response));
        if relation != Match::Foreign {
            if let Some(Pending { answer, .. }) = pending.remove(&id) {
                let result = match relation {
                    Match::Exact => Ok(response.to_vec()),
                    _ => Err(Failure::Suspicious),
                };
                // An error means that the question was given up in this moment.
                let _ = answer.send(result);
            }
            return;
        }
        for question in pending.values_mut() {
            question.strays += 1;
        }
        for (_, question) in pending.extract_if(|_, question| question.strays > MAXIMUM_STRAYS) {
            let _ = question.answer.send(Err(Failure::Suspicious));
        }
    }

    /// The upstream's host said that nobody listens there: no need to wait for any of the questions.
    fn refuse_all(&self, kind: io::ErrorKind) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, question) in pending.drain() {
            let _ = question.answer.send(Err(Failure::Network(kind.into())));
        }
    }
}

/// A question's entry; dropping it takes the entry out.
#[derive(Debug)]
struct Registered<'channel> {
    channel: &'channel Channel,
    id: u16,
    query: Arc<OutgoingQuery>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut pending = self.channel.pending.lock().unwrap_or_else(PoisonError::into_inner);
        // The id may belong to another question by now.
        if pending.get(&self.id).is_some_and(|entry| Arc::ptr_eq(&entry.query, &self.query)) {
            pending.remove(&self.id);
        }
    }
}

/// Reads from the channel's socket until the task is aborted.
pub(super) async fn receive(channel: Arc<Channel>) {
    let mut buffer = [0; MAXIMUM_RESPONSE];
    loop {
        match channel.socket.recv(&mut buffer).await {
            Ok(length) => channel.deliver(buffer.get(..length).unwrap_or(&[])),
            Err(error) => {
                channel.refuse_all(error.kind());
                // Errors of a UDP socket are about single datagrams; letting others run keeps a broken one from spinning.
                tokio::task::yield_now().await;
            }
        }
    }
}
