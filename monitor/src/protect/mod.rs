//! What is changed in a Worker once, when it is bound, so that it is harder to attack: other processes of its user can't
//! read its memory any more, and, where the policy disables sudo, nothing below it gains rights by a setuid program.
//!
//! The Worker runs already, and is not ours to start, so the calls are made inside of it, by ptrace ([`inject`]). That is all
//! that ptrace is used for: the job itself is never traced, for strace, gdb and `LeakSanitizer` in it must work. What was done
//! is looked up in procfs afterwards; only that counts.

pub mod closed_sockets;
mod code;
mod diagnostics;
mod inject;
mod registers;
#[cfg(test)]
mod tests;

use crate::caller::{ProcFs, ProcessEntry, ProcessKey, ProcessTable};
use diagnostics::close_diagnostics;
use inject::{InjectError, Injected, Injection};
use portcullis_common::event::{Feature, FeatureState};
use portcullis_common::hook::with_causes;
use registers::{NO_NEW_PRIVILEGES, NOT_DUMPABLE, Prctl};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread::{self, JoinHandle};

/// How often the Worker's threads are listed. A thread inherits from the one that made it, so after a round in which none
/// was without, all are with.
const ROUNDS: usize = 64;

/// The name of the feature that says whether sudo is disabled.
pub const DISABLE_SUDO: &str = "disable-sudo";

/// What is wanted of a Worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// Setuid programs stop working for the job.
    pub no_new_privileges: bool,
}

/// What is in force, as it was looked up afterwards.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Protection {
    /// What the posture says.
    pub features: Vec<Feature>,
    /// Whether every thread of the Worker, and so all that it starts, is without new privileges.
    pub has_no_new_privileges: bool,
    /// Why something that the policy demands could not be had: the job's failure mode applies.
    pub failure: Option<String>,
}

