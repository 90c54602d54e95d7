//! A running resolver: its sockets, its tasks, and its end.

mod anywhere;
mod core;
mod listen;
mod neighbours;
mod resolve;
mod tcp;
mod udp;

use self::core::Core;
pub use self::neighbours::Neighbours;
use super::config::ResolverConfig;
use super::exchange::{self, Exchange};
use super::judge::Judge;
use super::names::NamePolicy;
use super::observer::DnsObserver;
use super::sockets::{ResolverError, SkippedListener, UpstreamSource};
use super::source_ports::RegisteredPorts;
use crate::egress::grant::GrantSink;
use crate::sys::namespace::in_network_namespace;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The resolver of one job. It stops when dropped.
#[derive(Debug)]
pub struct Resolver {
    port: u16,
    addresses: Vec<SocketAddr>,
    anywhere: Vec<SocketAddr>,
    skipped: Vec<SkippedListener>,
    sources: Vec<UpstreamSource>,
    /// Held, never looked at.
    _registered: RegisteredPorts,
    core: Arc<Core>,
    /// Reading from all sockets.
    tasks: JoinSet<()>,
}

/// What the thread in the Worker's namespace opened.
struct Opened {
    listeners: listen::Listeners,
    anywhere: Vec<listen::Listener>,
    upstreams: Vec<exchange::BoundUpstream>,
}

impl Opened {
    fn open(config: &ResolverConfig) -> Result<Self, ResolverError> {
        let count = config.upstreams.len().min(ResolverConfig::MAX_UPSTREAMS);
        let upstreams = exchange::bind(config.upstreams.get(..count).unwrap_or(&[]))?;
        let listeners = listen::bind(&config.listen, config.port)?;
        let anywhere = if config.listen_anywhere { anywhere::bind_all()? } else { Vec::new() };
        Ok(Self { listeners, anywhere, upstreams })
    }
}

impl Resolver {
    /// Opens the sockets in the Worker's network namespace and starts answering. Must be called within a tokio runtime
    /// that has I/O and time.
    ///
    /// # Errors
    /// When sockets can't be opened; nothing is left running then.
    pub fn start(
        config: ResolverConfig,
        policy: NamePolicy,
        grants: Arc<dyn GrantSink>,
        observer: Arc<dyn DnsObserver>,
    ) -> Result<Self, ResolverError> {
        let namespace = config.network_namespace.as_ref().map(AsFd::as_fd);
        let opened = match namespace {
            Some(namespace) => in_network_namespace(namespace, || Opened::open(&config))
                .map_err(ResolverError::Namespace)?,
            None => Opened::open(&config),
        }?;
        let mut tasks = JoinSet::new();
        let (exchange, sources) = Exchange::start(
            opened.upstreams,
            namespace,
            config.timeouts,
            Arc::clone(&observer),
            &mut tasks,
        )?;
        let registered = config.source_ports.register(sources.iter().map(|source| source.port));
        let judge = Judge {
            names: policy,
            mode: config.mode,
            policy: config.policy_name,
            search_domains: config
                .search_domains
                .iter()
                .map(|domain| domain.trim_matches('.').to_ascii_lowercase())
                .filter(|domain| !domain.is_empty())
                .collect(),
            lifetimes: config.lifetimes,
        };
        let core =
            Arc::new(Core::new(judge, exchange, grants, observer, config.budgets, config.cache));
        let slots = Arc::new(Semaphore::new(config.tcp.connections));
        let mut serve = |listeners: Vec<listen::Listener>, sockets| {
            let mut addresses = Vec::new();
            for listener in listeners {
                let udp = UdpSocket::from_std(listener.udp)?;
                let tcp = TcpListener::from_std(listener.tcp)?;
                addresses.push(udp.local_addr()?);
                tasks.spawn(udp::serve(Arc::clone(&core), Arc::new(udp), sockets));
                tasks.spawn(tcp::serve(
                    Arc::clone(&core),
                    (tcp, sockets),
                    config.tcp,
                    Arc::clone(&slots),
                ));
            }
            Ok(addresses)
        };
        let addresses = serve(opened.listeners.bound, udp::Listens::OnAddress)
            .map_err(ResolverError::Register)?;
        let anywhere =
            serve(opened.anywhere, udp::Listens::Anywhere).map_err(ResolverError::Register)?;
        Ok(Self {
            port: opened.listeners.port,
            addresses,
            anywhere,
            skipped: opened.listeners.skipped,
            sources,
            _registered: registered,
            core,
            tasks,
        })
    }

    /// Answers containers together with the resolvers of other jobs in the network namespace with this inode number: what
    /// one of them does not allow is not answered, and what is answered is open for all. To be called when the job's rules
    /// are in force, and judge containers, too.
    pub fn answer_together(&self, neighbours: &Neighbours, namespace: u64) {
        let place = neighbours.enter(namespace, &self.core);
        for other in place.others().resolvers {
            self.core.take_over(&other);
        }
        *self.core.place() = Some(place);
    }

    /// The port of all listeners, UDP and TCP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The addresses listened on.
    pub fn listen_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where queries are heard that rules redirect from other network namespaces: the port on every address, by family.
    pub fn listens_anywhere(&self) -> &[SocketAddr] {
        &self.anywhere
    }

    /// The addresses asked for that the namespace does not have.
    pub fn skipped_listeners(&self) -> &[SkippedListener] {
        &self.skipped
    }

    /// The sockets that talk to upstreams.
    pub fn upstream_source_ports(&self) -> &[UpstreamSource] {
        &self.sources
    }

    /// Stops answering and waits until all sockets are closed.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        // Taken out first: the lock must not be held while waiting.
        let mut questions = std::mem::take(&mut *self.core.tasks());
        questions.shutdown().await;
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        drop(self.core.place().take());
        // The others end with `tasks`.
        self.core.tasks().abort_all();
    }
}
