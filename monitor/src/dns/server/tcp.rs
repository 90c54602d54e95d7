//! Queries over TCP: any number on a connection, each judged alone, answered in any order (RFC 7766).

use super::super::config::TcpLimits;
use super::super::message::MAXIMUM_QUERY;
use super::super::observer::Transport;
use super::core::{Core, Respond, Step};
use super::udp::Listens;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

/// How long accepting pauses when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the task is aborted. `slots` are shared by all listeners of the resolver.
pub(super) async fn serve(
    core: Arc<Core>,
    (listener, listens): (TcpListener, Listens),
    limits: TcpLimits,
    slots: Arc<Semaphore>,
) {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the resolver could not accept a TCP connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Beyond the limit the connection is closed by dropping it.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        // Answers are small and complete.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&core);
        core.spawn(async move {
            let (reader, writer) = stream.into_split();
            let client = (client, listens);
            let _ = timeout(limits.total, converse(shared, reader, writer, client, limits)).await;
            drop(slot);
        });
    }
}

/// One connection: reads until the client stops or errs, writes until every answer is out.
async fn converse(
    core: Arc<Core>,
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
    client: (SocketAddr, Listens),
    limits: TcpLimits,
) {
    let (queue, answers) = mpsc::channel(limits.pipelined);
    let reading = read_queries(&core, reader, queue, client, limits);
    let writing = write_answers(writer, answers, limits.write);
    tokio::pin!(writing);
    tokio::select! {
        // A writer that is done before the reader has failed: the client takes nothing any more.
        () = &mut writing => {}
        () = reading => writing.await,
    }
}

async fn read_queries(
    core: &Arc<Core>,
    mut reader: impl AsyncRead + Unpin,
    queue: mpsc::Sender<Vec<u8>>,
    (client, listens): (SocketAddr, Listens),
    limits: TcpLimits,
) {
    let mut message = Vec::with_capacity(512);
    let mut out = Vec::with_capacity(2048);
    loop {
        match timeout(limits.idle, read_message(&mut reader, &mut message)).await {
            Ok(Ok(())) => {}
            // The end, an error, an overlong message, or nothing for too long.
            Ok(Err(_)) | Err(_) => return,
        }
        // Each query has its place in the queue before it is handled, so an answer that comes later never finds it full.
        let Ok(place) = queue.clone().reserve_owned().await else { return };
        let respond = Respond::Tcp(place, listens);
        let step = core.handle(&message, &mut out, client, Transport::Tcp, respond);
        match step {
            Step::Reply(respond, observation) => {
                respond.send(&out, client);
                core.observe(observation);
            }
            Step::Silence(observation) => core.observe(observation),
            Step::Later => {}
        }
    }
}

/// Reads one message with its length in front.
async fn read_message(
    reader: &mut (impl AsyncRead + Unpin),
    message: &mut Vec<u8>,
) -> io::Result<()> {
    let length = usize::from(reader.read_u16().await?);
    if length > MAXIMUM_QUERY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    message.resize(length, 0);
    reader.read_exact(message).await.map(|_| ())
}

/// Writes answers until nobody can send any more. Stops when the client does not take one within `patience`.
async fn write_answers(
    mut writer: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Vec<u8>>,
    patience: Duration,
) {
    let mut framed = Vec::new();
    while let Some(answer) = answers.recv().await {
        let Ok(length) = u16::try_from(answer.len()) else { continue };
        framed.clear();
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&answer);
        match timeout(patience, writer.write_all(&framed)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let _ = writer.shutdown().await;
}
