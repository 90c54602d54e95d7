//! The memory guard (`programs/syscalls.bpf.c`): who wants the memory of a guarded process is told, and ended before it gets
//! any where the guard says so.

use crate::lifecycle::Lifecycle;
use crate::object::{SensorError, attach, load, map};
use crate::streams::StreamGate;
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Object, OpenObject};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The compiled programs.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/syscalls.bpf.o"));

/// The programs.
const PROGRAMS: [&str; 8] = [
    "enters",
    "leaves",
    "touches",
    "thread_begins",
    "thread_ends",
    "program_changes",
    "signals",
    "delivers",
];

/// `sizeof(struct settings)`.
const SETTINGS_LENGTH: usize = 24;

/// The running guard. Dropping it ends it.
#[derive(Debug)]
pub struct MemoryGuard {
    _links: Vec<Link>,
    guarded: MapHandle,
    memories: MapHandle,
    threads: MapHandle,
    trusted: MapHandle,
    streams: StreamGate,
    _object: Object,
}

/// How a process is guarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Guard {
    /// The token of the job whose Worker it is; 0 for what belongs to none.
    pub job: u64,
    /// Whether readers are ended. Otherwise they are only told.
    pub is_lethal: bool,
    /// Whether other guarded processes are readers like all; otherwise they may read it.
    pub is_private: bool,
}

/// A thread as some pid namespace counts it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ThreadName {
    /// The namespace, by inode.
    pub namespace: u32,
    /// The thread's number there.
    pub number: u32,
}

impl MemoryGuard {
    /// Loads the programs and learns how this kernel's files look that lead to memory. `open_pidfd` makes a pidfd of this
    /// process; `interpreters` are the names of programs that count as shells.
    ///
    /// # Errors
    /// See [`SensorError`].
    pub fn start(
        lifecycle: &Lifecycle,
        interpreters: &[&str],
        open_pidfd: impl FnOnce() -> std::io::Result<OwnedFd>,
    ) -> Result<Self, SensorError> {
        let object = load("syscalls", OBJECT, |open| {
            share(open, "events", lifecycle.events.as_fd())?;
            share(open, "members", lifecycle.members.as_fd())?;
            share(open, "jobs", lifecycle.jobs().as_fd())?;
            share(open, "lost", lifecycle.lost_map().as_fd())?;
            share(open, "logs", lifecycle.logs.as_fd())?;
            share_connections(open, lifecycle)
        })?;
        let links = PROGRAMS.iter().map(|name| attach(&object, name)).collect::<Result<_, _>>()?;
        let settings = map(&object, "settings")?;
        learn(&settings, open_pidfd)?;
        Ok(Self {
            _links: links,
            guarded: map(&object, "guarded")?,
            memories: map(&object, "guarded_memories")?,
            threads: map(&object, "guarded_threads")?,
            trusted: map(&object, "trusted")?,
            streams: StreamGate::new(&object, interpreters)?,
            _object: object,
        })
    }

    /// What is known of streams.
    pub fn streams(&self) -> &StreamGate {
        &self.streams
    }

    /// Guards a process, or changes how. The caller must be trusted ([`MemoryGuard::trust`]). New threads of it are followed from now on; [`MemoryGuard::name_thread`] adds those
    /// that are there.
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn guard(&self, pid: u32, guard: Guard) -> Result<(), SensorError> {
        let mut value = [0; 24];
        value[..8].copy_from_slice(&guard.job.to_ne_bytes());
        value[8] = u8::from(guard.is_lethal);
        value[9] = u8::from(guard.is_private);
        self.guarded
            .update(&pid.to_ne_bytes(), &value, MapFlags::ANY)
            .map_err(|source| SensorError::Map { map: "guarded", source })?;
        // The programs see this, and remember which address space it is. A process that has ended has none.
        drop(File::open(format!("/proc/{pid}/mem")));
        let known = self.guarded.lookup(&pid.to_ne_bytes(), MapFlags::ANY).ok().flatten();
        let memory = known.as_deref().and_then(|value| value.get(16..24));
        match memory {
            Some(memory) if memory.iter().any(|byte| *byte != 0) => Ok(()),
            _ => Err(SensorError::Blind("the memory of the process to guard")),
        }
    }

