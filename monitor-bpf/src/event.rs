//! What the programs tell (`programs/events.h`), read from their bytes.

use crate::bytes::Reader;
use std::net::SocketAddr;

/// Something that happened, in the order in which it happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A process of a job was made; `subject` is the new one.
    Fork(Subject),
    /// A process of a job executes another program.
    Exec(Subject, Image),
    /// A process of a job has ended.
    Exit(Subject),
    /// The environment that a Worker gave to a process it started; empty when it could not be copied.
    Environment(Subject, Vec<u8>),
    /// A process of a job is in a cgroup that is not the job's.
    Escape(Subject, Escape),
    /// A process wanted the memory of a guarded one.
    Access(Subject, Access, Image),
    /// A reader that was ended has stopped the guarded process of this number.
    Stopped(u32),
    /// A process of a job connected a UDP socket.
    Port(Subject, Port),
    /// A process that may be a shell has read its standard input and was stopped; see [`crate::streams`].
    Held(Subject),
    /// A process of a job sent the monitor a signal of this number.
    Signal(Subject, u32),
    /// A program is executed in a container in a way that was not told before; see [`crate::containers`].
    Contained(Subject, Contained),
}

/// The process that an event is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Subject {
    /// Its number in the initial pid namespace.
    pub pid: u32,
    /// When it was made, in nanoseconds since boot, suspended time included.
    pub start: u64,
    /// When the event happened, by the same clock.
    pub time: u64,
    /// Its parent; of a new process the one that made it.
    pub parent: u32,
    /// When the parent was made.
    pub parent_start: u64,
    /// Its real user id.
    pub uid: u32,
    /// The token of its job; 0 for none.
    pub job: u64,
}

/// What a process executes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Image {
    /// The executable, by the names it has in the file system; empty when it was not readable.
    pub executable: String,
    /// The working directory, likewise.
    pub directory: String,
    /// The arguments, cut at 4 KiB.
    pub arguments: Vec<String>,
    /// Hard links of the executable: none for one that has no name in any directory.
    pub links: u32,
    /// The effective user id.
    pub effective_uid: u32,
}

/// A process in a cgroup that is not its job's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Escape {
    /// The cgroup, by inode.
    pub cgroup: u64,
    /// Who moved or made it.
    pub by: u32,
    /// Whether it was made there (`CLONE_INTO_CGROUP`).
    pub is_birth: bool,
}

/// How somebody wanted memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessWay {
    /// `/proc/PID/mem`, by whatever path.
    MemoryFile,
    /// `ptrace`.
    Ptrace,
    /// `process_vm_readv`.
    VmRead,
    /// `process_vm_writev`.
    VmWrite,
    /// `pidfd_getfd`.
    Descriptor,
    /// `perf_event_open`.
    Perf,
    /// `/proc/PID/mem` by `io_uring`.
    IoUring,
}

/// Somebody wanted the memory of a guarded process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Access {
    /// The guarded process.
    pub target: u32,
    /// How.
    pub way: AccessWay,
    /// The number of the call in the caller's ABI.
    pub call: u32,
    /// Whether the reader was sent SIGKILL before it got anything.
    pub is_ended: bool,
}

/// The port of a connected UDP socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Port {
    /// `IPPROTO_UDP`.
    pub protocol: u8,
    /// The local port.
    pub source_port: u16,
    /// What it is connected to.
    pub destination: SocketAddr,
}

/// `sizeof(struct container)`.
const CONTAINER_LENGTH: usize = 56;

/// A program that is executed in a container.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Contained {
    /// What the programs remember it by.
    pub container: ContainerKey,
    /// Whether it was stopped before its first instruction; whoever is told must let it go on.
    pub is_held: bool,
}

/// One way of being in a container, as the programs in the kernel tell it from others.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ContainerKey([u8; CONTAINER_LENGTH]);

impl ContainerKey {
    /// The number of its mount namespace, which no other gets as long as the machine runs.
    pub fn mount_namespace(&self) -> u64 {
        self.0.first_chunk().copied().map_or(0, u64::from_ne_bytes)
    }

    /// Its bytes, as the programs have them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Event {
    /// Reads one event; `None` for bytes that are none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let kind = reader.u32()?;
        let subject = Subject::read(&mut reader)?;
        Some(match kind {
            1 => Self::Fork(subject),
            2 => Self::Exec(subject, Image::read(&mut reader)?),
            3 => Self::Exit(subject),
            4 => {
                let length = reader.u32()?;
                reader.u32()?;
                Self::Environment(subject, reader.take(usize::try_from(length).ok()?)?.to_vec())
            }
            5 => {
                let (cgroup, by, is_birth) = (reader.u64()?, reader.u32()?, reader.u32()? != 0);
                Self::Escape(subject, Escape { cgroup, by, is_birth })
            }
            6 => {
                let access = Access {
                    target: reader.u32()?,
                    way: AccessWay::from_number(reader.u32()?)?,
                    call: reader.u32()?,
                    is_ended: reader.u32()? != 0,
                };
                Self::Access(subject, access, Image::read(&mut reader)?)
            }
            7 => Self::Stopped(subject.parent),
            8 => {
                let (address, port) = (reader.address()?, reader.u16()?);
                let (source_port, protocol) = (reader.u16()?, reader.u8()?);
                let destination = SocketAddr::new(address, port);
                Self::Port(subject, Port { protocol, source_port, destination })
            }
            9 => Self::Held(subject),
            10 => Self::Signal(subject, reader.u32()?),
            11 => {
                let container = ContainerKey(*reader.take(CONTAINER_LENGTH)?.first_chunk()?);
                Self::Contained(subject, Contained { container, is_held: reader.u32()? != 0 })
            }
            _ => return None,
        })
    }
}

impl Subject {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (pid, time, start, parent_start) =
            (reader.u32()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let (parent, uid, job) = (reader.u32()?, reader.u32()?, reader.u64()?);
        Some(Self { pid, start, time, parent, parent_start, uid, job })
    }

    /// When it was made in clock ticks since boot, as field 22 of `/proc/PID/stat` has it (`USER_HZ` is 100 on every
    /// architecture that is supported).
    pub fn start_ticks(&self) -> u64 {
        ticks(self.start)
    }
}

/// Nanoseconds as clock ticks.
pub fn ticks(nanoseconds: u64) -> u64 {
    nanoseconds / 10_000_000
}

impl Image {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let lengths = [reader.u16()?, reader.u16()?, reader.u16()?];
        reader.u16()?;
        let (links, effective_uid) = (reader.u32()?, reader.u32()?);
        let [executable, directory, arguments] = lengths.map(usize::from);
        let executable = path(reader.take(executable)?);
        let directory = path(reader.take(directory)?);
        // A working directory without components is the root.
        let directory = if directory.is_empty() { "/".to_owned() } else { directory };
        let arguments = arguments_of(reader.take(arguments)?);
        Some(Self { executable, directory, arguments, links, effective_uid })
    }
}

/// A path from its components, the last one first, each with a NUL.
fn path(bytes: &[u8]) -> String {
    let mut path = String::new();
    let components = bytes.split(|byte| *byte == 0).filter(|component| !component.is_empty());
    for component in components.collect::<Vec<_>>().into_iter().rev() {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(component));
    }
    path
}

fn arguments_of(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    let arguments = bytes.split(|byte| *byte == 0);
    arguments.map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

impl AccessWay {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::MemoryFile,
            2 => Self::Ptrace,
            3 => Self::VmRead,
            4 => Self::VmWrite,
            5 => Self::Descriptor,
            6 => Self::Perf,
            7 => Self::IoUring,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
