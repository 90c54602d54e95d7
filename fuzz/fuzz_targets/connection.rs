//! The monitor's socket from `accept` on: whatever a peer sends, in whatever pieces, it gets one line that is an answer, and
//! the connection ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis_common::wire::{Answer, Call, Refusal, RefusalKind, decode_answer};
use portcullis_monitor::caller::Peer;
use portcullis_monitor::server::{self, Reply, Requests};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Longer than the server gives a peer that is silent, which none here is.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most pieces that an input is sent in.
const PIECES: usize = 8;

/// Answers with what was asked for, so that what a peer chose goes back through the encoder.
#[derive(Debug)]
struct Echo;

impl Requests for Echo {
    fn answer(&self, caller: &Peer, call: Call) -> Reply {
        assert_eq!(caller.key().pid, std::process::id());
        let message = format!("{call:?}");
        Answer::Refused(Refusal { kind: RefusalKind::BadRequest, message, hint: None }).into()
    }
}

/// The real server, on an abstract address of this process.
static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| {
    let name = format!("portcullis-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("it is short");
    let listener = UnixListener::bind_addr(&address).expect("nobody else has the name");
    listener.set_nonblocking(true).expect("a socket can be non-blocking");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).expect("it listens");
            server::run(listener, Arc::new(Echo)).await;
        });
    });
    address
});

fuzz_target!(|bytes: &[u8]| {
    // The first byte says in how many pieces, and whether the peer closes its side behind them or leaves at once.
    let Some((how, message)) = bytes.split_first() else { return };
    let pieces = usize::from(how & 0x7f) % PIECES + 1;
    let leaves = how & 0x80 != 0;
    let mut peer = loop {
        match UnixStream::connect_addr(&SERVER) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            connected => break connected.expect("the server is there"),
        }
    };
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    for piece in message.chunks(message.len().div_ceil(pieces).max(1)) {
        // The server may have heard enough.
        if peer.write_all(piece).is_err() {
            break;
        }
    }
    if leaves {
        return;
    }
    let _ = peer.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match peer.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            // libFuzzer looks at the time by a signal, and a read with a timeout is not taken up again after one (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // It closed with something of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("no answer within {PATIENCE:?}: {error}"),
        }
    }
    let lines = answer.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, 1, "{}", String::from_utf8_lossy(&answer));
    decode_answer(&answer).expect("an answer can be read");
});
