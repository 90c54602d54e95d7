//! Queries over UDP.

use super::super::message::MAXIMUM_QUERY;
use super::super::observer::Transport;
use super::anywhere;
use super::core::{Core, Respond, Step};
use std::io;
use std::sync::Arc;
use tokio::net::UdpSocket;

/// Datagrams taken before other tasks of the runtime get their turn.
const BATCH: usize = 64;

/// What a socket is bound to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Listens {
    /// One address.
    OnAddress,
    /// All addresses of a family.
    Anywhere,
}

/// Answers the datagrams of `socket` until the task is aborted. Known answers leave from here at once; the others are asked
/// for by tasks of their own.
pub(super) async fn serve(core: Arc<Core>, socket: Arc<UdpSocket>, listens: Listens) {
    // One byte more than the longest query, so that a longer one is seen to be longer.
    let mut buffer = vec![0; MAXIMUM_QUERY + 1];
    let mut out = Vec::with_capacity(2048);
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(%error, "the resolver's UDP socket failed");
            return;
        }
        for _ in 0..BATCH {
            let received = match listens {
                Listens::OnAddress => {
                    socket.try_recv_from(&mut buffer).map(|(length, client)| (length, client, None))
                }
                Listens::Anywhere => anywhere::receive(&socket, &mut buffer),
            };
            match received {
                Ok((length, client, arrived)) => {
                    let message = buffer.get(..length).unwrap_or(&[]);
                    let respond = Respond::Udp(Arc::clone(&socket), arrived);
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
