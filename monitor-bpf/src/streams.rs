//! Shells at the end of connections (`programs/streams.h`): a process that may be one is stopped when it has read its standard
//! input, and stays so until it is let go; and what relays hand on.
//!
//! A job takes part from [`StreamGate::add_job`] to [`StreamGate::remove_job`]. Whoever does not answer for the stopped
//! processes ([`crate::Event::Held`], [`StreamGate::held`]) must not add any.

use crate::bytes::Reader;
use crate::object::{SensorError, map};
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object};

/// `NAME_BYTES` of the programs.
const NAME_BYTES: usize = 16;

/// `ALL_MADE` and `ALL_IDLE` of the programs.
const ALL_MADE: u32 = 0;
const ALL_IDLE: u32 = 1;

/// Where `is_holding` is in `struct settings`.
const IS_HOLDING: usize = 6;

/// Where `socket` and `line_length` are in `struct received`, and how long its line can be.
const SOCKET_AT: usize = 8;
const LINE_AT: usize = 96;
const LINE_BYTES: usize = 64;

/// What bytes were handed on to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RelayedTo {
    /// A pipe, FIFO or socket, by its inode.
    Inode(u64),
    /// A pseudo-terminal, by its number.
    Terminal(u32),
}

/// Bytes of a connection that were handed on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Relayed {
    /// As they came.
    pub plain: Passed,
    /// As many as there were before they were encrypted: by the length of a record of TLS, or by what encryption without TLS
    /// adds to a piece.
    pub sealed: Passed,
    /// How often something else was written there.
    pub others: u64,
}

/// What a process has received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Received {
    /// By which socket, by inode.
    pub socket: u64,
    /// The beginning of what it was: of a program that reads byte by byte, since the last line ended.
    pub line: Vec<u8>,
}

/// When and how much.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Passed {
    /// When it was last, in nanoseconds since boot; 0 for never.
    pub time: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// The maps that the programs and the monitor share. Belongs to a [`crate::MemoryGuard`], whose programs look at streams as
/// well.
#[derive(Debug)]
pub struct StreamGate {
    held: MapHandle,
    relays: MapHandle,
    received: MapHandle,
    settings: MapHandle,
    made: MapHandle,
    idle: MapHandle,
    all: MapHandle,
}

impl StreamGate {
    pub(crate) fn new(object: &Object, interpreters: &[&str]) -> Result<Self, SensorError> {
        let names = map(object, "interpreters")?;
        for name in interpreters {
            let mut key = [0; NAME_BYTES];
            // The longest names are of 10 bytes.
            let Some(place) = key.get_mut(..name.len()) else { continue };
            place.copy_from_slice(name.as_bytes());
            update(&names, "interpreters", &key, &1_u32.to_ne_bytes())?;
        }
        Ok(Self {
            held: map(object, "held")?,
            relays: map(object, "relays")?,
            received: map(object, "received_by")?,
            settings: map(object, "settings")?,
            made: map(object, "connections_made")?,
            idle: map(object, "connections_idle")?,
            all: map(object, "all_connections")?,
        })
    }

    /// From now on shells of this job are stopped when they have read something while it has a connection. It counts as having
    /// one until [`StreamGate::set_idle`].
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn add_job(&self, job: u64) -> Result<(), SensorError> {
        update(&self.made, "connections_made", &job.to_ne_bytes(), &1_u64.to_ne_bytes())?;
        let all = self.all_made().unwrap_or_default();
        update(&self.all, "all_connections", &ALL_MADE.to_ne_bytes(), &(all + 1).to_ne_bytes())
    }

    /// Nothing of the job is stopped any more. What is, must be let go by the caller.
    pub fn remove_job(&self, job: u64) {
        let _ = self.made.delete(&job.to_ne_bytes());
        let _ = self.idle.delete(&job.to_ne_bytes());
        self.rest();
    }

    /// How many connections to other machines a job has made so far. Asked *before* it is looked whether there are any.
    pub fn made(&self, job: u64) -> Option<u64> {
        number(&self.made, &job.to_ne_bytes())
    }

