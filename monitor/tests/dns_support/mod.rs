//! A resolver on loopback with an upstream, a kernel and an observer that remember what reached them.

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use portcullis_common::endpoint::{DnsName, Endpoint, Host, PortRange, Protocol};
use portcullis_common::policy::{EgressMode, Rule};
use portcullis_monitor::dns::{
    DnsDetection, DnsObservation, DnsObserver, DnsOutcome, NamePolicy, Resolver, ResolverConfig,
    Transport, UpstreamChange,
};
use portcullis_monitor::egress::grant::{Grant, GrantError, GrantSink};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a test waits for something that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What the upstream does with a query: the messages it sends back.
pub(crate) type Script = dyn Fn(&Message, Transport) -> Vec<Message> + Send + Sync;

/// A query that reached the upstream: how, from where, its bytes.
pub(crate) type Seen = (Transport, SocketAddr, Vec<u8>);

/// A name server on loopback, UDP and TCP.
#[derive(Clone)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    pub(crate) async fn start(script: Arc<Script>) -> Self {
        let (udp, tcp) = loop {
            let udp = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = udp.local_addr().unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(address).await {
                break (udp, tcp);
            }
        };
        let upstream = Self { address: udp.local_addr().unwrap(), seen: Arc::default() };
        let (seen, answer) = (Arc::clone(&upstream.seen), Arc::clone(&script));
        tokio::spawn(async move {
            let mut buffer = vec![0; 65536];
            loop {
                let Ok((length, from)) = udp.recv_from(&mut buffer).await else {
                    // Told of an earlier answer that nobody took, or the runtime is shutting down and waits for this task.
                    tokio::task::yield_now().await;
                    continue;
                };
                seen.lock().unwrap().push((Transport::Udp, from, buffer[..length].to_vec()));
                for reply in answer(&Message::from_vec(&buffer[..length]).unwrap(), Transport::Udp)
                {
                    udp.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        let seen = Arc::clone(&upstream.seen);
        tokio::spawn(async move {
            loop {
                let (mut stream, from) = tcp.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut query = vec![0; usize::from(length)];
                stream.read_exact(&mut query).await.unwrap();
                seen.lock().unwrap().push((Transport::Tcp, from, query.clone()));
                for reply in script(&Message::from_vec(&query).unwrap(), Transport::Tcp) {
                    let reply = reply.to_vec().unwrap();
                    stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            }
        });
        upstream
    }

    /// The names asked for, lower case, with their types.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, _, query)| {
                let query = &Message::from_vec(query).unwrap().queries[0];
                format!("{} {}", query.name().to_lowercase().to_ascii(), query.query_type())
            })
            .collect()
    }
}

/// An answer to `query` without records.
pub(crate) fn reply(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.response_code = code;
    reply.add_queries(query.queries.clone());
    reply
}

/// An answer with `records`, written `name ttl type data`; `@` is the name asked for.
pub(crate) fn answer(query: &Message, records: &[&str]) -> Message {
    let mut reply = reply(query, ResponseCode::NoError);
    for record in records {
        let mut words = record.splitn(4, ' ');
        let name = match words.next().unwrap() {
            "@" => query.queries[0].name().clone(),
            name => Name::from_ascii(name).unwrap(),
        };
        let ttl = words.next().unwrap().parse().unwrap();
        let kind: RecordType = words.next().unwrap().parse().unwrap();
        let data = RData::try_from_str(kind, words.next().unwrap()).unwrap();
        reply.add_answer(Record::from_rdata(name, ttl, data));
    }
    reply
}

/// A zone as text, `name type → records`; names not in it do not exist, with an SOA record of 30 seconds.
pub(crate) fn zone(
    entries: &'static [(&'static str, RecordType, &'static [&'static str])],
) -> Arc<Script> {
    Arc::new(move |query, _| {
        let question = &query.queries[0];
        let name = question.name().to_lowercase().to_ascii();
        let mut names = entries.iter().filter(|entry| format!("{}.", entry.0) == name).peekable();
        let exists = names.peek().is_some();
        if let Some(entry) = names.find(|entry| entry.1 == question.query_type()) {
            return vec![answer(query, entry.2)];
        }
        let code = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let mut reply = reply(query, code);
        let soa = RData::try_from_str(RecordType::SOA, "ns.test. admin.test. 1 2 3 4 30").unwrap();
        reply.add_authority(Record::from_rdata(Name::from_ascii("test.").unwrap(), 60, soa));
        vec![reply]
    })
}

