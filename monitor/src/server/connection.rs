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
