//! A thread of another process, attached by `ptrace(2)` without stopping it for longer than each use needs.
//!
//! The kernel ties an attachment to the *thread* that made it: all calls must come from that thread, and when it ends the
//! kernel lets go of every thread it has attached, running or stopped. So whoever uses this does it on a thread of its own.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of};
use std::time::{Duration, Instant};

/// `PTRACE_EVENT_STOP` (linux/ptrace.h): stopped by [`Thread::interrupt`], or with its whole process by a signal.
const EVENT_STOP: libc::c_int = 128;

/// `PTRACE_GETSIGMASK`, `PTRACE_SETSIGMASK` (linux/ptrace.h, Linux 3.11).
const GET_SIGNAL_MASK: libc::c_uint = 0x420a;
const SET_SIGNAL_MASK: libc::c_uint = 0x420b;

/// `PTRACE_GET_RSEQ_CONFIGURATION` (linux/ptrace.h, Linux 5.13).
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;

/// `NT_PRSTATUS` (elf.h): the general registers.
const GENERAL_REGISTERS: usize = 1;

/// The sets of registers of which a system call may forget a part: those of the scalable vector and matrix extensions,
/// `NT_ARM_SVE` and `NT_ARM_SSVE` (elf.h). Elsewhere a call leaves all vector registers as they are.
#[cfg(target_arch = "aarch64")]
const FORGOTTEN_BY_CALLS: [usize; 2] = [0x405, 0x40b];
#[cfg(not(target_arch = "aarch64"))]
const FORGOTTEN_BY_CALLS: [usize; 0] = [];

/// `SVE_PT_REGS_SVE` (asm/ptrace.h): the set holds more than a system call keeps.
const HOLDS_VECTORS: u16 = 1;

/// The pauses between two looks whether a thread has stopped: a thread that waits stops within some 50 µs.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// The registers of a thread as the kernel shows them.
pub type Registers = libc::user_regs_struct;

/// What of a thread's registers a system call would forget.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Vectors {
    /// By the set's number.
    sets: Vec<(usize, Vec<u8>)>,
}

/// Why a thread has stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// On its way back to its program, by [`Thread::interrupt`] or together with its process.
    Event,
    /// At the beginning or the end of a system call.
    SystemCall,
    /// Before it gets this signal.
    Signal(i32),
    /// It has ended.
    Ended,
    /// It has not stopped within the time.
    NotYet,
}

/// How a stopped thread goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resume {
    /// Until something happens.
    Continue,
    /// Until the beginning or end of its next system call.
    ToSystemCall,
}

/// An attached thread. Not to be sent: only the thread that attached it may use it.
#[derive(Debug)]
pub struct Thread {
    id: libc::pid_t,
    not_send: PhantomData<*const ()>,
}

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RseqConfiguration {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    padding: u32,
}

/// `struct user_sve_header`, with which the kernel's answer begins.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct VectorHeader {
    size: u32,
    most_size: u32,
    vector_length: u16,
    most_vector_length: u16,
    flags: u16,
    reserved: u16,
}

impl Thread {
    /// Attaches to the thread without stopping it; `None` when it is gone.
    ///
    /// # Errors
    /// `EPERM` when it may not be attached, or somebody else traces it.
    pub fn seize(id: u32) -> io::Result<Option<Self>> {
        let id = libc::pid_t::try_from(id).map_err(io::Error::other)?;
        let thread = Self { id, not_send: PhantomData };
        match thread.request(libc::PTRACE_SEIZE, 0, libc::PTRACE_O_TRACESYSGOOD as usize) {
            Ok(()) => Ok(Some(thread)),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks it to stop; [`Thread::wait`] tells when it has.
    ///
    /// # Errors
    /// `ESRCH` when it is gone.
    pub fn interrupt(&self) -> io::Result<()> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0)
    }

