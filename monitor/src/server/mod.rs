//! The monitor's socket: who may speak, how much, and for how long.
//!
//! Everybody on the host may connect, so everything here is bounded: connections, the length of a request, and the time
//! that a peer may take. What a request means is decided elsewhere ([`Requests`]).

mod connection;
pub mod listener;
mod quota;

use crate::caller::Peer;
use connection::serve;
use nix::sys::socket::{MsgFlags, send};
use portcullis_common::wire::{Answer, Call, Refusal, RefusalKind, encode_answer};
use quota::Quota;
use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// Connections that are served at the same time. A host has tens of runners, each with one hook at a time.
const MAX_CONNECTIONS: usize = 256;

/// Connections that one user may have at the same time, so that one job can't keep the others' hooks out.
const MAX_CONNECTIONS_PER_USER: usize = 64;

/// Pause after a failed `accept`, which otherwise fails again at once (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What requests mean. Called on a thread that may block.
pub trait Requests: fmt::Debug + Send + Sync {
    /// Answers one request of `caller`.
    fn answer(&self, caller: &Peer, call: Call) -> Reply;
}

/// An answer, and what is still to be done.
pub struct Reply {
    answer: Answer,
    afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl Reply {
    /// An answer, and what is done when the peer has it, or can't be given it: a hook, for which a person waits, must not
    /// compete with that for the processors of a small machine.
    pub fn followed_by(answer: Answer, afterwards: impl FnOnce() + Send + 'static) -> Self {
        Self { answer, afterwards: Some(Box::new(afterwards)) }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reply").field("answer", &self.answer).finish_non_exhaustive()
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { answer, afterwards: None }
    }
}

/// Serves connections until the task is dropped.
pub async fn run(listener: UnixListener, requests: Arc<dyn Requests>) {
    let quota = Quota::new(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_USER);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => accept(stream, &quota, &requests),
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn accept(stream: UnixStream, quota: &Quota, requests: &Arc<dyn Requests>) {
    // Without credentials nobody can be told apart, so nobody is served.
    let Ok(credentials) = stream.peer_cred() else { return };
    match quota.take(credentials.uid()) {
        Some(permit) => {
            let requests = Arc::clone(requests);
            tokio::spawn(async move {
                if let Err(error) = serve(stream, requests).await {
                    tracing::debug!(error = %error, "a connection ended early");
                }
                drop(permit);
            });
        }
        None => refuse_at_once(&stream),
    }
}

/// Tells a peer that is over the limit, as far as that goes without waiting for it.
fn refuse_at_once(stream: &UnixStream) {
    let refusal = Refusal {
        kind: RefusalKind::Busy,
        message: "the monitor serves too many connections".to_owned(),
        hint: Some(
            "try again; if it goes on, look at who holds the monitor's socket open".to_owned(),
        ),
    };
    let line = encode_answer(Answer::Refused(refusal));
    // A peer that is gone, or whose buffer is full, is no reason to wait.
    let _ = send(stream.as_raw_fd(), &line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}
