//! Queries over UDP.

use super::super::message::MAXIMUM_QUERY;
use super::super::observer::Transport;
use super::core::{Core, Respond, Step};
use std::io;
use std::sync::Arc;
use tokio::net::UdpSocket;

/// Datagrams taken before other tasks of the runtime get their turn.
const BATCH: usize = 64;

/// Answers the datagrams of `socket` until the task is aborted. Known answers leave from here at once; the others are asked
/// for by tasks of their own.
pub(super) async fn serve(core: Arc<Core>, socket: Arc<UdpSocket>) {
    // One byte more than the longest query, so that a longer one is seen to be longer.
    let mut buffer = vec![0; MAXIMUM_QUERY + 1];
    let mut out = Vec::with_capacity(2048);
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(%error, "the resolver's UDP socket failed");
            return;
        }
        for _ in 0..BATCH {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, client)) => {
                    let message = buffer.get(..length).unwrap_or(&[]);
                    let respond = Respond::Udp(Arc::clone(&socket));
                    let step = core.handle(message, &mut out, client, Transport::Udp, respond);
                    match step {
                        Step::Reply(respond, observation) => {
                            respond.send(&out, client);
                            core.observe(observation);
                        }
                        Step::Silence(observation) => core.observe(observation),
                        Step::Later => {}
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The kernel reports ICMP errors about earlier answers; they concern nobody here.
                Err(_) => {}
            }
        }
        tokio::task::consume_budget().await;
    }
}
