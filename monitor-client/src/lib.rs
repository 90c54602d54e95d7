//! One request to the monitor's socket, within a deadline whatever the monitor does.
//!
//! The hooks and the monitor's own `status` and `explain` commands share this: a person waits for a hook, and a job
//! hangs for as long as its hook does, so every wait in here is bounded by one [`Instant`].

mod hook;

pub use hook::run_hook;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use portcullis_common::wire::{
    Answer, Call, DecodeError, MAX_ANSWER_BYTES, RefusalKind, decode_answer, encode_request,
};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Pause between two attempts while the monitor is not listening yet or its backlog is full.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Pause before the next attempt when the monitor says that it serves too many connections.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Why no answer was had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no monitor listens on {}", .path.display())]
    NotListening {
        /// The socket.
        path: PathBuf,
        /// What `connect` said.
        source: io::Error,
    },
    /// The socket can't be used.
    #[error("the monitor's socket {} can't be used", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline passed.
    #[error("the monitor did not answer within {} s", .waited.as_secs_f64().round())]
    TimedOut {
        /// How long we waited.
        waited: Duration,
    },
    /// The connection broke.
    #[error("the connection to the monitor broke")]
    Broken(#[source] io::Error),
    /// The monitor closed the connection without a whole answer.
    #[error("the monitor closed the connection without an answer")]
    NoAnswer,
    /// The answer is longer than any answer may be.
    #[error("the monitor's answer is longer than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    /// The answer can't be understood, for instance because the monitor is of another version.
    #[error("the monitor's answer can't be understood; are hook and monitor of the same version?")]
    NotUnderstood(#[from] DecodeError),
    /// The request is longer than any request may be.
    #[error("the request can't be sent: {0}")]
    TooMuch(String),
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a monitor that does not listen yet, for instance while it is being restarted.
    pub connect: Duration,
    /// For everything, from the first attempt to the answer's last byte.
    pub total: Duration,
}

/// Sends one request and returns the answer.
///
/// # Errors
/// See [`ClientError`]; within `patience.total` in every case.
pub fn exchange(path: &Path, call: Call, patience: Patience) -> Result<Answer, ClientError> {
    let started = Instant::now();
    let deadline = started + patience.total;
    let line = encode_request(call).map_err(|refusal| ClientError::TooMuch(refusal.message))?;
    loop {
        let mut stream = connect_until(path, started + patience.connect.min(patience.total))?;
        stream.set_nonblocking(true).map_err(ClientError::Broken)?;
        send(&mut stream, &line, started, deadline)?;
        let answer = receive_line(&mut stream, started, deadline)?;
        let answer = decode_answer(&answer)?;
        // Somebody else may hold connections open for a while; that must not decide over this job.
        let busy = matches!(&answer, Answer::Refused(refusal) if refusal.kind == RefusalKind::Busy);
        if !busy || Instant::now() + BUSY_PAUSE >= deadline {
            return Ok(answer);
        }
        thread::sleep(BUSY_PAUSE);
    }
}

/// Connects without ever blocking in `connect`, which on a Unix socket waits while the listener's backlog is full.
fn connect_until(path: &Path, deadline: Instant) -> Result<UnixStream, ClientError> {
    let failed = |source: io::Error| ClientError::Connect { path: path.to_owned(), source };
    let address = UnixAddr::new(path).map_err(|errno| failed(errno.into()))?;
    loop {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|errno| failed(errno.into()))?;
        let errno = match connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(errno) => errno,
        };
        let may_come = matches!(errno, Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN);
        if !may_come {
            return Err(failed(errno.into()));
        }
        if Instant::now() >= deadline {
            return Err(ClientError::NotListening { path: path.to_owned(), source: errno.into() });
        }
        thread::sleep(RETRY_PAUSE);
    }
}

fn send(
    stream: &mut UnixStream,
    mut bytes: &[u8],
    started: Instant,
    deadline: Instant,
) -> Result<(), ClientError> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(stream, PollFlags::POLLOUT, started, deadline)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The monitor may refuse and close before it has read everything; its answer is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(ClientError::Broken(error)),
        }
    }
    Ok(())
}

fn receive_line(
    stream: &mut UnixStream,
    started: Instant,
    deadline: Instant,
) -> Result<Vec<u8>, ClientError> {
    let mut line = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Err(ClientError::NoAnswer),
            Ok(count) => {
                let new = chunk.get(..count).unwrap_or_default();
                if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
                    line.extend_from_slice(new.get(..=end).unwrap_or_default());
                    return Ok(line);
                }
                line.extend_from_slice(new);
                if line.len() > MAX_ANSWER_BYTES {
                    return Err(ClientError::TooLong);
                }
                // A peer that sends byte after byte must not hold us past the deadline either.
                if Instant::now() >= deadline {
                    return Err(ClientError::TimedOut { waited: started.elapsed() });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(stream, PollFlags::POLLIN, started, deadline)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ClientError::NoAnswer);
            }
            Err(error) => return Err(ClientError::Broken(error)),
        }
    }
}

fn wait(
    stream: &UnixStream,
    events: PollFlags,
    started: Instant,
    deadline: Instant,
) -> Result<(), ClientError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ClientError::TimedOut { waited: started.elapsed() });
    }
    // Rounded up, or the last millisecond would be spent spinning.
    let timeout =
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(stream.as_fd(), events)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(ClientError::Broken(errno.into())),
    }
}

#[cfg(test)]
mod tests;