    /// A thread of the guarded process `pid` has this name.
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn name_thread(&self, name: ThreadName, pid: u32) -> Result<(), SensorError> {
        self.threads
            .update(&thread_key(name), &pid.to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| SensorError::Map { map: "guarded_threads", source })
    }

    /// Whether a thread of this name is known to be a guarded process'.
    pub fn knows_thread(&self, name: ThreadName) -> bool {
        matches!(self.threads.lookup(&thread_key(name), MapFlags::ANY), Ok(Some(_)))
    }

    /// Guards a process no longer.
    pub fn release(&self, pid: u32) {
        let value = self.guarded.lookup(&pid.to_ne_bytes(), MapFlags::ANY).ok().flatten();
        let _ = self.guarded.delete(&pid.to_ne_bytes());
        if let Some(memory) = value.as_deref().and_then(|value| value.get(16..24)) {
            let _ = self.memories.delete(memory);
        }
        let of_process: Vec<Vec<u8>> = self
            .threads
            .keys()
            .filter(|key| {
                let value = self.threads.lookup(key, MapFlags::ANY).ok().flatten();
                value.is_some_and(|value| value == pid.to_ne_bytes())
            })
            .collect();
        for key in of_process {
            let _ = self.threads.delete(&key);
        }
    }

    /// Lets a process read whatever is guarded.
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn trust(&self, pid: u32) -> Result<(), SensorError> {
        self.trusted
            .update(&pid.to_ne_bytes(), &1_u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| SensorError::Map { map: "trusted", source })
    }

    /// Trusts a process no longer.
    pub fn distrust(&self, pid: u32) {
        let _ = self.trusted.delete(&pid.to_ne_bytes());
    }
}

fn thread_key(name: ThreadName) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&name.namespace.to_ne_bytes());
    key[4..].copy_from_slice(&name.number.to_ne_bytes());
    key
}

/// Makes the object count connections where all do.
pub(crate) fn share_connections(
    open: &mut OpenObject,
    lifecycle: &Lifecycle,
) -> Result<(), SensorError> {
    share(open, "connections_made", lifecycle.connections_made.as_fd())?;
    share(open, "connections_idle", lifecycle.connections_idle.as_fd())?;
    share(open, "all_connections", lifecycle.all_connections.as_fd())
}

/// Makes the object use a map that is there already.
fn share(
    open: &mut OpenObject,
    name: &'static str,
    existing: BorrowedFd<'_>,
) -> Result<(), SensorError> {
    let mut map = open
        .maps_mut()
        .find(|map| map.name() == OsStr::new(name))
        .ok_or(SensorError::Foreign(name))?;
    map.reuse_fd(existing).map_err(|source| SensorError::Map { map: name, source })
}

/// Opens one file of each kind, so that the programs see which operations it has; verifies that they did.
fn learn(
    settings: &MapHandle,
    open_pidfd: impl FnOnce() -> std::io::Result<OwnedFd>,
) -> Result<(), SensorError> {
    let key = 0_u32.to_ne_bytes();
    let failed = |source| SensorError::Map { map: "settings", source };
    let mut value = [0; SETTINGS_LENGTH];
    value[..4].copy_from_slice(&std::process::id().to_ne_bytes());
    settings.update(&key, &value, MapFlags::ANY).map_err(failed)?;
    drop(File::open("/proc/self/mem").map_err(SensorError::Events)?);
    drop(open_pidfd().map_err(SensorError::Events)?);
    let mut learned = settings.lookup(&key, MapFlags::ANY).map_err(failed)?.unwrap_or_default();
    let kinds = [(8, "/proc/PID/mem"), (16, "a pidfd")];
    for (offset, kind) in kinds {
        let is_known = learned
            .get(offset..offset + 8)
            .is_some_and(|address| address.iter().any(|byte| *byte != 0));
        if !is_known {
            return Err(SensorError::Blind(kind));
        }
    }
    // Nothing more to learn; from now on it guards.
    learned[..4].copy_from_slice(&0_u32.to_ne_bytes());
    learned[4..6].copy_from_slice(&1_u16.to_ne_bytes());
    settings.update(&key, &learned, MapFlags::ANY).map_err(failed)
}
