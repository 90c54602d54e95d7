//! What the watcher of containers is asked to look at, and what wakes it.

use crate::watch::kernel::{ContainedProgram, ContainerObserver};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The most programs that wait. Beyond, everything is looked at instead.
const WAITING: usize = 4_096;

/// A program that may be in a container.
#[derive(Debug)]
pub(super) enum Program {
    /// As the sensors in the kernel tell it.
    Contained(ContainedProgram),
    /// A process that has executed a program, wherever it is.
    Executed(u32),
}

/// What there is to be looked at.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Programs that were executed.
    pub(super) programs: VecDeque<Program>,
    /// All processes.
    pub(super) all: bool,
    /// Something may have happened to a container, nobody knows what.
    pub(super) any: bool,
    /// What a monitor before this one has stopped is to go on.
    pub(super) wake_stopped: bool,
}

/// Asks the watcher's thread. Never waits for it.
#[derive(Debug, Default)]
pub(super) struct Asked {
    work: Mutex<State>,
    ours: OnceLock<UnixStream>,
}

#[derive(Debug, Default)]
struct State {
    work: Work,
    /// The thread was woken and has not come yet.
    is_woken: bool,
}

impl Asked {
    /// The thread's end, which becomes readable when there is work.
    pub(super) fn open(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        // There is one thread.
        let _ = self.ours.set(ours);
        Ok(theirs)
    }

    /// All processes are to be looked at.
    pub(super) fn look_at_all(&self, wake_stopped: bool) {
        self.ask(|work| {
            work.all = true;
            work.wake_stopped |= wake_stopped;
        });
    }

    /// Something may have happened to a container; matters only where nobody tells what.
    pub(super) fn something_happened(&self) {
        self.ask(|work| work.any = true);
    }

    /// A process has executed a program.
    pub(super) fn executed(&self, pid: u32) {
        self.queue(Program::Executed(pid));
    }

    /// Takes what there is.
    pub(super) fn take(&self) -> Work {
        let mut state = self.lock();
        state.is_woken = false;
        std::mem::take(&mut state.work)
    }

    fn queue(&self, program: Program) {
        let mut too_many = None;
        self.ask(|work| {
            if work.programs.len() < WAITING {
                work.programs.push_back(program);
            } else {
                work.all = true;
                too_many = Some(program);
            }
        });
        // Without the lock: it goes on if it was stopped.
        drop(too_many);
    }

    fn ask(&self, what: impl FnOnce(&mut Work)) {
        let is_woken = {
            let mut state = self.lock();
            what(&mut state.work);
            std::mem::replace(&mut state.is_woken, true)
        };
        if !is_woken && let Some(mut stream) = self.ours.get() {
            // It can't be full: it holds one byte at most.
            let _ = stream.write(&[1]);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContainerObserver for Asked {
    fn program(&self, program: ContainedProgram) {
        self.queue(Program::Contained(program));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn one_byte_stands_for_all_that_waits_and_a_flood_is_a_look_at_everything() {
        let asked = Asked::default();
        let mut stream = asked.open().unwrap();
        for pid in 0..u32::try_from(WAITING).unwrap() {
            asked.executed(pid);
        }
        let mut bytes = [0; 16];
        assert_eq!(stream.read(&mut bytes).unwrap(), 1);
        let work = asked.take();
        assert_eq!((work.programs.len(), work.all), (WAITING, false));
        for pid in 0..=u32::try_from(WAITING).unwrap() {
            asked.executed(pid);
        }
        assert_eq!(stream.read(&mut bytes).unwrap(), 1);
        assert!(asked.take().all);
        assert!(asked.take().programs.is_empty());
    }
}
