//! As much of HTTP/1.1 as a test world needs, without asynchronous machinery: a thread for each connection.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;

/// The longest head of a request, in bytes.
const MAX_HEAD: u64 = 64 * 1024;

/// The longest body that is kept, in bytes; what is longer is read, counted and forgotten.
const MAX_KEPT_BODY: usize = 64 * 1024 * 1024;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// The `Host` header without a port.
    pub host: String,
    /// The path, as it was sent.
    pub path: String,
    /// What stood behind the `?`.
    pub query: String,
    /// The headers, names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body; empty when it was longer than 64 MiB.
    pub body: Vec<u8>,
    /// The body's length in bytes.
    pub body_length: u64,
    /// The server name of the TLS handshake; none over plain HTTP.
    pub server_name: Option<String>,
    /// Who asked.
    pub peer: SocketAddr,
    /// The address that was called.
    pub local: SocketAddr,
    /// Counts the world's connections: requests of one connection have the same number.
    pub connection: u64,
}

impl Request {
    /// The value of a header; the name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What writes a body that is not at hand as a whole.
pub type Writer = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// The body of a response.
pub enum Body {
    /// All of it.
    Bytes(Vec<u8>),
    /// Written piece by piece, in chunks, or with a known length.
    Stream {
        /// The length in bytes when it is known.
        length: Option<u64>,
        /// Writes the body.
        writer: Writer,
    },
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(formatter, "Bytes({})", bytes.len()),
            Self::Stream { length, .. } => write!(formatter, "Stream({length:?})"),
        }
    }
}

/// A response.
#[derive(Debug)]
pub struct Response {
    /// The status: 200.
    pub status: u16,
    /// Headers beside the length and the encoding of the body.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Body,
}

impl Response {
    /// 200 with this body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body)
    }

    /// This status with this body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Bytes(body.into()) }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What is known of a connection before its first request.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) server_name: Option<String>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) number: u64,
}

/// Reads one request; `None` at the end of the connection. Sends `100 Continue` to a client that waits for it.
pub(crate) fn read_request<S: Read + Write>(
    stream: &mut BufReader<S>,
    connection: &Connection,
) -> io::Result<Option<Request>> {
    let Some(head) = read_head(stream)? else { return Ok(None) };
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(malformed("the request line"));
    };
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        host: String::new(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
        body_length: 0,
        server_name: connection.server_name.clone(),
        peer: connection.peer,
        local: connection.local,
        connection: connection.number,
    };
    request.host = host_of(request.header("host").unwrap_or_default());
    if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        stream.get_mut().flush()?;
    }
    read_body(stream, &mut request)?;
    Ok(Some(request))
}

fn host_of(header: &str) -> String {
    let end = if header.starts_with('[') {
        header.find(']').map_or(header.len(), |end| end + 1)
    } else {
        header.find(':').unwrap_or(header.len())
    };
    header[..end].to_ascii_lowercase()
}

fn read_head(reader: &mut dyn BufRead) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut limited = reader.take(MAX_HEAD);
    loop {
        let start = head.len();
        if limited.read_until(b'\n', &mut head)? == 0 {
            return if head.is_empty() { Ok(None) } else { Err(malformed("the head")) };
        }
        if head[start..].trim_ascii().is_empty() {
            if start > 0 {
                return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
            }
            // Empty lines before a request are skipped (RFC 9112 §2.2).
            head.clear();
        }
    }
}

fn read_body(reader: &mut dyn BufRead, request: &mut Request) -> io::Result<()> {
    let chunked = request
        .header("transfer-encoding")
        .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    if !chunked {
        let length =
            request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        return read_part(reader, request, length);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| malformed("a chunk's size"))?;
        read_part(reader, request, size)?;
        // The end of a chunk; after the last one any trailers end with the same empty line.
        line.clear();
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn read_part(reader: &mut dyn BufRead, request: &mut Request, length: u64) -> io::Result<()> {
    let mut left = length;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let got = reader.read(&mut buffer[..wanted])?;
        if got == 0 {
            return Err(malformed("the body, which ended early"));
        }
        left -= got as u64;
        request.body_length += got as u64;
        if request.body.len() + got > MAX_KEPT_BODY {
            request.body = Vec::new();
        } else if request.body.len() as u64 + got as u64 == request.body_length {
            request.body.extend_from_slice(&buffer[..got]);
        }
    }
    Ok(())
}

/// Writes a response; whether the connection stays open.
pub(crate) fn write_response(
    writer: &mut dyn Write,
    request: &Request,
    response: Response,
) -> io::Result<bool> {
    let close =
        request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
    for (name, value) in &response.headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if close {
        head.push_str("Connection: close\r\n");
    }
    let length = match &response.body {
        Body::Bytes(bytes) => Some(bytes.len() as u64),
        Body::Stream { length, .. } => *length,
    };
    head += &length.map_or_else(
        || "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        |length| format!("Content-Length: {length}\r\n\r\n"),
    );
    writer.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        match response.body {
            Body::Bytes(bytes) => writer.write_all(&bytes)?,
            Body::Stream { length: Some(_), writer: body } => body(writer)?,
            Body::Stream { length: None, writer: body } => {
                body(&mut Chunks(writer))?;
                writer.write_all(b"0\r\n\r\n")?;
            }
        }
    }
    writer.flush()?;
    Ok(!close)
}

/// Puts what is written into chunks and sends each at once.
struct Chunks<'a>(&'a mut dyn Write);

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            write!(self.0, "{:x}\r\n", bytes.len())?;
            self.0.write_all(bytes)?;
            self.0.write_all(b"\r\n")?;
            self.0.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Answer",
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("can't read {what} of an HTTP request"))
}
