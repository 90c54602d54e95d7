//! The world's name server: authoritative for the zones that a test fills, and the recursive resolver of the runner
//! host's `/etc/resolv.conf` at the same time, because it forwards what is delegated.

use crate::namespace::NetworkNamespace;
use crate::sync::{Stopped, lock};
use anyhow::{Context, Result};
use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NULL, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The time to live of records that a test gives none, in seconds.
pub const DEFAULT_TTL: u32 = 300;

/// The longest answer over UDP to a client without EDNS, in bytes (RFC 1035 §4.2.1).
const MAX_UDP_WITHOUT_EDNS: usize = 512;

/// The longest chain of CNAME records that is followed.
const MAX_CHAIN: usize = 16;

/// Queries that are remembered.
const MAX_REMEMBERED: usize = 100_000;

/// How long a delegated name server may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// A query that arrived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Query {
    /// The name in its presentation form, as it was written, without the dot at the end.
    pub name: String,
    /// `A`, `AAAA`, `TXT`, …
    pub kind: String,
    /// Who asked.
    pub client: SocketAddr,
    /// Whether it came over TCP.
    pub over_tcp: bool,
    /// The whole message as it arrived.
    pub message: Vec<u8>,
}

/// A name server.
#[derive(Clone, Debug)]
pub struct NameServer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    zone: Mutex<Zone>,
    queries: Mutex<Vec<Query>>,
}

#[derive(Debug, Default)]
struct Zone {
    /// By name in small letters without the dot at the end; `*.name` for everything below `name`.
    records: HashMap<String, Vec<(u32, RData)>>,
    /// Everything at and below the name is asked at the address.
    delegations: HashMap<String, SocketAddr>,
    /// What every name without records gets.
    catch_all: Option<Vec<IpAddr>>,
    /// Every query is answered with SERVFAIL.
    broken: bool,
    /// No query is answered.
    silent: bool,
}

