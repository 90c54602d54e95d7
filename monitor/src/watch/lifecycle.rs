//! What processes of a job come, execute and go, by the kernel's process connector (`CONFIG_PROC_EVENTS`).
//!
//! Snapshots taken at each exec make evidence of processes that are dead when somebody asks for them. A process that lives
//! for less than it takes us to look is known only by its pid.

use super::netlink::{Connection, HEADER_LENGTH, Pace, Reader, messages};
use super::process::ProcessInspector;
use crate::caller::{ProcFs, ProcessEntry, ProcessKey, ProcessTable};
use crate::cgroup::job::descendants;
use crate::sys::namespace::in_network_namespace;
use libc::{CN_IDX_PROC, PROC_CN_MCAST_LISTEN, PROC_EVENT_EXEC, PROC_EVENT_EXIT, PROC_EVENT_FORK};
use netlink_sys::protocols::NETLINK_CONNECTOR;
use portcullis_common::event::Process;
use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The receive buffer, in bytes: with the default one a storm of forks loses events, with this one none was lost when
/// 20 000 processes were made as fast as two processors can.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The most processes of one job that are followed at a time: the kernel's own limit for a user is lower on most machines.
const PROCESS_LIMIT: usize = 65_536;

/// How many messages may come before the kernel's answer to our subscription.
const MESSAGES_BEFORE_ANSWER: usize = 100_000;

/// `CN_VAL_PROC`.
const CN_VAL_PROC: u32 = 1;

/// `sizeof(struct cn_msg)`.
const CONNECTOR_HEADER_LENGTH: usize = 20;

/// `NLMSG_DONE`: the type that connector messages have.
const NLMSG_DONE: u16 = 3;

/// `PROC_EVENT_NONE`: the answer to a subscription.
const PROC_EVENT_NONE: u32 = 0;

/// Why process events can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// No connector socket.
    #[error("can't open the process connector; it needs root in the host's network namespace")]
    Open(#[source] io::Error),
    /// The kernel did not accept the subscription.
    #[error(
        "the kernel sends no process events; it needs CONFIG_PROC_EVENTS and the host's pid and user namespaces"
    )]
    Refused(#[source] io::Error),
    /// The reader's thread could not be started.
    #[error("can't start the thread that reads process events")]
    Thread(#[source] io::Error),
}

/// Something that happened to a process (not to one of its further threads).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProcessChange {
    /// A process was made.
    Fork {
        /// By this one.
        parent: u32,
        /// The new one.
        child: u32,
    },
    /// A process executed another program.
    Exec {
        /// The process.
        pid: u32,
    },
    /// A process ended.
    Exit {
        /// The process.
        pid: u32,
    },
}

/// A subscription to the changes of all processes of the machine.
#[derive(Debug)]
pub struct ProcessChanges {
    /// The socket.
    connection: Connection,
}

/// A running reader. Dropping it ends the thread.
#[derive(Debug)]
pub struct ProcessChangeReader {
    /// The thread.
    reader: Reader,
    /// How often the receive buffer ran over.
    overruns: Arc<AtomicU64>,
}

impl ProcessChanges {
    /// Subscribes; from now on the kernel keeps the events.
    ///
    /// # Errors
    /// See [`LifecycleError`].
    pub fn subscribe() -> Result<Self, LifecycleError> {
        let mut connection = Connection::open_for_groups(NETLINK_CONNECTOR, CN_IDX_PROC)
            .map_err(LifecycleError::Open)?;
        connection.set_receive_buffer(RECEIVE_BUFFER).map_err(LifecycleError::Open)?;
        connection.send(&subscription()).map_err(LifecycleError::Refused)?;
        for _ in 0..MESSAGES_BEFORE_ANSWER {
            let datagram = connection.receive().map_err(LifecycleError::Refused)?;
            let answer = messages(datagram).find_map(parse_answer);
            match answer {
                Some(0) => return Ok(Self { connection }),
                Some(code) => {
                    let code = i32::try_from(code).unwrap_or(libc::EINVAL);
                    return Err(LifecycleError::Refused(io::Error::from_raw_os_error(code)));
                }
                None => {}
            }
        }
        Err(LifecycleError::Refused(io::ErrorKind::TimedOut.into()))
    }

    /// Subscribes, in the network namespace of the machine's first process when this one's has no process connector: the
    /// kernel has it in its first network namespace only.
    ///
    /// # Errors
    /// See [`LifecycleError`].
    pub fn subscribe_on_machine() -> Result<Self, LifecycleError> {
        Self::subscribe().or_else(|error| {
            let Ok(namespace) = std::fs::File::open("/proc/1/ns/net") else { return Err(error) };
            in_network_namespace(namespace.as_fd(), Self::subscribe)
                .map_err(LifecycleError::Open)?
        })
    }