/// Why a Worker could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    /// Its memory can't be opened.
    #[error("the Worker's memory can't be opened; the monitor needs CAP_SYS_PTRACE")]
    Memory(#[source] io::Error),
    /// It has no code that could be used.
    #[error("no place for a call was found in the Worker")]
    Code(#[source] io::Error),
    /// Its threads can't be listed.
    #[error("the Worker's threads can't be listed")]
    Threads(#[source] io::Error),
    /// A call could not be made.
    #[error("a call could not be made inside of the Worker")]
    Inject(#[from] InjectError),
    /// Threads came faster than they could be changed.
    #[error("the Worker makes threads faster than they can be changed")]
    Unstable,
    /// Every call succeeded, and procfs shows that it is not in force.
    #[error("{0}")]
    NotInForce(String),
}

/// A Worker that is being protected on a thread of its own, while the rules are made. It costs a few milliseconds.
#[derive(Debug)]
pub struct Protecting {
    thread: io::Result<JoinHandle<Protection>>,
    wanted: Wanted,
}

impl Protecting {
    /// Starts.
    pub fn start(worker: ProcessKey, uid: u32, wanted: Wanted) -> Self {
        let thread = thread::Builder::new()
            .name("protect".to_owned())
            .spawn(move || protect(worker, uid, wanted));
        Self { thread, wanted }
    }

    /// Waits until it is done.
    pub fn finish(self) -> Protection {
        let wanted = self.wanted;
        let failed = |problem: String| {
            let memory = Err(ProtectError::NotInForce(problem.clone()));
            let privileges =
                wanted.no_new_privileges.then_some(Err(ProtectError::NotInForce(problem)));
            protection(u32::MAX, memory, privileges)
        };
        match self.thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| {
                failed("the thread that protects the Worker panicked".to_owned())
            }),
            Err(error) => {
                failed(format!("the thread that protects the Worker can't be started: {error}"))
            }
        }
    }
}

/// Changes the Worker as `wanted`. To be called on a thread that ends afterwards ([`crate::sys::ptrace`]).
fn protect(worker: ProcessKey, uid: u32, wanted: Wanted) -> Protection {
    let memory = forbid_memory_access(worker, uid);
    let privileges = wanted.no_new_privileges.then(|| forbid_new_privileges(worker));
    let mut protection = protection(uid, memory, privileges);
    protection.features.push(close_diagnostics(worker));
    protection.features.extend(protect_listener(worker));
    protection
}

/// Makes the Listener that has started the Worker non-dumpable as well: it holds the credentials of the runner itself. It stays
/// so for as long as it runs.
fn protect_listener(worker: ProcessKey) -> Option<Feature> {
    let parent = ProcFs.parentage(worker.pid).filter(|found| found.key == worker)?.parent;
    let listener = ProcFs.process(parent).filter(ProcessEntry::is_named_listener)?;
    let (state, reason) = match forbid_memory_access(listener.key, listener.uid) {
        Ok(()) if listener.uid == 0 => (
            FeatureState::Degraded,
            "the runner runs as root, which can read the Listener's memory".to_owned(),
        ),
        Ok(()) => (FeatureState::Active, "only root can read the Listener's memory".to_owned()),
        Err(error) => (
            FeatureState::Degraded,
            format!(
                "other processes of the runner's user can read the Listener's memory: {}",
                with_causes(&error)
            ),
        ),
    };
    Some(Feature { name: "listener-memory".to_owned(), state, reason })
}

/// The posture that follows from what was done.
fn protection(
    uid: u32,
    memory: Result<(), ProtectError>,
    privileges: Option<Result<(), ProtectError>>,
) -> Protection {
    let feature =
        |name: &str, state, reason: String| Feature { name: name.to_owned(), state, reason };
    let mut features = vec![match memory {
        Ok(()) if uid == 0 => feature(
            "worker-memory",
            FeatureState::Degraded,
            "the job runs as root, which can read the Worker's memory".to_owned(),
        ),
        Ok(()) => feature(
            "worker-memory",
            FeatureState::Active,
            "only root can read the Worker's memory".to_owned(),
        ),
        Err(error) => feature(
            "worker-memory",
            FeatureState::Missing,
            format!(
                "other processes of the job can read the Worker's memory: {}",
                with_causes(&error)
            ),
        ),
    }];
    let mut failure = None;
    let has_no_new_privileges = matches!(privileges, Some(Ok(())));
    match privileges {
        None => {}
        Some(Ok(())) if uid == 0 => features.push(feature(
            DISABLE_SUDO,
            FeatureState::Missing,
            "the job runs as root and needs no sudo; let the runner run as a user".to_owned(),
        )),
        Some(Ok(())) => features.push(feature(
            DISABLE_SUDO,
            FeatureState::Active,
            "no setuid program gives the job any rights (no_new_privs in every thread of the Worker)"
                .to_owned(),
        )),
        Some(Err(error)) => {
            let problem = with_causes(&error);
            features.push(feature(DISABLE_SUDO, FeatureState::Missing, problem.clone()));
            failure = Some(format!("sudo could not be disabled: {problem}"));
        }
    }
    Protection { features, has_no_new_privileges, failure }
}

/// Makes the Worker non-dumpable.
fn forbid_memory_access(worker: ProcessKey, uid: u32) -> Result<(), ProtectError> {
    // Files of a process that is not dumpable belong to root (proc(5)); when it runs as root that does not show, so it is
    // done again after a restart.
    if uid != 0 && is_not_dumpable(worker.pid) {
        return Ok(());
    }
    let target = Target::open(worker)?;
    // It is a property of the process: any thread will do, and the first one is there for as long as the process is.
    for thread in threads(worker.pid)? {
        if target.make(thread, &[NOT_DUMPABLE])? == Injected::Done {
            if uid != 0 && !is_not_dumpable(worker.pid) {
                let problem = "PR_SET_DUMPABLE succeeded, and the Worker's files in /proc still belong to its user";
                return Err(ProtectError::NotInForce(problem.to_owned()));
            }
            return Ok(());
        }
    }
    Err(ProtectError::NotInForce("the Worker has ended".to_owned()))
}

/// Sets `no_new_privs` in every thread of the Worker.
fn forbid_new_privileges(worker: ProcessKey) -> Result<(), ProtectError> {
    let mut target = None;
    for _ in 0..ROUNDS {
        let mut is_complete = true;
        for thread in threads(worker.pid)? {
            if has_no_new_privileges(worker.pid, thread) {
                continue;
            }
            is_complete = false;
            let target = match &target {
                Some(target) => target,
                None => target.insert(Target::open(worker)?),
            };
            target.make(thread, &[NO_NEW_PRIVILEGES])?;
        }
        if is_complete {
            return if ProcFs.is_alive(worker) {
                Ok(())
            } else {
                Err(ProtectError::NotInForce("the Worker has ended".to_owned()))
            };
        }
    }
    Err(ProtectError::Unstable)
}

/// A Worker in which calls can be made.
struct Target {
    memory: File,
    instruction: u64,
}

impl Target {
    fn open(worker: ProcessKey) -> Result<Self, ProtectError> {
        let memory =
            File::open(format!("/proc/{}/mem", worker.pid)).map_err(ProtectError::Memory)?;
        let instruction =
            code::system_call_instruction(worker.pid, &memory).map_err(ProtectError::Code)?;
        // Alive with the same start time now: the memory is the Worker's.
        if ProcFs.key(worker.pid) != Some(worker) {
            return Err(ProtectError::NotInForce("the Worker has ended".to_owned()));
        }
        Ok(Self { memory, instruction })
    }

    fn make(&self, thread: u32, calls: &[Prctl]) -> Result<Injected, ProtectError> {
        let injection = Injection { thread, instruction: self.instruction, memory: &self.memory };
        Ok(injection.make(calls)?)
    }
}

/// The ids of the threads, the first one first.
fn threads(pid: u32) -> Result<Vec<u32>, ProtectError> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(ProtectError::Threads)?;
    let mut threads: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    threads.sort_by_key(|thread| (*thread != pid, *thread));
    Ok(threads)
}

/// Whether nobody but root may look into the process.
fn is_not_dumpable(pid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}/environ")).is_ok_and(|file| file.uid() == 0)
}

/// Whether the thread is without new privileges; one that is gone is.
fn has_no_new_privileges(pid: u32, thread: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")) {
        Ok(status) => status.lines().any(|line| line == "NoNewPrivs:\t1"),
        Err(error) => {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
        }
    }
}
