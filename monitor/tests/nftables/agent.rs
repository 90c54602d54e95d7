//! The process behind [`crate::world::Agent`]: reads an order a line, answers a line.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(2);

#[test]
#[ignore = "not a test: the body of a process that other tests start"]
fn agent() {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut listeners: Vec<TcpListener> = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match obey(&words, &mut streams, &mut listeners) {
            Ok(answer) => answer,
            Err(error) => format!("error {:?} {error}", error.kind()),
        };
        println!("AGENT {answer}");
    }
}

fn obey(
    words: &[&str],
    streams: &mut Vec<TcpStream>,
    listeners: &mut Vec<TcpListener>,
) -> std::io::Result<String> {
    let address = || words[1].parse::<SocketAddr>().unwrap();
    let any = |peer: SocketAddr| if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    match words[0] {
        // Connects, sends, and keeps the connection.
        "tcp" => {
            let mut stream = TcpStream::connect_timeout(&address(), WAIT)?;
            stream.write_all(words[2].as_bytes())?;
            streams.push(stream);
            Ok(format!("ok {}", streams.len() - 1))
        }
        // Sends more on a connection.
        "more" => {
            streams[words[1].parse::<usize>().unwrap()].write_all(words[2].as_bytes())?;
            Ok("ok".to_owned())
        }
        "local" => Ok(streams[words[1].parse::<usize>().unwrap()].local_addr()?.to_string()),
        // Ends a connection.
        "close" => {
            drop(streams.remove(words[1].parse().unwrap()));
            Ok("ok".to_owned())
        }
        "hear" => {
            let stream = &mut streams[words[1].parse::<usize>().unwrap()];
            stream.set_read_timeout(Some(WAIT))?;
            let mut bytes = [0; 4096];
            let length = stream.read(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
        }
        // One datagram, without an answer.
        "udp" => {
            UdpSocket::bind(any(address()))?.send_to(words[2].as_bytes(), address())?;
            Ok("ok".to_owned())
        }
        // One datagram from a given address, and its answer.
        "ask" => {
            let socket = UdpSocket::bind(words.get(3).copied().unwrap_or_else(|| any(address())))?;
            socket.set_read_timeout(Some(WAIT))?;
            socket.send_to(words[2].as_bytes(), address())?;
            let mut bytes = vec![0; 65536];
            let (length, from) = socket.recv_from(&mut bytes)?;
            Ok(format!("{from} {}", String::from_utf8_lossy(&bytes[..length.min(64)])))
        }
        // Listens, and answers a first connection when told to accept.
        "listen" => {
            let listener = TcpListener::bind(address())?;
            let bound = listener.local_addr()?;
            listeners.push(listener);
            Ok(format!("{bound}"))
        }
        "accept" => {
            let listener = &listeners[words[1].parse::<usize>().unwrap()];
            listener.set_nonblocking(true)?;
            let start = std::time::Instant::now();
            loop {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        stream.set_nonblocking(false)?;
                        stream.write_all(words[2].as_bytes())?;
                        streams.push(stream);
                        return Ok(format!("ok {}", streams.len() - 1));
                    }
                    Err(error) if start.elapsed() > WAIT => return Err(error),
                    Err(_) => std::thread::yield_now(),
                }
            }
        }
        // A packet with a header of its own making, in hexadecimal digits.
        "raw" => {
            let bytes: Vec<u8> = (0..words[2].len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&words[2][at..at + 2], 16).unwrap())
                .collect();
            raw(address(), &bytes)
        }
        other => panic!("unknown order {other}"),
    }
}

fn raw(to: SocketAddr, packet: &[u8]) -> std::io::Result<String> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
        socket,
    };
    use std::os::fd::AsRawFd;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
    let flags = MsgFlags::empty();
    match to {
        SocketAddr::V4(to) => sendto(socket.as_raw_fd(), packet, &SockaddrIn::from(to), flags)?,
        SocketAddr::V6(to) => sendto(socket.as_raw_fd(), packet, &SockaddrIn6::from(to), flags)?,
    };
    Ok("ok".to_owned())
}