    /// Starts a thread that hands each change to `handle` at once.
    ///
    /// # Errors
    /// [`LifecycleError::Thread`].
    pub fn start(
        self,
        mut handle: impl FnMut(ProcessChange) + Send + 'static,
    ) -> Result<ProcessChangeReader, LifecycleError> {
        let overruns = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&overruns);
        let reader =
            Reader::start("process-events", self.connection, Pace::AtOnce, move |datagram| {
                match datagram {
                    Some(datagram) => {
                        messages(datagram).filter_map(parse_change).for_each(&mut handle);
                    }
                    None => {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
            .map_err(LifecycleError::Thread)?;
        Ok(ProcessChangeReader { reader, overruns })
    }
}

impl ProcessChangeReader {
    /// How often the receive buffer ran over: each time some changes were lost.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Ordering::Relaxed)
    }

    /// Whether the thread still reads.
    pub fn is_running(&self) -> bool {
        self.reader.is_running()
    }
}

/// The processes of one job, by descent: who was made by one of them is one of them, wherever it moves.
#[derive(Debug)]
pub struct JobProcesses {
    /// The live ones.
    pids: HashSet<u32>,
    /// Where snapshots are taken and remembered.
    inspector: Arc<ProcessInspector>,
    /// Processes that were not followed because there were too many.
    not_followed: u64,
}

impl JobProcesses {
    /// Follows the Worker and everything that is below it now. Subscribe before, so that nothing is missed in between.
    pub fn follow(worker: ProcessKey, inspector: Arc<ProcessInspector>) -> Self {
        let entries: Vec<ProcessEntry> =
            ProcFs.pids().into_iter().filter_map(|pid| ProcFs.process(pid)).collect();
        let below = descendants(&entries, worker).into_iter().map(|key| key.pid);
        let pids = std::iter::once(worker.pid).chain(below).collect();
        Self { pids, inspector, not_followed: 0 }
    }

    /// Takes a change in. For a program that a process of the job has executed, the snapshot of it, as far as it still
    /// lives.
    pub fn apply(&mut self, change: ProcessChange) -> Option<Arc<Process>> {
        let pid = self.track(change)?;
        ProcFs.key(pid).and_then(|key| self.inspector.inspect(key))
    }

    /// Takes a change in, without looking at any process. The process of the job that has executed a program.
    pub fn track(&mut self, change: ProcessChange) -> Option<u32> {
        match change {
            ProcessChange::Fork { parent, child } => {
                if self.pids.contains(&parent) {
                    if self.pids.len() < PROCESS_LIMIT {
                        self.pids.insert(child);
                    } else {
                        self.not_followed += 1;
                    }
                } else {
                    // The pid of a process of the job whose end was missed went to a stranger.
                    self.pids.remove(&child);
                }
                None
            }
            ProcessChange::Exec { pid } => self.pids.contains(&pid).then_some(pid),
            ProcessChange::Exit { pid } => {
                // The first thread can end before the others, which can fork: such a process is kept.
                if self.pids.contains(&pid) && !has_other_threads(pid) {
                    self.pids.remove(&pid);
                }
                None
            }
        }
    }

    /// Whether the process descends from the Worker and has not ended.
    pub fn contains(&self, pid: u32) -> bool {
        self.pids.contains(&pid)
    }

    /// The processes that are followed.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.pids.iter().copied()
    }

    /// How many processes were not followed because there were too many.
    pub fn not_followed(&self) -> u64 {
        self.not_followed
    }
}

/// Whether a process has more threads than the one that ended.
fn has_other_threads(pid: u32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.count() > 1)
}