/// The kernel's part: remembers grants, can be told to refuse.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) grants: Mutex<Vec<Grant>>,
    pub(crate) calls: Mutex<usize>,
    pub(crate) refuses: AtomicBool,
}

impl GrantSink for Kernel {
    fn grant(&self, grants: &[Grant]) -> Result<(), GrantError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(GrantError::Full { limit: 7 });
        }
        *self.calls.lock().unwrap() += 1;
        self.grants.lock().unwrap().extend_from_slice(grants);
        Ok(())
    }
}

impl Kernel {
    /// The grants, written `address:first-last`.
    pub(crate) fn open(&self) -> Vec<String> {
        let grants = self.grants.lock().unwrap();
        grants
            .iter()
            .map(|grant| {
                format!("{}:{}-{}", grant.address, grant.ports.first(), grant.ports.last())
            })
            .collect()
    }
}

/// Remembers what the resolver reports.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    pub(crate) observations: Mutex<Vec<DnsObservation>>,
    /// Names whose addresses are about to be answered.
    pub(crate) answers: Mutex<Vec<String>>,
    pub(crate) detections: Mutex<Vec<DnsDetection>>,
    pub(crate) changes: Mutex<Vec<UpstreamChange>>,
    /// Called once, for the next observation.
    pub(crate) meanwhile: Mutex<Meanwhile>,
}

/// What happens while an observation is reported.
#[derive(Default)]
pub(crate) struct Meanwhile(pub(crate) Option<Box<dyn FnOnce() + Send>>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Meanwhile").field(&self.0.is_some()).finish()
    }
}

impl DnsObserver for Observer {
    fn answers(&self, outcome: &DnsOutcome) {
        self.answers.lock().unwrap().push(outcome.name.to_string());
    }

    fn observe(&self, observation: DnsObservation) {
        self.observations.lock().unwrap().push(observation);
        let meanwhile = self.meanwhile.lock().unwrap().0.take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
    }

    fn detect(&self, detection: DnsDetection) {
        self.detections.lock().unwrap().push(detection);
    }

    fn upstream_changed(&self, change: UpstreamChange) {
        self.changes.lock().unwrap().push(change);
    }
}

/// A rule for `host`, TCP port 443.
pub(crate) fn rule(host: &str) -> Arc<Rule> {
    let name = |text: &str| DnsName::new(text).unwrap();
    let parsed = match (host.strip_prefix("*."), host.parse(), host.parse()) {
        (_, Ok(address), _) => Host::Address(address),
        (_, _, Ok(network)) => Host::Network(network),
        (Some(base), ..) => Host::Wildcard(name(base)),
        (None, ..) => Host::Name(name(host)),
    };
    let ports = PortRange::single(443).unwrap();
    Arc::new(Rule {
        endpoint: Endpoint { protocol: Protocol::Tcp, host: parsed, ports },
        text: host.into(),
        policy: "node-build".into(),
    })
}

/// A resolver and everything around it.
pub(crate) struct World {
    pub(crate) resolver: Resolver,
    pub(crate) upstream: Upstream,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) observer: Arc<Observer>,
}

impl World {
    /// A resolver in block mode that allows `allowed`, with an upstream that does what `script` says.
    pub(crate) async fn start(allowed: &[&str], script: Arc<Script>) -> Self {
        Self::with(allowed, &[], script, |_| {}).await
    }

