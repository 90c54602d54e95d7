//! The runner's side of its connections to GitHub.

use anyhow::{Context, Result, anyhow, bail};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take to be made, and an upload to be answered.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What connections have in common. Made before the first of them is needed: reading the authorities and the first random
/// number take tens of milliseconds of a processor, which the real runner has spent before a job's first step.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts the authorities of the file that `SSL_CERT_FILE` names.
    pub(super) fn new() -> Result<Self> {
        let file = std::env::var_os("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&file)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let seeded = provider.secure_random.fill(&mut [0; 1]);
        seeded.map_err(|_| anyhow!("there are no random numbers"))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

/// A connection to one server, kept open between requests.
pub(super) struct Connection {
    host: String,
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Connection {
    /// Connects to port 443 of `host`.
    pub(super) fn open(tls: &Tls, host: &str) -> Result<Self> {
        let name = ServerName::try_from(host.to_owned())?;
        let stream = connect(host)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let tls = ClientConnection::new(Arc::clone(&tls.0), name)?;
        let stream = BufReader::new(StreamOwned::new(tls, stream));
        Ok(Self { host: host.to_owned(), stream })
    }

    /// Waits for answers as long as it takes.
    pub(super) fn wait_forever(&mut self) -> Result<()> {
        Ok(self.stream.get_mut().sock.set_read_timeout(None)?)
    }

    /// Sends a request and returns the status of the answer.
    pub(super) fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<u16> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        stream.flush()?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("{} answered {line:?}", self.host))?;
        let mut length = 0;
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("{} ended in the middle of an answer", self.host);
            }
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok(status)
    }
}

fn connect(host: &str) -> Result<TcpStream> {
    let addresses = (host, 443).to_socket_addrs().with_context(|| format!("can't find {host}"))?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    bail!("can't connect to {host}: {last:?}")
}