    /// After its `made` connections the job was seen to have none left.
    pub fn set_idle(&self, job: u64, made: u64) {
        // A job whose number can't be written stays busy, which costs time and lets nothing through.
        let _ = self.idle.update(&job.to_ne_bytes(), &made.to_ne_bytes(), MapFlags::ANY);
        self.rest();
    }

    /// Lets a stopped process be resumed by the caller: it is not stopped again for what it has read.
    pub fn release(&self, pid: u32) {
        let _ = self.held.delete(&pid.to_ne_bytes());
        if self.held.keys().next().is_none() {
            self.set_holding(false);
            // One that was stopped in between must find it set.
            if self.held.keys().next().is_some() {
                self.set_holding(true);
            }
        }
    }

    /// The processes that are stopped, of all jobs.
    pub fn held(&self) -> Vec<u32> {
        let keys = self.held.keys();
        keys.filter_map(|key| key.first_chunk().copied()).map(u32::from_ne_bytes).collect()
    }

    /// What a process has received last from another machine.
    pub fn received(&self, pid: u32) -> Option<Received> {
        let value = self.received.lookup(&pid.to_ne_bytes(), MapFlags::ANY).ok().flatten()?;
        let socket = value.get(SOCKET_AT..).and_then(<[u8]>::first_chunk).copied()?;
        let line = value.get(LINE_AT..LINE_AT + LINE_BYTES + 8)?;
        let (length, line) = line.split_first_chunk()?;
        let length = usize::try_from(u64::from_ne_bytes(*length)).ok()?.min(LINE_BYTES);
        Some(Received { socket: u64::from_ne_bytes(socket), line: line[..length].to_vec() })
    }

    /// What the connection with this inode received and was handed on to `to`.
    pub fn relayed(&self, socket: u64, to: RelayedTo) -> Option<Relayed> {
        let object = match to {
            RelayedTo::Inode(inode) => inode,
            RelayedTo::Terminal(number) => 1 << 63 | u64::from(number),
        };
        let mut key = [0; 16];
        key[..8].copy_from_slice(&socket.to_ne_bytes());
        key[8..].copy_from_slice(&object.to_ne_bytes());
        let value = self.relays.lookup(&key, MapFlags::ANY).ok().flatten()?;
        let mut reader = Reader(&value);
        let mut passed = || Some(Passed { time: reader.u64()?, bytes: reader.u64()? });
        let (plain, sealed) = (passed()?, passed()?);
        Some(Relayed { plain, sealed, others: reader.u64()? })
    }

    /// When no job has a connection, reads are not looked at at all. The common number is read first: a connection that is made
    /// meanwhile is counted in its job's before it is counted in that.
    fn rest(&self) {
        let Some(all) = self.all_made() else { return };
        let is_idle = |job: &Vec<u8>| number(&self.made, job) == number(&self.idle, job);
        if self.made.keys().all(|job| is_idle(&job)) {
            let _ = self.all.update(&ALL_IDLE.to_ne_bytes(), &all.to_ne_bytes(), MapFlags::ANY);
        }
    }

    fn all_made(&self) -> Option<u64> {
        number(&self.all, &ALL_MADE.to_ne_bytes())
    }

    fn set_holding(&self, is_holding: bool) {
        let key = 0_u32.to_ne_bytes();
        let Ok(Some(mut settings)) = self.settings.lookup(&key, MapFlags::ANY) else { return };
        if let Some(field) = settings.get_mut(IS_HOLDING..IS_HOLDING + 2) {
            field.copy_from_slice(&u16::from(is_holding).to_ne_bytes());
            let _ = self.settings.update(&key, &settings, MapFlags::ANY);
        }
    }
}

fn number(map: &MapHandle, key: &[u8]) -> Option<u64> {
    let value = map.lookup(key, MapFlags::ANY).ok().flatten()?;
    value.first_chunk().copied().map(u64::from_ne_bytes)
}

fn update(
    map: &MapHandle,
    name: &'static str,
    key: &[u8],
    value: &[u8],
) -> Result<(), SensorError> {
    map.update(key, value, MapFlags::ANY).map_err(|source| SensorError::Map { map: name, source })
}
