//! A call made inside of a running thread: it is stopped, given the registers of the call, and given back its own.
//!
//! What can go wrong, and what is done about it:
//!
//! * A system call was interrupted by the stop. The kernel restarts it from the registers that it finds when the thread goes
//!   on from a stop *on the way back to the program*. So the thread is brought to such a stop a second time before its
//!   registers are given back; given back at the end of our own call, it would see the kernel's internal `ERESTARTSYS`.
//! * A signal comes meanwhile. Its handler would run with the registers of our call. So all signals are blocked meanwhile;
//!   they wait, with all that they carry, and come afterwards: where the registers don't say that a call was interrupted,
//!   when the thread is in that call again, so that a signal which ends the call does.
//! * The thread computes with registers of which a system call keeps a part only (the vector extensions of aarch64): they are
//!   given back as well.
//! * The process is stopped by SIGSTOP, which can't be blocked: it is passed on, the call is made all the same, and the
//!   kernel stops the thread again when we let go.
//! * The thread is in the middle of a restartable sequence: it is let run and stopped again.
//! * It ends, or is killed, at any moment: then there is nothing left to be done.
//! * This monitor is killed meanwhile. As long as the registers are not the thread's own, the kernel kills the Worker with
//!   us: a job that fails is better than a Worker that goes on with foreign registers.

use super::registers::{INSTRUCTION, Prctl, is_outside_of_calls, next_call, result, with_call};
use crate::sys::ptrace::{Registers, Resume, Stop, Thread};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// How long a thread may take to stop. One that waits for a child between `vfork` and `exec` does not stop before that.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// How long our own call may take; it never waits for anything.
const CALL_PATIENCE: Duration = Duration::from_secs(10);

/// How often a thread that is in a restartable sequence is let run. Such a sequence is some instructions long.
const SEQUENCE_ROUNDS: usize = 1000;

/// Stops that are not the one we wait for: signals that were on their way.
const OTHER_STOPS: usize = 10_000;

/// Where `rseq_cs` lies in `struct rseq` (linux/rseq.h).
const RSEQ_CS_OFFSET: u64 = 8;

/// What became of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Injected {
    /// The calls were made and succeeded; the thread is as it was.
    Done,
    /// The thread ended before.
    Gone,
}

/// Why a call was not made.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// `ptrace` refused.
    #[error("ptrace refused to {step} thread {thread}")]
    Ptrace {
        /// What was tried.
        step: &'static str,
        /// The thread.
        thread: u32,
        /// Why.
        source: io::Error,
    },
    /// The thread did not stop.
    #[error("thread {thread} did not stop within {} s", STOP_PATIENCE.as_secs())]
    Running {
        /// The thread.
        thread: u32,
    },
    /// The call was made and failed.
    #[error("the call failed in thread {thread}")]
    Call {
        /// The thread.
        thread: u32,
        /// Why.
        source: io::Error,
    },
}

/// A thread, and what is needed to make calls in it.
#[derive(Debug)]
pub(super) struct Injection<'a> {
    /// The thread's id.
    pub(super) thread: u32,
    /// The address of an instruction of the process that makes a system call.
    pub(super) instruction: u64,
    /// `/proc/PID/mem`, open for reading.
    pub(super) memory: &'a File,
}