impl NameServer {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// Serves port 53 of these addresses of the namespace, UDP and TCP.
    pub(crate) fn serve(
        &self,
        namespace: &NetworkNamespace,
        addresses: &[IpAddr],
        stopped: &Stopped,
    ) -> Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::new();
        for &address in addresses {
            let socket = namespace
                .run(|| UdpSocket::bind((address, 53)))?
                .with_context(|| format!("can't serve DNS on {address}"))?;
            let listener =
                namespace.run(|| super::tcp::listen(SocketAddr::from((address, 53))))??;
            let (server, end) = (self.clone(), stopped.clone());
            // Inside the namespace, because delegated names are asked from there.
            threads.push(namespace.spawn("dns-udp", move || server.serve_udp(&socket, &end))?);
            let (server, end) = (self.clone(), stopped.clone());
            let (ready, started) = std::sync::mpsc::channel();
            threads.push(namespace.spawn("dns-tcp", move || {
                let handler = Arc::new(move |stream| drop(server.serve_tcp(stream)));
                if let Ok(thread) = super::tcp::serve("dns-tcp", listener, end, handler) {
                    let _ = ready.send(());
                    let _ = thread.join();
                }
            })?);
            started.recv().context("can't serve DNS over TCP")?;
        }
        Ok(threads)
    }

    /// Gives a name these addresses, instead of all its records. `*.name` stands for everything below `name`.
    pub fn addresses(&self, name: &str, addresses: &[&str]) -> Result<()> {
        self.addresses_with_ttl(name, DEFAULT_TTL, addresses)
    }

    /// Gives a name these addresses with a time to live in seconds, instead of all its records.
    pub fn addresses_with_ttl(&self, name: &str, ttl: u32, addresses: &[&str]) -> Result<()> {
        let data = addresses
            .iter()
            .map(|text| {
                let address: IpAddr =
                    text.parse().with_context(|| format!("{text} is no address"))?;
                Ok(address_data(address))
            })
            .collect::<Result<Vec<_>>>()?;
        self.records(name, ttl, data);
        Ok(())
    }

    /// Makes a name an alias of another, instead of all its records.
    pub fn alias(&self, name: &str, target: &str) -> Result<()> {
        self.records(name, DEFAULT_TTL, vec![RData::CNAME(CNAME(Name::from_ascii(target)?))]);
        Ok(())
    }

    /// Gives a name a text, instead of all its records.
    pub fn text(&self, name: &str, text: &str) {
        let data = RData::TXT(TXT::new(vec![text.to_owned()]));
        self.records(name, DEFAULT_TTL, vec![data]);
    }

    /// Gives a name these records, instead of all it had; none: the name exists without records.
    pub fn records(&self, name: &str, ttl: u32, data: Vec<RData>) {
        let records = data.into_iter().map(|data| (ttl, data)).collect();
        lock(&self.shared.zone).records.insert(key(name), records);
    }

    /// Removes a name: from now on it does not exist.
    pub fn remove(&self, name: &str) {
        lock(&self.shared.zone).records.remove(&key(name));
    }

    /// Everything at and below `name` is asked at this server.
    pub fn delegate(&self, name: &str, server: SocketAddr) {
        lock(&self.shared.zone).delegations.insert(key(name), server);
    }

    /// Every name that has no records gets these addresses: a server that answers whatever it is asked.
    pub fn catch_all(&self, addresses: &[IpAddr]) {
        lock(&self.shared.zone).catch_all = Some(addresses.to_vec());
    }

    /// From now on every query is answered with SERVFAIL, or no longer.
    pub fn set_broken(&self, broken: bool) {
        lock(&self.shared.zone).broken = broken;
    }

    /// From now on no query is answered, or again.
    pub fn set_silent(&self, silent: bool) {
        lock(&self.shared.zone).silent = silent;
    }

    /// The queries so far.
    pub fn queries(&self) -> Vec<Query> {
        lock(&self.shared.queries).clone()
    }

    /// How often a name was asked for, in whatever type and case.
    pub fn count(&self, name: &str) -> usize {
        let name = key(name);
        lock(&self.shared.queries).iter().filter(|query| key(&query.name) == name).count()
    }

    fn serve_udp(&self, socket: &UdpSocket, stopped: &Stopped) {
        let mut buffer = vec![0; 65_535];
        while stopped.wait_readable(&[socket.as_fd()]) {
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            let message = buffer[..length].to_vec();
            let (server, Ok(reply_socket)) = (self.clone(), socket.try_clone()) else { continue };
            let work = move || {
                let limit = Message::from_vec(&message)
                    .ok()
                    .and_then(|message| message.edns.map(|edns| edns.max_payload()))
                    .map_or(MAX_UDP_WITHOUT_EDNS, usize::from);
                if let Some(reply) = server.answer(&message, client, false, limit) {
                    let _ = reply_socket.send_to(&reply, client);
                }
            };
            // Only what is delegated waits for somebody else.
            if lock(&self.shared.zone).delegations.is_empty() {
                work();
            } else {
                let _ = thread::Builder::new().name("dns-query".to_owned()).spawn(work);
            }
        }
    }

    fn serve_tcp(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let client = stream.peer_addr()?;
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message)?;
            if let Some(reply) = self.answer(&message, client, true, usize::from(u16::MAX)) {
                let length = u16::try_from(reply.len()).unwrap_or(u16::MAX);
                stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())?;
            }
        }
    }

    /// The answer to a message, at most `limit` bytes long.
    fn answer(
        &self,
        message: &[u8],
        client: SocketAddr,
        over_tcp: bool,
        limit: usize,
    ) -> Option<Vec<u8>> {
        let parsed = Message::from_vec(message);
        let question = parsed.as_ref().ok().and_then(|parsed| parsed.queries.first());
        self.remember(Query {
            name: question.map(|query| trimmed(query.name())).unwrap_or_default(),
            kind: question.map(|query| query.query_type().to_string()).unwrap_or_default(),
            client,
            over_tcp,
            message: message.to_vec(),
        });
        if lock(&self.shared.zone).silent {
            return None;
        }
        let Ok(request) = parsed else {
            let id = u16::from_be_bytes([*message.first()?, *message.get(1)?]);
            let error = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            return error.to_vec().ok();
        };
        let mut response = Message::response(request.metadata.id, OpCode::Query);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(1232);
            response.set_edns(edns);
        }
        match request.queries.as_slice() {
            [query] => self.resolve(query.name(), query.query_type(), &mut response),
            _ => response.metadata.response_code = ResponseCode::FormErr,
        }
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= limit { Some(bytes) } else { response.truncate().to_vec().ok() }
    }

    fn remember(&self, query: Query) {
        let mut queries = lock(&self.shared.queries);
        if queries.len() < MAX_REMEMBERED {
            queries.push(query);
        }
    }

    /// Fills in the answer: follows aliases, asks delegated servers, says that a name does not exist.
    fn resolve(&self, name: &Name, kind: RecordType, response: &mut Message) {
        let mut name = name.clone();
        for _ in 0..MAX_CHAIN {
            let found = lock(&self.shared.zone).find(&name);
            match found {
                Found::Broken => response.metadata.response_code = ResponseCode::ServFail,
                Found::Nothing => {
                    response.metadata.response_code = ResponseCode::NXDomain;
                    response.add_authority(start_of_authority(&name));
                }
                Found::Delegated(server) => match forward(&name, kind, server) {
                    Ok(answer) => {
                        response.metadata.response_code = answer.metadata.response_code;
                        response.add_answers(answer.answers);
                        response.add_authorities(answer.authorities);
                    }
                    Err(_) => response.metadata.response_code = ResponseCode::ServFail,
                },
                Found::Records(records) => {
                    let alias = records.iter().find_map(|(ttl, data)| match data {
                        RData::CNAME(target) if kind != RecordType::CNAME => {
                            Some((*ttl, target.0.clone()))
                        }
                        _ => None,
                    });
                    if let Some((ttl, target)) = alias {
                        let data = RData::CNAME(CNAME(target.clone()));
                        response.add_answer(Record::from_rdata(name, ttl, data));
                        name = target;
                        continue;
                    }
                    let matching = records
                        .into_iter()
                        .filter(|(_, data)| kind == RecordType::ANY || data.record_type() == kind);
                    let before = response.answers.len();
                    for (ttl, data) in matching {
                        response.add_answer(Record::from_rdata(name.clone(), ttl, data));
                    }
                    if response.answers.len() == before {
                        response.add_authority(start_of_authority(&name));
                    }
                }
            }
            return;
        }
        response.metadata.response_code = ResponseCode::ServFail;
    }
}