    pub(crate) async fn with(
        allowed: &[&str],
        denied: &[&str],
        script: Arc<Script>,
        change: impl FnOnce(&mut ResolverConfig),
    ) -> Self {
        let upstream = Upstream::start(script).await;
        let mut config =
            ResolverConfig::new(EgressMode::Block, "node-build", vec![upstream.address]);
        change(&mut config);
        let rules = |hosts: &[&str]| hosts.iter().map(|host| rule(host)).collect::<Vec<_>>();
        let policy = NamePolicy::compile(&rules(allowed), &rules(denied));
        let (kernel, observer) = (Arc::<Kernel>::default(), Arc::<Observer>::default());
        let resolver = Resolver::start(
            config,
            policy,
            Arc::<Kernel>::clone(&kernel),
            Arc::<Observer>::clone(&observer),
        )
        .unwrap();
        Self { resolver, upstream, kernel, observer }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.resolver.port())
    }

    /// Where containers' queries are led to.
    pub(crate) fn address_for_containers(&self) -> SocketAddr {
        let mut listeners = self.resolver.listens_anywhere().iter();
        let v4 = listeners.find(|address| address.is_ipv4()).expect("a listener");
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), v4.port())
    }

    /// Sends `message` over UDP and waits for an answer.
    pub(crate) async fn exchange(&self, message: Vec<u8>) -> Vec<u8> {
        self.exchange_at(self.address(), message).await
    }

    async fn exchange_at(&self, address: SocketAddr, message: Vec<u8>) -> Vec<u8> {
        blocking(move || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send_to(&message, address).unwrap();
            let mut buffer = vec![0; 65536];
            let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
            assert_eq!(from, address);
            buffer.truncate(length);
            buffer
        })
        .await
    }

    /// Sends messages over one TCP connection in one segment and reads as many answers as `answers`.
    pub(crate) async fn exchange_tcp(&self, messages: &[Vec<u8>], answers: usize) -> Vec<Vec<u8>> {
        self.exchange_tcp_at(self.address(), messages, answers).await
    }

    async fn exchange_tcp_at(
        &self,
        address: SocketAddr,
        messages: &[Vec<u8>],
        answers: usize,
    ) -> Vec<Vec<u8>> {
        let bytes: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&bytes).unwrap();
            (0..answers)
                .map(|_| {
                    let mut length = [0; 2];
                    stream.read_exact(&mut length).expect("an answer");
                    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut answer).unwrap();
                    answer
                })
                .collect()
        })
        .await
    }

    /// Asks for `name` and gives the answer in words: code, records, and the text of an Extended DNS Error.
    pub(crate) async fn ask(&self, name: &str, kind: RecordType) -> String {
        words(&self.exchange(query(name, kind)).await)
    }

    /// The same, as a container asks.
    pub(crate) async fn ask_from_container(&self, name: &str, kind: RecordType) -> String {
        words(&self.exchange_at(self.address_for_containers(), query(name, kind)).await)
    }

    /// The same over TCP.
    pub(crate) async fn ask_from_container_by_tcp(&self, name: &str, kind: RecordType) -> String {
        let address = self.address_for_containers();
        let answers = self.exchange_tcp_at(address, &[query(name, kind)], 1).await;
        words(&answers[0])
    }

    /// Waits until something was observed that reads `expected`: verdict, name, type, code and reason.
    pub(crate) async fn observes(&self, expected: &str) {
        let observer = Arc::clone(&self.observer);
        let observed = move || -> Vec<String> {
            let observations = observer.observations.lock().unwrap();
            observations
                .iter()
                .map(|observation| {
                    let outcome = &observation.outcome;
                    format!(
                        "{:?} {} {} {}: {}",
                        outcome.verdict,
                        outcome.name,
                        outcome.query_type,
                        outcome.response_code,
                        outcome.reason
                    )
                })
                .collect()
        };
        let deadline = Instant::now() + PATIENCE;
        while !observed().iter().any(|text| text.starts_with(expected)) {
            assert!(Instant::now() < deadline, "{expected} is not among {:#?}", observed());
            tokio::task::yield_now().await;
        }
    }
}

pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// A query with EDNS.
pub(crate) fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    message.add_query(hickory_proto::op::Query::query(name, kind));
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

/// A query without EDNS.
pub(crate) fn plain_query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::from_vec(&query(name, kind)).unwrap();
    message.edns = None;
    message.to_vec().unwrap()
}

/// An answer in words.
pub(crate) fn words(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).unwrap();
    let mut text = match u16::from(message.metadata.response_code) {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        _ => "OTHER",
    }
    .to_owned();
    if message.metadata.truncation {
        text += " TC";
    }
    for record in &message.answers {
        write!(text, " {}={}", record.name.to_lowercase(), record.data).unwrap();
    }
    if let Some(edns) = &message.edns {
        for (code, option) in edns.options().as_ref() {
            let option: Vec<u8> = option.try_into().unwrap();
            assert_eq!(u16::from(*code), 15);
            write!(
                text,
                " ({}: {})",
                u16::from_be_bytes([option[0], option[1]]),
                String::from_utf8_lossy(&option[2..])
            )
            .unwrap();
        }
    }
    text
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A question of class IN with these labels, whatever their bytes.
pub(crate) fn question(labels: &[&[u8]], kind: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = labels
        .iter()
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], *label].concat())
        .collect();
    bytes.extend_from_slice(&[0]);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes
}

/// Nothing that reached the upstream has `needle` in it, in any letter case.
pub(crate) fn assert_not_leaked(world: &World, needle: &[u8]) {
    let needle = needle.to_ascii_lowercase();
    for (_, _, bytes) in world.upstream.seen.lock().unwrap().iter() {
        let lower = bytes.to_ascii_lowercase();
        assert!(!lower.windows(needle.len()).any(|window| window == needle), "{bytes:02x?}");
    }
}
