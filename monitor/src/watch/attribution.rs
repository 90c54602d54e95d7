//! Who did it: the seam between events and sensors.

use super::bounded::BoundedCache;
use super::flow::Flow;
use super::inodes::{SocketOwners, owner_of_any};
use super::process::ProcessInspector;
use super::sockets::{SocketDiagnostics, SocketError};
use crate::caller::{ProcFs, ProcessKey, Worker};
use crate::cgroup::JobCgroup;
use portcullis_common::event::Process;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many client ports are remembered for one job.
const REMEMBERED_PORTS: usize = 16_384;

/// How many processes are remembered for one job.
const REMEMBERED_PROCESSES: usize = 4_096;

/// How long a client port stands for the process that had it, once its socket can't be found any more: long enough for
/// packets that were under way or waited for us. Ports are given again at random out of 28 000, so in a job that makes a
/// hundred sockets a second about one of 300 remembered attributions is another socket's; that is why they are marked.
const PORT_MEMORY: Duration = Duration::from_secs(1);

/// How an attribution was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AttributionSource {
    /// The kernel told who made the call when it was made.
    Kernel,
    /// The socket and the process that holds it, now.
    Socket,
    /// The process that had the client port a moment ago.
    Remembered,
    /// The socket was found, but no process that holds it: it has exited already.
    UserOnly,
    /// Nothing is known.
    Unknown,
}

/// Whose a flow is, as far as it could be found out.
#[derive(Clone, Debug)]
pub struct Attribution {
    /// The process.
    pub process: Option<Arc<Process>>,
    /// The user that made the socket.
    pub uid: Option<u32>,
    /// The cgroup v2 that the socket was made in, by inode (Linux 5.8 and newer).
    pub cgroup: Option<u64>,
    /// How it was found.
    pub source: AttributionSource,
}

impl Attribution {
    /// Nothing is known.
    pub const UNKNOWN: Self =
        Self { process: None, uid: None, cgroup: None, source: AttributionSource::Unknown };

    /// The process for an event; only the user when that is all there is.
    pub fn to_process(&self) -> Option<Process> {
        match (&self.process, self.uid) {
            (Some(process), _) => Some(Process::clone(process)),
            (None, Some(uid)) => Some(Process { uid: Some(uid), ..Process::default() }),
            (None, None) => None,
        }
    }
}

/// Finds out whose a flow is. Called on the way of a packet: an implementation must be quick and must not fail.
pub trait ProcessSensor: fmt::Debug + Send + Sync {
    /// Whose `flow` is; its source is the local side.
    fn attribute(&self, flow: &Flow) -> Attribution;

    /// Whose socket has the local side `client`. Its packets were redirected to us, so where it believes to send them is
    /// not known; `likely_servers` are tried first.
    fn attribute_client(
        &self,
        protocol: u8,
        client: SocketAddr,
        likely_servers: &[SocketAddr],
    ) -> Attribution;

    /// A process as it is now, or as it was when it was seen last.
    fn process(&self, key: ProcessKey) -> Option<Process>;

    /// The process that has this number, or has just had it where [`Self::remembers`] says so.
    fn by_number(&self, pid: u32) -> Option<Process>;

    /// Whether processes of the job that have ended are known, so that nobody has to be looked up while they live.
    fn remembers(&self) -> bool;
}

/// The sensor that works on every kernel: `sock_diag` for the socket, `/proc` for its process.
#[derive(Debug)]
pub struct ProcfsSensor {
    /// The job's group: where owners are looked for first.
    group: Option<JobCgroup>,
    /// The socket tables of the Worker's network namespace.
    diagnostics: SocketDiagnostics,
    /// Snapshots of processes.
    inspector: Arc<ProcessInspector>,
    /// Owners of sockets.
    owners: Mutex<SocketOwners>,
    /// Who had a client port.
    ports: Mutex<BoundedCache<(u8, SocketAddr), Remembered>>,
    /// Whose the latest frame was.
    latest_frame: Mutex<Option<FrameSender>>,
}