enum Found {
    Broken,
    Nothing,
    Delegated(SocketAddr),
    Records(Vec<(u32, RData)>),
}

impl Zone {
    fn find(&self, name: &Name) -> Found {
        if self.broken {
            return Found::Broken;
        }
        let name = key(&trimmed(name));
        if let Some(records) = self.records.get(&name) {
            return Found::Records(records.clone());
        }
        let mut ancestor = name.as_str();
        loop {
            if let Some(server) = self.delegations.get(ancestor) {
                return Found::Delegated(*server);
            }
            let Some((_, parent)) = ancestor.split_once('.') else { break };
            if let Some(records) = self.records.get(&format!("*.{parent}")) {
                return Found::Records(records.clone());
            }
            ancestor = parent;
        }
        match &self.catch_all {
            Some(addresses) => Found::Records(
                addresses
                    .iter()
                    .map(|address| (DEFAULT_TTL, address_data(*address)))
                    .chain([(DEFAULT_TTL, RData::TXT(TXT::new(vec!["ok".to_owned()])))])
                    .chain([(DEFAULT_TTL, RData::NULL(NULL::with(b"ok".to_vec())))])
                    .collect(),
            ),
            None => Found::Nothing,
        }
    }
}

fn forward(name: &Name, kind: RecordType, server: SocketAddr) -> Result<Message> {
    let unspecified: IpAddr =
        if server.is_ipv4() { IpAddr::from([0_u8; 4]) } else { IpAddr::from([0_u8; 16]) };
    let socket = UdpSocket::bind((unspecified, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(FORWARD_TIMEOUT))?;
    let mut query = Message::query();
    query.add_query(hickory_proto::op::Query::query(name.clone(), kind));
    query.metadata.id = socket.local_addr()?.port();
    socket.send(&query.to_vec()?)?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length])?)
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

/// What a negative answer needs to be cached (RFC 2308 §2.1): a zone for each top-level name, negative answers for 5 s.
fn start_of_authority(name: &Name) -> Record {
    let zone = name.trim_to(1);
    let server = Name::from_ascii("ns.test.").unwrap_or_default();
    let data = SOA::new(server.clone(), server, 1, 3600, 600, 86_400, 5);
    Record::from_rdata(zone, 5, RData::SOA(data))
}

fn trimmed(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}