impl Injection<'_> {
    /// Makes the calls, one after the other. To be called on a thread that ends after an error: the kernel then lets go of
    /// what is still attached.
    pub(super) fn make(&self, calls: &[Prctl]) -> Result<Injected, InjectError> {
        let thread = Thread::seize(self.thread).map_err(|error| self.failed("attach to", error))?;
        let Some(thread) = thread else { return Ok(Injected::Gone) };
        match self.make_attached(thread, calls) {
            Err(InjectError::Ptrace { source, .. })
                if source.raw_os_error() == Some(libc::ESRCH) && self.is_gone() =>
            {
                Ok(Injected::Gone)
            }
            made => made,
        }
    }

    fn make_attached(&self, thread: Thread, calls: &[Prctl]) -> Result<Injected, InjectError> {
        let at = |step: &'static str| move |error: io::Error| self.failed(step, error);
        if !self.stop_outside_of_sequences(&thread)? {
            return Ok(Injected::Gone);
        }
        let own = thread.registers().map_err(at("read the registers of"))?;
        let vectors = thread.vectors().map_err(at("read the vectors of"))?;
        let mask = thread.signal_mask().map_err(at("read the signal mask of"))?;
        thread.kill_if_abandoned(true).map_err(at("set options of"))?;
        thread.set_signal_mask(u64::MAX).map_err(at("block the signals of"))?;
        let mut outcome = Ok(Injected::Done);
        for call in calls {
            let changed = with_call(&own, self.instruction, *call);
            thread.set_registers(&changed).map_err(at("set the registers of"))?;
            // Its beginning, and its end.
            for _ in 0..2 {
                if !self.go_to(&thread, Resume::ToSystemCall, Stop::SystemCall)? {
                    return Ok(Injected::Gone);
                }
            }
            let made = thread.registers().map_err(at("read the registers of"))?;
            let code = result(&made);
            if code != 0 {
                let code = i32::try_from(code.unsigned_abs()).unwrap_or(libc::EINVAL);
                let source = io::Error::from_raw_os_error(code);
                outcome = Err(InjectError::Call { thread: self.thread, source });
                break;
            }
        }
        thread.interrupt().map_err(at("stop"))?;
        if !self.go_to(&thread, Resume::Continue, Stop::Event)? {
            return Ok(Injected::Gone);
        }
        thread.set_vectors(&vectors).map_err(at("give back the vectors of"))?;
        thread.set_registers(&own).map_err(at("give back the registers of"))?;
        if self.makes_a_call_next(&own)
            && !self.go_to(&thread, Resume::ToSystemCall, Stop::SystemCall)?
        {
            return Ok(Injected::Gone);
        }
        thread.set_signal_mask(mask).map_err(at("give back the signal mask of"))?;
        thread.kill_if_abandoned(false).map_err(at("set options of"))?;
        thread.detach().map_err(at("let go of"))?;
        outcome
    }

    /// Stops the thread on its way back to its program; `false` when it has ended.
    fn stop_outside_of_sequences(&self, thread: &Thread) -> Result<bool, InjectError> {
        for _ in 0..SEQUENCE_ROUNDS {
            thread.interrupt().map_err(|error| self.failed("stop", error))?;
            if !self.wait_for(thread, Resume::Continue, Stop::Event, STOP_PATIENCE)? {
                return Ok(false);
            }
            let registers =
                thread.registers().map_err(|error| self.failed("read the registers of", error))?;
            if !is_outside_of_calls(&registers) || !self.is_in_sequence(thread) {
                return Ok(true);
            }
            thread.resume(Resume::Continue, 0).map_err(|error| self.failed("let run", error))?;
        }
        Err(InjectError::Running { thread: self.thread })
    }

    /// Whether the thread is in the middle of a restartable sequence: the kernel forgets that it must be restarted when it
    /// sees the registers of our call.
    fn is_in_sequence(&self, thread: &Thread) -> bool {
        let mut sequence = [0; 8];
        thread.restartable_sequences().is_some_and(|address| {
            self.memory.read_exact_at(&mut sequence, address + RSEQ_CS_OFFSET).is_ok()
                && u64::from_ne_bytes(sequence) != 0
        })
    }

    /// Whether the thread must be in its next system call before it gets signals again.
    fn makes_a_call_next(&self, own: &Registers) -> bool {
        let mut instruction = [0; INSTRUCTION.len()];
        next_call(own).is_some_and(|address| {
            self.memory.read_exact_at(&mut instruction, address).is_ok()
                && instruction == INSTRUCTION
        })
    }

    /// Lets the stopped thread go on to the next stop of this kind; `false` when it has ended.
    fn go_to(&self, thread: &Thread, how: Resume, wanted: Stop) -> Result<bool, InjectError> {
        thread.resume(how, 0).map_err(|error| self.failed("let run", error))?;
        self.wait_for(thread, how, wanted, CALL_PATIENCE)
    }

    /// Waits for a stop of this kind, passing on signals that were on their way.
    fn wait_for(
        &self,
        thread: &Thread,
        how: Resume,
        wanted: Stop,
        patience: Duration,
    ) -> Result<bool, InjectError> {
        for _ in 0..OTHER_STOPS {
            let stop = thread.wait(patience).map_err(|error| self.failed("wait for", error))?;
            let signal = match stop {
                stop if stop == wanted => return Ok(true),
                Stop::Ended => return Ok(false),
                Stop::NotYet if self.is_gone() => return Ok(false),
                Stop::NotYet => break,
                Stop::Signal(signal) => signal,
                Stop::Event | Stop::SystemCall => 0,
            };
            thread.resume(how, signal).map_err(|error| self.failed("let run", error))?;
        }
        Err(InjectError::Running { thread: self.thread })
    }

    /// Whether the thread has ended. The first thread of a process stays as a zombie until the others have ended.
    fn is_gone(&self) -> bool {
        let stat = procfs::process::Process::new(self.thread.cast_signed())
            .and_then(|thread| thread.stat());
        stat.is_ok_and(|stat| matches!(stat.state, 'Z' | 'X')) || !is_there(self.thread)
    }

    fn failed(&self, step: &'static str, source: io::Error) -> InjectError {
        InjectError::Ptrace { step, thread: self.thread, source }
    }
}

/// Whether there is a thread or process with this id.
fn is_there(thread: u32) -> bool {
    std::fs::exists(format!("/proc/{thread}")).unwrap_or(false)
}