/// Who sent a frame, for as long as the same packet sockets are open.
#[derive(Clone, Debug)]
struct FrameSender {
    /// The sockets that it could have come from.
    candidates: Vec<u32>,
    /// Whose it was.
    process: Option<Arc<Process>>,
}

/// A client port's owner.
#[derive(Clone, Debug)]
struct Remembered {
    /// Whose it was.
    attribution: Attribution,
    /// The inode of the socket.
    inode: u32,
    /// When that was seen last.
    seen: Instant,
}

impl ProcfsSensor {
    /// A sensor for the job of `worker`.
    ///
    /// # Errors
    /// When the socket tables of the Worker's network namespace can't be opened.
    pub fn new(worker: &Worker, group: Option<JobCgroup>) -> Result<Self, SocketError> {
        let namespace = worker
            .network_namespace()
            .map_err(|error| SocketError::Open(std::io::Error::other(error)))?;
        Ok(Self::with(worker.key(), group, SocketDiagnostics::open(namespace.as_fd())?))
    }

    /// A sensor from its parts.
    pub(crate) fn with(
        worker: ProcessKey,
        group: Option<JobCgroup>,
        diagnostics: SocketDiagnostics,
    ) -> Self {
        Self {
            group,
            diagnostics,
            inspector: Arc::new(ProcessInspector::new(worker, REMEMBERED_PROCESSES)),
            owners: Mutex::default(),
            ports: Mutex::new(BoundedCache::new(REMEMBERED_PORTS)),
            latest_frame: Mutex::default(),
        }
    }

    /// Snapshots of the job's processes.
    pub fn inspector(&self) -> &Arc<ProcessInspector> {
        &self.inspector
    }

    /// The socket tables of the Worker's network namespace.
    pub fn diagnostics(&self) -> &SocketDiagnostics {
        &self.diagnostics
    }

    /// Looks the flow up as it is now, with the inode of its socket.
    fn look_up(&self, flow: &Flow) -> Option<(Attribution, u32)> {
        let socket = match self.diagnostics.find(flow) {
            Ok(socket) => socket?,
            Err(error) => {
                tracing::warn!(%error, "a flow can't be attributed");
                return None;
            }
        };
        let process = self.owner(socket.inode).and_then(|owner| self.inspector.inspect(owner));
        let source = match process {
            Some(_) => AttributionSource::Socket,
            None => AttributionSource::UserOnly,
        };
        // A socket without an inode is closed by its owner: the kernel may have forgotten its user and say 0.
        let uid = (socket.inode != 0).then_some(socket.uid);
        Some((Attribution { process, uid, cgroup: socket.cgroup, source }, socket.inode))
    }

    /// The process that holds a socket.
    fn owner(&self, inode: u32) -> Option<ProcessKey> {
        // Most jobs have no groups of their own making, so those are looked at later.
        let group = self.group.iter();
        let direct = group.clone().map(|job| job.group().processes().unwrap_or_default());
        let all = group.map(|job| job.processes().unwrap_or_default());
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.find(inode, direct.chain(all))
    }
}

impl ProcfsSensor {
    /// Who sent a frame by `interface`: whoever holds a packet socket there, processes of the job before others. `uid` is
    /// what the kernel tells of the sending socket. When several hold one it is one of them: a frame does not tell.
    pub fn attribute_frame(&self, interface: Option<u32>, uid: Option<u32>) -> Attribution {
        let candidates = match self.diagnostics.packet_sockets(interface, uid) {
            Ok(candidates) => candidates,
            Err(error) => {
                tracing::warn!(%error, "a frame can't be attributed");
                Vec::new()
            }
        };
        let process = self.holder(candidates);
        let source = match (&process, uid) {
            (Some(_), _) => AttributionSource::Socket,
            (None, Some(_)) => AttributionSource::UserOnly,
            (None, None) => AttributionSource::Unknown,
        };
        Attribution { process, uid, cgroup: None, source }
    }