/// The request for events: a netlink header, a connector header, an operation.
fn subscription() -> Vec<u8> {
    let operation = PROC_CN_MCAST_LISTEN.to_ne_bytes();
    let length = HEADER_LENGTH + CONNECTOR_HEADER_LENGTH + operation.len();
    let mut message = Vec::with_capacity(length);
    // The lengths are 40 and 4.
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(NLMSG_DONE.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(CN_IDX_PROC.to_ne_bytes());
    message.extend(CN_VAL_PROC.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(4_u16.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(operation);
    message
}

/// The kind of an event and its data.
fn parse_event(message: &[u8]) -> Option<(u32, &[u8])> {
    let connector = message.get(HEADER_LENGTH..)?;
    if read_word(connector, 0)? != CN_IDX_PROC || read_word(connector, 1)? != CN_VAL_PROC {
        return None;
    }
    let event = connector.get(CONNECTOR_HEADER_LENGTH..)?;
    // The kind, the processor, and a time stamp of eight bytes.
    Some((read_word(event, 0)?, event.get(16..)?))
}

/// The error number in the answer to a subscription.
fn parse_answer(message: &[u8]) -> Option<u32> {
    let (kind, data) = parse_event(message)?;
    (kind == PROC_EVENT_NONE).then(|| read_word(data, 0)).flatten()
}

/// The change that a message reports; `None` for threads and other events.
fn parse_change(message: &[u8]) -> Option<ProcessChange> {
    let (kind, data) = parse_event(message)?;
    let is_process = |thread: usize, group: usize| {
        let group = read_word(data, group)?;
        (read_word(data, thread)? == group).then_some(group)
    };
    match kind {
        PROC_EVENT_FORK => {
            Some(ProcessChange::Fork { parent: read_word(data, 1)?, child: is_process(2, 3)? })
        }
        PROC_EVENT_EXEC => Some(ProcessChange::Exec { pid: read_word(data, 1)? }),
        PROC_EVENT_EXIT => Some(ProcessChange::Exit { pid: is_process(0, 1)? }),
        _ => None,
    }
}

/// A 32-bit word by its number.
fn read_word(bytes: &[u8], index: usize) -> Option<u32> {
    let word = bytes.get(index * 4..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::testing::{FakeRunner, eventually};
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// A message with an event of this kind and these words of data.
    fn event(kind: u32, data: &[u32]) -> Vec<u8> {
        let mut message = subscription();
        message.truncate(HEADER_LENGTH + CONNECTOR_HEADER_LENGTH);
        for word in [kind, 0, 0, 0].iter().chain(data) {
            message.extend(word.to_ne_bytes());
        }
        message
    }

    #[test]
    fn changes_of_processes_are_read_and_those_of_threads_are_not() {
        let fork = parse_change(&event(1, &[10, 9, 20, 20]));
        assert_eq!(fork, Some(ProcessChange::Fork { parent: 9, child: 20 }));
        assert_eq!(parse_change(&event(1, &[10, 9, 21, 20])), None);
        assert_eq!(parse_change(&event(2, &[7, 6])), Some(ProcessChange::Exec { pid: 6 }));
        assert_eq!(
            parse_change(&event(0x8000_0000, &[6, 6])),
            Some(ProcessChange::Exit { pid: 6 })
        );
        assert_eq!(parse_change(&event(0x8000_0000, &[7, 6])), None);
        assert_eq!(parse_change(&event(0x200, &[7, 6])), None);
        assert_eq!(parse_answer(&event(0, &[13])), Some(13));
    }

    #[test]
    fn a_recycled_pid_is_no_member() {
        let worker = ProcessKey { pid: u32::MAX - 1, start_time: 1 };
        let inspector = Arc::new(ProcessInspector::new(worker, 8));
        let mut job = JobProcesses::follow(worker, inspector);
        let (child, stranger) = (u32::MAX - 2, u32::MAX - 3);
        job.apply(ProcessChange::Fork { parent: worker.pid, child });
        assert!(job.contains(child));
        job.apply(ProcessChange::Fork { parent: stranger, child });
        assert!(!job.contains(child));
        job.apply(ProcessChange::Fork { parent: worker.pid, child });
        job.apply(ProcessChange::Exit { pid: child });
        assert!(!job.contains(child));
    }

    #[test]
    fn a_job_s_programs_are_seen_and_others_are_not() {
        let mut runner = FakeRunner::start();
        let changes = ProcessChanges::subscribe().unwrap();
        let inspector = Arc::new(ProcessInspector::new(runner.worker, 256));
        let job = Arc::new(Mutex::new(JobProcesses::follow(runner.worker, inspector)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (followed, noted) = (Arc::clone(&job), Arc::clone(&seen));
        let reader = changes
            .start(move |change| {
                if let Some(process) = followed.lock().unwrap().apply(change) {
                    noted.lock().unwrap().push(process);
                }
            })
            .unwrap();
        // Orphaned, in a session of its own: still the job's.
        let pid: u32 = runner
            .ask("setsid sh -c 'env GITHUB_ACTION=x sleep 1000 >/dev/null & echo $!'")
            .parse()
            .unwrap();
        let mut stranger = std::process::Command::new("sleep").arg("1001").spawn().unwrap();
        let process = eventually("the exec of sleep", || {
            let seen = seen.lock().unwrap();
            seen.iter().find(|process| process.argv == ["sleep", "1000"]).cloned()
        });
        assert_eq!(process.pid, Some(pid));
        assert!(job.lock().unwrap().contains(pid));
        assert!(!job.lock().unwrap().contains(stranger.id()));
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert!(crate::caller::kill(ProcFs.key(pid).unwrap()).unwrap());
        eventually("its end is seen", || (!job.lock().unwrap().contains(pid)).then_some(()));
        assert!(seen.lock().unwrap().iter().all(|process| process.argv != ["sleep", "1001"]));
        assert!(reader.is_running());
        assert_eq!(reader.overruns(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (parse_change(&bytes), parse_answer(&bytes));
        }
    }
}
