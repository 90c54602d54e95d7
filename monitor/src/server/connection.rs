//! One connection: one request, one answer.

use super::{Reply, Requests};
use crate::caller::identify_peer;
use portcullis_common::wire::{self, Answer, MAX_REQUEST_BYTES, Refusal, RefusalKind};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a peer may take to send its request. A hook sends it in one write.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer may take to read its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a request, has it answered, writes the answer.
pub(super) async fn serve(mut stream: UnixStream, requests: Arc<dyn Requests>) -> io::Result<()> {
    let Reply { answer, afterwards } = match timeout(READ_TIMEOUT, read_request(&mut stream)).await
    {
        Err(_) => refused("the request did not come within 2 s").into(),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(None)) => refused("the request is longer than a request may be").into(),
        Ok(Ok(Some(line))) => answer_to(&stream, &line, requests).await,
    };
    let line = wire::encode_answer(answer);
    let written = timeout(WRITE_TIMEOUT, stream.write_all(&line)).await;
    if let Some(afterwards) = afterwards {
        tokio::task::spawn_blocking(afterwards);
    }
    written.map_err(io::Error::from)?
}

async fn answer_to(stream: &UnixStream, line: &[u8], requests: Arc<dyn Requests>) -> Reply {
    let request = match wire::decode_request(line) {
        Ok(request) => request,
        Err(refusal) => return Answer::Refused(refusal).into(),
    };
    // Asked for only now: a peer that never sends a request is not worth a look into /proc.
    let caller = match identify_peer(stream) {
        Ok(caller) => caller,
        Err(error) => {
            return Answer::Refused(Refusal {
                kind: RefusalKind::NotARunnerJob,
                message: format!("it can't be told who is calling: {error}"),
                hint: Some("call from a process that lives until it has its answer".to_owned()),
            })
            .into();
        }
    };
    let answered =
        tokio::task::spawn_blocking(move || requests.answer(&caller, request.call)).await;
    answered.unwrap_or_else(|error| {
        tracing::error!(error = %error, "answering a request failed");
        Answer::Refused(Refusal {
            kind: RefusalKind::NotEnforced,
            message: "the monitor failed while it answered; its log says why".to_owned(),
            hint: Some("journalctl -u portcullis-monitor.service".to_owned()),
        })
        .into()
    })
}

/// The request's bytes up to the newline, or up to the end when the peer closed its side; `None` when it is too long.
async fn read_request(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).await?;
        let new = chunk.get(..count).unwrap_or_default();
        if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(new.get(..=end).unwrap_or_default());
            return Ok((line.len() <= MAX_REQUEST_BYTES).then_some(line));
        }
        line.extend_from_slice(new);
        if line.len() > MAX_REQUEST_BYTES {
            return Ok(None);
        }
        if count == 0 {
            return Ok(Some(line));
        }
    }
}

fn refused(message: &str) -> Answer {
    Answer::Refused(Refusal {
        kind: RefusalKind::BadRequest,
        message: message.to_owned(),
        hint: Some("speak the protocol of docs/socket.md: one line of JSON".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Peer;
    use portcullis_common::wire::{Call, Status};
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Tells afterwards whether the peer had its answer, or was gone, when it began to wait.
    #[derive(Debug)]
    struct Follows {
        go_on: Mutex<Option<Receiver<()>>>,
        done: Sender<bool>,
    }

    impl Requests for Follows {
        fn answer(&self, _: &Peer, _: Call) -> Reply {
            let go_on = self.go_on.lock().unwrap().take().unwrap();
            let done = self.done.clone();
            let answer = Answer::Status(Status { jobs: Vec::new(), infrastructure: Vec::new() });
            Reply::followed_by(answer, move || {
                done.send(go_on.recv_timeout(PATIENCE).is_ok()).unwrap();
            })
        }
    }

    fn serve_one(peer: impl FnOnce(UnixStream)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (go, go_on) = channel();
        let (done, is_done) = channel();
        let requests = Arc::new(Follows { go_on: Mutex::new(Some(go_on)), done });
        let (ours, theirs) = runtime.block_on(async { UnixStream::pair() }).unwrap();
        runtime.spawn(serve(ours, requests));
        let _context = runtime.enter();
        peer(theirs);
        go.send(()).unwrap();
        assert!(is_done.recv_timeout(PATIENCE).unwrap());
    }

    #[test]
    fn what_follows_an_answer_waits_for_it_and_for_nobody() {
        let request = wire::encode_request(Call::Status {}).unwrap();
        serve_one(|peer| {
            let mut peer = peer.into_std().unwrap();
            peer.set_nonblocking(false).unwrap();
            io::Write::write_all(&mut peer, &request).unwrap();
            let mut answer = Vec::new();
            // To the end: the connection is closed although what follows has not ended.
            io::Read::read_to_end(&mut peer, &mut answer).unwrap();
            assert!(matches!(wire::decode_answer(&answer).unwrap(), Answer::Status(_)));
        });
        // Somebody who asks and does not wait for the answer.
        serve_one(|peer| {
            let mut peer = peer.into_std().unwrap();
            peer.set_nonblocking(false).unwrap();
            io::Write::write_all(&mut peer, &request).unwrap();
            drop(peer);
        });
    }
}