    /// The process that holds one of the packet sockets.
    fn holder(&self, candidates: Vec<u32>) -> Option<Arc<Process>> {
        if candidates.is_empty() {
            return None;
        }
        let mut latest = self.latest_frame.lock().unwrap_or_else(PoisonError::into_inner);
        // A flood of frames comes from the same sockets: they are looked for once.
        if let Some(known) = &*latest
            && known.candidates == candidates
        {
            return known.process.clone();
        }
        let group = self.group.iter().map(|job| job.processes().unwrap_or_default());
        let process =
            owner_of_any(&candidates, group).and_then(|owner| self.inspector.inspect(owner));
        *latest = Some(FrameSender { candidates, process: process.clone() });
        process
    }

    /// A resolver library asks several questions from one socket, one after the other: within the memory of ports it is
    /// not looked up again, for the client waits.
    fn asked_just_before(&self, protocol: u8, client: SocketAddr) -> Option<Attribution> {
        let now = Instant::now();
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ports.get(&(protocol, client))?;
        let is_fresh = now.duration_since(known.seen) < PORT_MEMORY;
        is_fresh.then(|| Attribution {
            source: AttributionSource::Remembered,
            ..known.attribution.clone()
        })
    }
}

impl ProcessSensor for ProcfsSensor {
    fn attribute(&self, flow: &Flow) -> Attribution {
        let port = (flow.protocol, flow.source);
        let has_port = flow.source.port() != 0;
        let seen = Instant::now();
        let found = self.look_up(flow);
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((attribution, inode)) = &found
            && attribution.process.is_some()
        {
            if has_port {
                let (attribution, inode) = (attribution.clone(), *inode);
                ports.insert(port, Remembered { attribution, inode, seen });
            }
            return attribution.clone();
        }
        let open = found.as_ref().map(|(_, inode)| *inode).filter(|inode| *inode != 0);
        let remembered = ports.get(&port).filter(|remembered| {
            has_port
                && seen.duration_since(remembered.seen) < PORT_MEMORY
                && open.is_none_or(|inode| inode == remembered.inode)
        });
        match (remembered, found) {
            (Some(remembered), _) => Attribution {
                source: AttributionSource::Remembered,
                ..remembered.attribution.clone()
            },
            (None, Some((attribution, _))) => attribution,
            (None, None) => Attribution::UNKNOWN,
        }
    }

    fn attribute_client(
        &self,
        protocol: u8,
        client: SocketAddr,
        likely_servers: &[SocketAddr],
    ) -> Attribution {
        if let Some(known) = self.asked_just_before(protocol, client) {
            return known;
        }
        let same_family = |server: &&SocketAddr| server.is_ipv4() == client.is_ipv4();
        // An exact look-up costs microseconds, one in a whole table more.
        for server in likely_servers.iter().filter(same_family) {
            let attribution = self.attribute(&Flow::new(protocol, client, *server));
            if attribution.process.is_some() {
                return attribution;
            }
        }
        let socket = match self.diagnostics.find_by_local(protocol, client) {
            Ok(Some(socket)) => socket,
            Ok(None) => return Attribution::UNKNOWN,
            Err(error) => {
                tracing::warn!(%error, "a client can't be attributed");
                return Attribution::UNKNOWN;
            }
        };
        self.attribute(&Flow::new(protocol, client, socket.remote))
    }

    fn process(&self, key: ProcessKey) -> Option<Process> {
        self.inspector.inspect(key).map(|process| Process::clone(&process))
    }

    fn by_number(&self, pid: u32) -> Option<Process> {
        self.process(ProcFs.key(pid)?)
    }

    fn remembers(&self) -> bool {
        false
    }
}
