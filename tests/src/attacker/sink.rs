//! Takes whatever is sent to the attacker on any TCP or UDP port, so that data really flows: TLS is spoken when the
//! client begins it, HTTP is answered, datagrams are sent back.

use crate::namespace::NetworkNamespace;
use crate::server::certificates::Authority;
use crate::server::http::{Connection, Response, read_request, write_response};
use crate::server::{tcp, tls};
use crate::sync::{Stopped, lock};
use anyhow::{Context, Result};
use nix::sys::socket::{getsockopt, sockopt};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// The port that everything is redirected to.
const SINK_PORT: u16 = 60_000;

/// Bytes that are kept of one connection.
const MAX_KEPT: usize = 16 * 1024 * 1024;

/// Everything but DNS, which has a server of its own, goes to the sink; both families in one table.
const REDIRECT: &str = "table inet sink {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    meta l4proto { tcp, udp } th dport != 53 redirect to :60000
  }
}";

/// A TCP connection that the attacker accepted.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Who connected.
    pub peer: SocketAddr,
    /// The port that was called.
    pub port: u16,
    /// The server name, when the client spoke TLS and gave one.
    pub server_name: Option<String>,
    /// What the client sent; the plain text when it spoke TLS.
    pub received: Vec<u8>,
}

/// What the sink shares with the attacker's handle.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    streams: Mutex<Vec<Arc<Mutex<Stream>>>>,
    greetings: Mutex<HashMap<u16, Vec<u8>>>,
}

impl Sink {
    pub(crate) fn serve(
        self: &Arc<Self>,
        namespace: &NetworkNamespace,
        authority: &Arc<Authority>,
        stopped: &Stopped,
    ) -> Result<Vec<JoinHandle<()>>> {
        // Each family has a socket of its own, because the original destination is asked by family.
        namespace.sysctl("ipv6/bindv6only", "1")?;
        let mut threads = Vec::new();
        for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let address = SocketAddr::from((address, SINK_PORT));
            let listener = namespace.run(|| tcp::listen(address))??;
            let (sink, authority) = (Arc::clone(self), Arc::clone(authority));
            threads.push(tcp::serve(
                "sink-tcp",
                listener,
                stopped.clone(),
                // A connection that breaks has been recorded as far as it came.
                Arc::new(move |stream| drop(sink.take(stream, &authority))),
            )?);
            let socket = namespace.run(|| UdpSocket::bind(address))??;
            let stopped = stopped.clone();
            threads.push(
                std::thread::Builder::new()
                    .name("sink-udp".to_owned())
                    .spawn(move || echo(&socket, &stopped))?,
            );
        }
        namespace
            .tool("nft", &["-f", "-"], Some(REDIRECT))
            .context("can't redirect the attacker's ports")?;
        Ok(threads)
    }

    pub(crate) fn streams(&self) -> Vec<Stream> {
        lock(&self.streams).iter().map(|stream| lock(stream).clone()).collect()
    }

    pub(crate) fn greet(&self, port: u16, greeting: &[u8]) {
        lock(&self.greetings).insert(port, greeting.to_vec());
    }

    fn take(&self, mut stream: TcpStream, authority: &Arc<Authority>) -> Result<()> {
        let peer = stream.peer_addr()?;
        let port = original_port(&stream)?;
        let record =
            Arc::new(Mutex::new(Stream { peer, port, server_name: None, received: Vec::new() }));
        lock(&self.streams).push(Arc::clone(&record));
        let greeting = lock(&self.greetings).get(&port).cloned();
        if let Some(greeting) = greeting {
            stream.write_all(&greeting)?;
        }
        let mut first = [0];
        stream.peek(&mut first)?;
        // The first byte of a TLS handshake record (RFC 8446 §5.1).
        if first == [0x16] {
            let (stream, server_name) = tls::accept(authority, stream)?;
            lock(&record).server_name = server_name;
            swallow(stream, record, peer)?;
        } else {
            swallow(stream, record, peer)?;
        }
        Ok(())
    }
}

/// Reads all that comes and answers what looks like HTTP.
fn swallow(
    stream: impl Read + Write,
    record: Arc<Mutex<Stream>>,
    peer: SocketAddr,
) -> io::Result<()> {
    let mut stream = BufReader::new(Recording { stream, record });
    let start = stream.fill_buf()?;
    let method: Vec<u8> = start.iter().copied().take_while(u8::is_ascii_uppercase).collect();
    let http = method.len() >= 3 && start.get(method.len()) == Some(&b' ');
    if http {
        let connection = Connection { server_name: None, peer, local: peer, number: 0 };
        while let Some(request) = read_request(&mut stream, &connection)? {
            if !write_response(stream.get_mut(), &request, Response::ok("thank you\n"))? {
                break;
            }
        }
    } else {
        io::copy(&mut stream, &mut io::sink())?;
    }
    Ok(())
}

/// Keeps what is read.
struct Recording<S> {
    stream: S,
    record: Arc<Mutex<Stream>>,
}

impl<S: Read> Read for Recording<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        let mut record = lock(&self.record);
        if record.received.len() + length <= MAX_KEPT {
            record.received.extend_from_slice(&buffer[..length]);
        }
        Ok(length)
    }
}

impl<S: Write> Write for Recording<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn echo(socket: &UdpSocket, stopped: &Stopped) {
    let mut buffer = vec![0; 65_535];
    while stopped.wait_readable(&[socket.as_fd()]) {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}

/// The port that the client called, before the redirection.
fn original_port(stream: &TcpStream) -> Result<u16> {
    let port = if stream.local_addr()?.is_ipv4() {
        getsockopt(stream, sockopt::OriginalDst).map(|address| address.sin_port)
    } else {
        getsockopt(stream, sockopt::Ip6tOriginalDst).map(|address| address.sin6_port)
    };
    Ok(u16::from_be(port.context("can't find the port that was called")?))
}
