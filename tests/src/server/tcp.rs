//! A TCP server with a thread for each connection, which ends with the world.

use crate::sync::Stopped;
use anyhow::{Context, Result};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Connections that one server serves at a time; further ones are closed at once.
const MAX_CONNECTIONS: usize = 512;

/// How long a peer may stay silent in the middle of something.
const IDLE: Duration = Duration::from_mins(10);

/// What serves one connection.
pub(crate) type Handler = Arc<dyn Fn(TcpStream) + Send + Sync>;

/// Serves the connections of `listener` until `stopped`.
pub(crate) fn serve(
    name: &str,
    listener: TcpListener,
    stopped: Stopped,
    handler: Handler,
) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let mut connections: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
            while stopped.wait_readable(&[listener.as_fd()]) {
                connections.retain(|(_, thread)| !thread.is_finished());
                if let Ok((stream, _)) = listener.accept()
                    && connections.len() < MAX_CONNECTIONS
                    && let Ok(connection) = start(stream, &handler)
                {
                    connections.push(connection);
                }
            }
            for (stream, thread) in connections {
                let _ = stream.shutdown(Shutdown::Both);
                let _ = thread.join();
            }
        })
        .context("can't start a server thread")
}

fn start(stream: TcpStream, handler: &Handler) -> Result<(TcpStream, JoinHandle<()>)> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let ours = stream.try_clone()?;
    let theirs = stream.try_clone()?;
    let handler = Arc::clone(handler);
    let thread = thread::Builder::new().name("connection".to_owned()).spawn(move || {
        handler(stream);
        // The clones keep the socket open.
        let _ = theirs.shutdown(Shutdown::Both);
    })?;
    Ok((ours, thread))
}

/// Listens on an address; call it inside the namespace where it is.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("can't listen on {address}"))
}
