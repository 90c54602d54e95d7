//! What processes of jobs come, execute, go, and leave their job's cgroup (`programs/lifecycle.bpf.c`).

use crate::containers::ContainerWatch;
use crate::event::Event;
use crate::object::{SensorError, attach, load, map, resize};
use crate::ring::{Ring, RingReader, online_processors, ring_bytes};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Object};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// The compiled programs.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lifecycle.bpf.o"));

/// `PROC_PID_INIT_INO`: the inode of the initial pid namespace.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The running sensor. Dropping it ends it.
#[derive(Debug)]
pub struct Lifecycle {
    /// Detached first, then the thread ends, then the maps go.
    _links: Vec<Link>,
    _reader: RingReader,
    ring: Arc<Ring>,
    jobs: MapHandle,
    workers: MapHandle,
    lost: MapHandle,
    /// Maps that the memory guard shares.
    pub(crate) events: MapHandle,
    pub(crate) members: MapHandle,
    /// Maps that the hooks on jobs' cgroups share as well.
    pub(crate) connections_made: MapHandle,
    pub(crate) connections_idle: MapHandle,
    pub(crate) all_connections: MapHandle,
    pub(crate) logs: MapHandle,
    containers: ContainerWatch,
    object: Object,
}

/// See [`Lifecycle::refuse_escaped`].
#[derive(Debug)]
pub struct EscapeBarrier {
    _link: Link,
}

impl Lifecycle {
    /// Loads the programs and hands what they tell to `handle`, in order, on a thread of its own or on the thread of whoever
    /// calls [`Lifecycle::drain`]; `handle` must not call it.
    ///
    /// # Errors
    /// See [`SensorError`]: without root, without the kernel's BTF, or where BPF is not allowed.
    pub fn start(handle: impl FnMut(Event) + Send + 'static) -> Result<Self, SensorError> {
        let namespace = std::fs::metadata("/proc/self/ns/pid").map_err(SensorError::Events)?;
        if namespace.ino() != INITIAL_PID_NAMESPACE {
            return Err(SensorError::PidNamespace);
        }
        let ring_size = ring_bytes(online_processors());
        let object = load("lifecycle", OBJECT, |open| resize(open, "events", ring_size))?;
        let ring = Arc::new(Ring::new(map(&object, "events")?, handle)?);
        let programs = [
            "process_forks",
            "process_executes",
            "process_exits",
            "process_moves",
            "container_executes",
        ];
        let links = programs.iter().map(|name| attach(&object, name)).collect::<Result<_, _>>()?;
        Ok(Self {
            _links: links,
            _reader: RingReader::start(Arc::clone(&ring), map(&object, "reader_waits")?)?,
            ring,
            jobs: map(&object, "jobs")?,
            workers: map(&object, "workers")?,
            lost: map(&object, "lost")?,
            events: map(&object, "events")?,
            members: map(&object, "members")?,
            connections_made: map(&object, "connections_made")?,
            connections_idle: map(&object, "connections_idle")?,
            all_connections: map(&object, "all_connections")?,
            logs: map(&object, "logs")?,
            containers: ContainerWatch::new(&object)?,
            object,
        })
    }

    /// From now on processes in the cgroup `group` (its inode number), and all that descend from them, are those of the job
    /// `token`; what `worker` starts begins a step.
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn add_job(&self, token: u64, group: u64, worker: u32) -> Result<(), SensorError> {
        let token = token.to_ne_bytes();
        let failed = |map| move |source| SensorError::Map { map, source };
        self.workers
            .update(&worker.to_ne_bytes(), &token, MapFlags::ANY)
            .map_err(failed("workers"))?;
        self.jobs.update(&group.to_ne_bytes(), &token, MapFlags::ANY).map_err(failed("jobs"))
    }

    /// From now on a process that has left its job's cgroup makes no socket in this cgroup, an open directory, or below it
    /// (`EPERM`). Ends when the link is dropped.
    ///
    /// # Errors
    /// [`SensorError::Attach`].
    pub fn refuse_escaped(&self, group: BorrowedFd<'_>) -> Result<EscapeBarrier, SensorError> {
        const PROGRAM: &str = "makes_socket_outside";
        let program = self.object.progs_mut().find(|program| program.name() == PROGRAM);
        let program = program.ok_or(SensorError::Foreign(PROGRAM))?;
        let link = program.attach_cgroup(group.as_raw_fd());
        let failed = |source| SensorError::Attach { program: PROGRAM.to_owned(), source };
        link.map(|link| EscapeBarrier { _link: link }).map_err(failed)
    }

    /// Nothing of the job is looked for any more.
    pub fn remove_job(&self, group: u64, worker: u32) {
        // What is not there need not be removed.
        let _ = self.jobs.delete(&group.to_ne_bytes());
        let _ = self.workers.delete(&worker.to_ne_bytes());
    }

    /// Hands over everything that has happened until now.
    pub fn drain(&self) {
        self.ring.drain();
    }

    /// What is told of containers.
    pub fn containers(&self) -> &ContainerWatch {
        &self.containers
    }

    /// How many events there was no room for.
    pub fn lost(&self) -> u64 {
        sum_of(&self.lost)
    }

    pub(crate) fn jobs(&self) -> &MapHandle {
        &self.jobs
    }

    pub(crate) fn lost_map(&self) -> &MapHandle {
        &self.lost
    }
}

/// The sum over all processors of a map's only counter.
fn sum_of(map: &MapHandle) -> u64 {
    let values = map.lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
    let values = values.unwrap_or_default();
    let counts = values.iter().filter_map(|value| value.first_chunk().copied());
    counts.map(u64::from_ne_bytes).sum()
}
