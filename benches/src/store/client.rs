//! HTTP/1.1 with as little work as possible: requests are made before they are sent, connections are kept.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<u8>);

/// Somebody with a token, or with a session of the dashboard.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// Says a token.
    Token(String),
    /// Has a cookie.
    Session(String),
}

impl Caller {
    /// A request without a body.
    pub(super) fn get(&self, path: &str) -> Request {
        self.request("GET", path, "", "")
    }

    /// A request with text.
    pub(super) fn text(&self, method: &str, path: &str, body: &str) -> Request {
        self.request(method, path, "text/plain", body)
    }

    /// A request with JSON.
    pub(super) fn json(&self, method: &str, path: &str, body: &Value) -> Request {
        self.request(method, path, "application/json", &body.to_string())
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &str) -> Request {
        let kind =
            if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
        let who = match self {
            Self::Token(token) => format!("authorization: Bearer {token}"),
            Self::Session(cookie) => format!("cookie: {cookie}"),
        };
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: store\r\n{who}\r\n{kind}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Request(text.into_bytes())
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// Its status.
    pub(super) status: u16,
    /// Name and value of the cookie that it sets.
    pub(super) cookie: Option<String>,
    body: Vec<u8>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub(super) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends a request and returns the body of the answer, if it is one of success.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Vec<u8>> {
        let answer = self.exchange(request)?;
        ensure!(
            (200..300).contains(&answer.status),
            "status {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(answer.body)
    }

    /// Sends a request and returns the answer.
    pub(super) fn exchange(&mut self, request: &Request) -> Result<Answer> {
        self.stream.get_mut().write_all(&request.0)?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status: u16 =
            line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let (mut length, mut chunked, mut cookie) = (0_usize, false, None);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            if let Some(value) = line.strip_prefix("set-cookie: ") {
                cookie = value.split(';').next().map(str::to_owned);
            }
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
            chunked |= header == "transfer-encoding: chunked";
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                line.clear();
                self.stream.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim_end(), 16)?;
                let start = body.len();
                body.resize(start + size, 0);
                if let Some(rest) = body.get_mut(start..) {
                    self.stream.read_exact(rest)?;
                }
                line.clear();
                self.stream.read_line(&mut line)?;
                if size == 0 {
                    break;
                }
            }
        } else {
            body.resize(length, 0);
            self.stream.read_exact(&mut body)?;
        }
        Ok(Answer { status, cookie, body })
    }
}
