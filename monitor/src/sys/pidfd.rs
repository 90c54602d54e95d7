//! File descriptors that stand for one process, whatever becomes of its pid.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Opens a pidfd (close-on-exec) for the process that holds `pid` now.
///
/// The pid may have been recycled before this call: compare the start time afterwards.
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` for a pid out of range or a thread id.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sends `signal` to the process that `pidfd` stands for.
///
/// # Errors
/// `ESRCH` when the process has been reaped, `EPERM` when it may not be signalled.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and thus open; a null siginfo pointer means "as kill(2) would"; no flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Duplicates a descriptor of the process that `pidfd` stands for; the copy is ours and close-on-exec.
///
/// # Errors
/// `EBADF` when the process has no such descriptor, `EPERM` when it may not be looked into, `ESRCH` when it is gone.
pub fn duplicate(pidfd: BorrowedFd<'_>, descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three integers and touches no memory of ours; the pidfd is borrowed and thus open.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    let copy = RawFd::try_from(copy).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Whether the process has exited: a pidfd becomes readable then, reaped or not.
///
/// # Errors
/// When the descriptor can't be polled.
pub fn has_exited(pidfd: impl AsFd) -> io::Result<bool> {
    let mut descriptors = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut descriptors, PollTimeout::ZERO)? > 0)
}

/// Waits until the process has exited, for ever with [`Duration::MAX`]; `false` when `patience` ran out.
///
/// # Errors
/// When the descriptor can't be polled.
pub fn wait_exit(pidfd: impl AsFd, patience: Duration) -> io::Result<bool> {
    // None lies further ahead than the clock goes.
    let deadline = Instant::now().checked_add(patience);
    loop {
        let left = deadline
            .map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1)))
            .unwrap_or(PollTimeout::MAX);
        let mut descriptors = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn stands_for_one_process_until_its_end() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let pidfd = open(child.id()).unwrap();
        assert!(!has_exited(&pidfd).unwrap());
        assert!(!wait_exit(&pidfd, Duration::from_millis(2)).unwrap());
        send_signal(pidfd.as_fd(), Signal::SIGKILL).unwrap();
        assert!(wait_exit(&pidfd, Duration::from_mins(1)).unwrap());
        assert!(wait_exit(&pidfd, Duration::MAX).unwrap());
        child.wait().unwrap();
        assert!(has_exited(&pidfd).unwrap());
        let error = send_signal(pidfd.as_fd(), Signal::SIGKILL).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_pid_out_of_range_is_refused() {
        assert_eq!(open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
