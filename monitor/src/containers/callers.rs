//! Who is connected to an engine: the kernel remembers it for each end of a connection (`SO_PEERCRED`), whatever network
//! namespace the other end is in, and however the engine's socket came into the caller's hands.

use crate::sys::pidfd;
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// The most descriptors of an engine that are looked at.
const DESCRIPTOR_LIMIT: usize = 65_536;

/// The process ids of those who are connected to the sockets of the engine `engine`, itself and the monitor left out. A
/// process that is gone is among them. `None` when that can't be found out.
pub fn callers(engine: u32) -> Option<Vec<u32>> {
    let process = pidfd::open(engine).ok()?;
    let entries = fs::read_dir(format!("/proc/{engine}/fd")).ok()?;
    let mut found = Vec::new();
    for entry in entries.flatten().take(DESCRIPTOR_LIMIT) {
        let is_socket = fs::read_link(entry.path())
            .is_ok_and(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let (true, Some(number)) = (is_socket, number) else { continue };
        let Ok(copy) = pidfd::duplicate(process.as_fd(), number) else { continue };
        // An accepted socket has the name of the listener; the engine's own connections to others have none.
        let has_name = getsockname::<SockaddrStorage>(copy.as_raw_fd()).is_ok_and(|name| {
            name.as_unix_addr()
                .is_some_and(|name| name.path().is_some() || name.as_abstract().is_some())
        });
        if !has_name {
            continue;
        }
        let is_listening = getsockopt(&copy, sockopt::AcceptConn).unwrap_or(true);
        if let (false, Ok(peer)) = (is_listening, getsockopt(&copy, sockopt::PeerCredentials)) {
            found.extend(u32::try_from(peer.pid()).ok());
        }
    }
    found.retain(|pid| *pid != engine && *pid != std::process::id());
    found.sort_unstable();
    found.dedup();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::callers;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    #[test]
    fn whoever_is_connected_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let _own = UnixStream::connect(&path).unwrap();
        let mut client = Command::new("python3")
            .args(["-c", "import socket,sys,time\ns=socket.socket(1)\ns.connect(sys.argv[1])\nprint(1,flush=True)\ntime.sleep(1000)"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(client.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let accepted: Vec<_> = (0..2).map(|_| listener.accept().unwrap()).collect();
        let found = callers(std::process::id()).unwrap();
        client.kill().unwrap();
        client.wait().unwrap();
        assert!(found.contains(&client.id()), "{found:?} of {accepted:?}");
        assert!(!found.contains(&std::process::id()));
    }
}
