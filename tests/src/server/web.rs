//! Web servers, over TLS and plain, for all names and addresses of the world's internet.
//!
//! Every name answers `/` with its own name, `/bytes/N` with N bytes, `/slow/N/M` with N lines M milliseconds apart, and
//! `/upload` with the number of bytes that it was sent. Tests add routes of their own.

use super::certificates::Authority;
use super::http::{Body, Connection, Request, Response, read_request, write_response};
use super::{tcp, tls};
use crate::namespace::NetworkNamespace;
use crate::sync::{Stopped, lock};
use anyhow::Result;
use std::fmt;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Answers requests.
pub type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// Requests that are remembered; the oldest are forgotten first.
const MAX_REMEMBERED: usize = 10_000;

/// The web servers of a world.
#[derive(Clone)]
pub struct Web {
    shared: Arc<Shared>,
}

struct Shared {
    authority: Arc<Authority>,
    routes: Mutex<Vec<Route>>,
    requests: Mutex<Vec<Request>>,
    connections: AtomicU64,
}

struct Route {
    /// `None`: every name.
    host: Option<String>,
    prefix: String,
    handler: Handler,
}

impl fmt::Debug for Web {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Web").finish_non_exhaustive()
    }
}

impl Web {
    pub(crate) fn new(authority: Arc<Authority>) -> Self {
        let web = Self {
            shared: Arc::new(Shared {
                authority,
                routes: Mutex::default(),
                requests: Mutex::default(),
                connections: AtomicU64::new(0),
            }),
        };
        web.route_everywhere("/", |request| Response::ok(format!("this is {}\n", request.host)));
        web.route_everywhere("/bytes/", bytes);
        web.route_everywhere("/slow/", slow);
        web.route_everywhere("/upload", |request| {
            Response::ok(format!("{}\n", request.body_length))
        });
        web
    }

    /// Serves ports 80 and 443 of every address of the namespace.
    pub(crate) fn serve(
        &self,
        namespace: &NetworkNamespace,
        stopped: &Stopped,
    ) -> Result<Vec<JoinHandle<()>>> {
        let anywhere = Ipv6Addr::UNSPECIFIED;
        let plain = namespace.run(|| tcp::listen(SocketAddr::from((anywhere, 80))))??;
        let secure = namespace.run(|| tcp::listen(SocketAddr::from((anywhere, 443))))??;
        let (web, secure_web) = (self.clone(), self.clone());
        Ok(vec![
            tcp::serve("http", plain, stopped.clone(), Arc::new(move |stream| web.plain(stream)))?,
            tcp::serve(
                "https",
                secure,
                stopped.clone(),
                Arc::new(move |stream| secure_web.secure(stream)),
            )?,
        ])
    }

    /// Answers requests to `host` whose path starts with `prefix`; the longest prefix wins, then the latest route.
    pub fn route(
        &self,
        host: &str,
        prefix: &str,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) {
        self.add(Some(host.to_ascii_lowercase()), prefix, Arc::new(handler));
    }

    /// Answers requests to any name whose path starts with `prefix`; a route of the name itself wins.
    pub fn route_everywhere(
        &self,
        prefix: &str,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) {
        self.add(None, prefix, Arc::new(handler));
    }

    /// The requests so far, bodies included.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    fn add(&self, host: Option<String>, prefix: &str, handler: Handler) {
        lock(&self.shared.routes).push(Route { host, prefix: prefix.to_owned(), handler });
    }

    fn plain(&self, stream: TcpStream) {
        let Some(connection) = self.connection(&stream, None) else { return };
        // A connection that breaks is the client's affair.
        let _ = self.talk(stream, &connection);
    }

    fn secure(&self, stream: TcpStream) {
        let Some(mut connection) = self.connection(&stream, None) else { return };
        let Ok((stream, server_name)) = tls::accept(&self.shared.authority, stream) else { return };
        connection.server_name = server_name;
        let _ = self.talk(stream, &connection);
    }

    fn connection(&self, stream: &TcpStream, server_name: Option<String>) -> Option<Connection> {
        let number = self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let canonical =
            |address: SocketAddr| SocketAddr::from((address.ip().to_canonical(), address.port()));
        Some(Connection {
            server_name,
            peer: canonical(stream.peer_addr().ok()?),
            local: canonical(stream.local_addr().ok()?),
            number,
        })
    }

    fn talk(&self, stream: impl Read + Write, connection: &Connection) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_request(&mut stream, connection)? {
            let handler = self.handler(&request);
            {
                let mut requests = lock(&self.shared.requests);
                if requests.len() == MAX_REMEMBERED {
                    requests.remove(0);
                }
                requests.push(request.clone());
            }
            let response = handler
                .map_or_else(|| Response::new(404, "nothing here\n"), |handler| handler(&request));
            if !write_response(stream.get_mut(), &request, response)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn handler(&self, request: &Request) -> Option<Handler> {
        lock(&self.shared.routes)
            .iter()
            .enumerate()
            .filter(|(_, route)| route.host.as_ref().is_none_or(|host| *host == request.host))
            .filter(|(_, route)| request.path.starts_with(&route.prefix))
            .max_by_key(|(index, route)| (route.host.is_some(), route.prefix.len(), *index))
            .map(|(_, route)| Arc::clone(&route.handler))
    }
}

/// `/bytes/N`: N bytes.
fn bytes(request: &Request) -> Response {
    let Some(length) = number(request, 2) else { return Response::new(400, "how many?\n") };
    let writer = Box::new(move |output: &mut dyn Write| {
        let block = vec![b'x'; 256 * 1024];
        let mut left = length;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(block.len()).min(block.len());
            output.write_all(&block[..part])?;
            left -= part as u64;
        }
        Ok(())
    });
    Response {
        status: 200,
        headers: Vec::new(),
        body: Body::Stream { length: Some(length), writer },
    }
}

/// `/slow/N/M`: N lines, M milliseconds apart.
fn slow(request: &Request) -> Response {
    let (Some(lines), Some(pause)) = (number(request, 2), number(request, 3)) else {
        return Response::new(400, "how many, and how many milliseconds apart?\n");
    };
    let writer = Box::new(move |output: &mut dyn Write| {
        for line in 0..lines {
            std::thread::sleep(Duration::from_millis(pause.min(10_000)));
            writeln!(output, "{line}")?;
        }
        Ok(())
    });
    Response { status: 200, headers: Vec::new(), body: Body::Stream { length: None, writer } }
}

fn number(request: &Request, part: usize) -> Option<u64> {
    request.path.split('/').nth(part)?.parse().ok()
}