    /// Lets it go on, with `signal` delivered to it when that is not 0. It must be stopped.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn resume(&self, how: Resume, signal: i32) -> io::Result<()> {
        let how = match how {
            Resume::Continue => libc::PTRACE_CONT,
            Resume::ToSystemCall => libc::PTRACE_SYSCALL,
        };
        self.request(how, 0, usize::try_from(signal).unwrap_or_default())
    }

    /// Lets go of it; it must be stopped, and goes on.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn detach(self) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH, 0, 0)
    }

    /// Whether the thread, with its whole process, is killed when the tracing thread ends before it lets go. It must be
    /// stopped.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn kill_if_abandoned(&self, kill: bool) -> io::Result<()> {
        let mut options = libc::PTRACE_O_TRACESYSGOOD;
        if kill {
            options |= libc::PTRACE_O_EXITKILL;
        }
        self.request(libc::PTRACE_SETOPTIONS, 0, options.unsigned_abs() as usize)
    }

    /// Waits until it stops.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn wait(&self, patience: Duration) -> io::Result<Stop> {
        let deadline = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut status = 0;
            let flags = libc::__WALL | libc::WNOHANG;
            // SAFETY: waitpid writes one integer to `status`, which lives for the call.
            let waited = unsafe { libc::waitpid(self.id, &raw mut status, flags) };
            match waited {
                0 if Instant::now() >= deadline => return Ok(Stop::NotYet),
                0 => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                -1 => {
                    let error = io::Error::last_os_error();
                    match error.raw_os_error() {
                        Some(libc::EINTR) => {}
                        Some(libc::ECHILD) => return Ok(Stop::Ended),
                        _ => return Err(error),
                    }
                }
                _ => return Ok(decode(status)),
            }
        }
    }

    /// Its registers. It must be stopped.
    ///
    /// # Errors
    /// `Unsupported` when the thread runs 32-bit code.
    pub fn registers(&self) -> io::Result<Registers> {
        let mut registers = MaybeUninit::<Registers>::uninit();
        let mut vector = libc::iovec {
            iov_base: registers.as_mut_ptr().cast(),
            iov_len: size_of::<Registers>(),
        };
        self.request(libc::PTRACE_GETREGSET, GENERAL_REGISTERS, &raw mut vector as usize)?;
        if vector.iov_len != size_of::<Registers>() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the thread has the registers of another architecture",
            ));
        }
        // SAFETY: the kernel has just written `iov_len` bytes, which is all of the structure; it is made of integers.
        Ok(unsafe { registers.assume_init() })
    }

    /// Sets its registers. It must be stopped.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn set_registers(&self, registers: &Registers) -> io::Result<()> {
        let mut copy = *registers;
        let mut vector = libc::iovec {
            iov_base: (&raw mut copy).cast::<c_void>(),
            iov_len: size_of::<Registers>(),
        };
        self.request(libc::PTRACE_SETREGSET, GENERAL_REGISTERS, &raw mut vector as usize)
    }

    /// What of its registers a system call would forget. It must be stopped.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn vectors(&self) -> io::Result<Vectors> {
        let mut vectors = Vectors::default();
        for set in FORGOTTEN_BY_CALLS {
            let mut header = VectorHeader::default();
            let mut vector = libc::iovec {
                iov_base: (&raw mut header).cast::<c_void>(),
                iov_len: size_of::<VectorHeader>(),
            };
            match self.request(libc::PTRACE_GETREGSET, set, &raw mut vector as usize) {
                Ok(()) => {}
                // The processor or the kernel has no such registers.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
                Err(error) => return Err(error),
            }
            if header.flags & HOLDS_VECTORS == 0 {
                continue;
            }
            let mut bytes = vec![0_u8; header.size as usize];
            let mut vector =
                libc::iovec { iov_base: bytes.as_mut_ptr().cast::<c_void>(), iov_len: bytes.len() };
            self.request(libc::PTRACE_GETREGSET, set, &raw mut vector as usize)?;
            bytes.truncate(vector.iov_len);
            vectors.sets.push((set, bytes));
        }
        Ok(vectors)
    }

    /// Gives back what a system call may have forgotten. It must be stopped.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn set_vectors(&self, vectors: &Vectors) -> io::Result<()> {
        for (set, bytes) in &vectors.sets {
            let mut copy = bytes.clone();
            let mut vector =
                libc::iovec { iov_base: copy.as_mut_ptr().cast::<c_void>(), iov_len: copy.len() };
            self.request(libc::PTRACE_SETREGSET, *set, &raw mut vector as usize)?;
        }
        Ok(())
    }

    /// The signals that it blocks. It must be stopped.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn signal_mask(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        self.request(GET_SIGNAL_MASK, size_of::<u64>(), &raw mut mask as usize)?;
        Ok(mask)
    }

    /// Sets the signals that it blocks; SIGKILL and SIGSTOP stay unblocked. It must be stopped.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or not stopped.
    pub fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        let mut mask = mask;
        self.request(SET_SIGNAL_MASK, size_of::<u64>(), &raw mut mask as usize)
    }

    /// Where its `struct rseq` lies in its memory; `None` when it has none, or before Linux 5.13. It must be stopped.
    pub fn restartable_sequences(&self) -> Option<u64> {
        let mut configuration = RseqConfiguration::default();
        let size = size_of::<RseqConfiguration>();
        self.request(GET_RSEQ_CONFIGURATION, size, &raw mut configuration as usize).ok()?;
        (configuration.pointer != 0).then_some(configuration.pointer)
    }

    /// One request.
    ///
    /// Every `data` that is an address is that of a local of the caller which outlives the call and has the size that the
    /// request names; all other values are plain integers.
    fn request(&self, request: libc::c_uint, address: usize, data: usize) -> io::Result<()> {
        // SAFETY: see above; the kernel writes to our memory only through `data`.
        let result = unsafe { libc::ptrace(request, self.id, address, data) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Reads a status of `waitpid(2)`. By hand, for real-time signals have no names.
fn decode(status: libc::c_int) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Ended;
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        EVENT_STOP => Stop::Event,
        0 if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        0 => Stop::Signal(signal),
        // No other event was asked for; whatever it is, it is no signal to be delivered.
        _ => Stop::Event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_apart() {
        let stopped = |signal: i32, event: i32| (event << 16) | (signal << 8) | 0x7f;
        assert_eq!(decode(stopped(libc::SIGTRAP, 128)), Stop::Event);
        assert_eq!(decode(stopped(libc::SIGSTOP, 128)), Stop::Event);
        assert_eq!(decode(stopped(libc::SIGTRAP | 0x80, 0)), Stop::SystemCall);
        // A real-time signal, which the .NET runtime uses.
        assert_eq!(decode(stopped(34, 0)), Stop::Signal(34));
        assert_eq!(decode(0x0100), Stop::Ended);
        assert_eq!(decode(9), Stop::Ended);
    }
}
