//! The server's side of a TLS connection.

use super::certificates::Authority;
use anyhow::{Context, Result};
use rustls::{ServerConnection, StreamOwned};
use std::net::TcpStream;
use std::sync::Arc;

/// A TLS connection after its handshake.
pub(crate) type TlsStream = StreamOwned<ServerConnection, TcpStream>;

/// Does the handshake; also returns the server name that the client asked for.
pub(crate) fn accept(
    authority: &Arc<Authority>,
    mut stream: TcpStream,
) -> Result<(TlsStream, Option<String>)> {
    let local = stream.local_addr()?;
    let mut tls = ServerConnection::new(authority.server_config(local.ip().to_canonical())?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).context("the TLS handshake failed")?;
    }
    let server_name = tls.server_name().map(str::to_ascii_lowercase);
    Ok((StreamOwned::new(tls, stream), server_name))
}
