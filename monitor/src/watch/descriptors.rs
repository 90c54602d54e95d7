//! What a process holds: sockets, pipes and terminals among its descriptors, from `/proc/PID/fd`.

use crate::detect::reverse_shell::{Descriptor, Object};
use crate::sys::statx::file_facts;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The most descriptors of one process that are looked at; most have some tens.
const DESCRIPTOR_LIMIT: usize = 4_096;

/// `UNIX98_PTY_SLAVE_MAJOR` (linux/major.h): the minor number is the terminal's.
const TERMINAL_MAJOR: u32 = 136;

/// `/dev/ptmx`: `TTYAUX_MAJOR` and its minor number.
const TERMINAL_MULTIPLEXER: (u32, u32) = (5, 2);

/// Permission bits of the links in `/proc/PID/fd`: how the descriptor was opened.
const OPENED_FOR_READING: u32 = 0o400;
const OPENED_FOR_WRITING: u32 = 0o200;

/// The sockets, pipes and terminals that a process holds; empty when it is gone.
pub fn descriptors(pid: u32) -> Vec<Descriptor> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(mut directory) = Dir::open(Path::new(&format!("/proc/{pid}/fd")), flags, Mode::empty())
    else {
        return Vec::new();
    };
    let Ok(handle) = directory.as_fd().try_clone_to_owned() else { return Vec::new() };
    directory
        .iter()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
        .take(DESCRIPTOR_LIMIT)
        .filter_map(|number| descriptor(pid, &handle, number))
        .collect()
}

/// One of the standard streams or any other descriptor; `None` when it is nothing that leads to another process.
fn descriptor(pid: u32, directory: &OwnedFd, number: u32) -> Option<Descriptor> {
    let name = std::ffi::CString::new(number.to_string()).ok()?;
    let target = readlinkat(directory, name.as_c_str()).ok()?;
    let object = match target.as_bytes() {
        [b's', b'o', b'c', b'k', b'e', b't', b':', ..] => Object::Socket(inode(target.as_bytes())?),
        [b'p', b'i', b'p', b'e', b':', ..] => {
            // All unnamed pipes lie on one file system of the kernel's own.
            Object::Pipe(0, inode(target.as_bytes())?)
        }
        [b'/', ..] => named(pid, directory, number, &name)?,
        _ => return None,
    };
    let link = fstatat(directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some(Descriptor {
        number,
        object,
        reads: link.st_mode & OPENED_FOR_READING != 0,
        writes: link.st_mode & OPENED_FOR_WRITING != 0,
    })
}

/// `[17]` of `socket:[17]`.
fn inode(target: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(target).ok()?;
    text.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// A FIFO or a terminal.
fn named(pid: u32, directory: &OwnedFd, number: u32, name: &std::ffi::CStr) -> Option<Object> {
    let facts = file_facts(directory.as_fd(), name).ok()?;
    match facts.mode & libc::S_IFMT {
        libc::S_IFIFO => Some(Object::Pipe(facts.device, facts.inode)),
        libc::S_IFCHR if facts.special.0 == TERMINAL_MAJOR => {
            Some(Object::Terminal(facts.special.1))
        }
        libc::S_IFCHR if facts.special == TERMINAL_MULTIPLEXER => {
            let information = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
            let index = information.lines().find_map(|line| line.strip_prefix("tty-index:"))?;
            Some(Object::TerminalMaster(index.trim().parse().ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    fn find(descriptor: &impl AsRawFd) -> Option<Descriptor> {
        let number = u32::try_from(descriptor.as_raw_fd()).unwrap();
        descriptors(std::process::id()).into_iter().find(|found| found.number == number)
    }

    #[test]
    fn pipes_fifos_sockets_and_terminals_are_told_with_their_modes() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (reads, writes) = (find(&reader).unwrap(), find(&writer).unwrap());
        assert_eq!(reads.object, writes.object);
        assert!(reads.reads && !reads.writes && writes.writes && !writes.reads);

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let fifo = fs::File::options().read(true).write(true).open(&path).unwrap();
        let found = find(&fifo).unwrap();
        assert!(matches!(found.object, Object::Pipe(device, _) if device != 0), "{found:?}");
        assert!(found.reads && found.writes);

        let (socket, _other) = UnixStream::pair().unwrap();
        assert!(matches!(find(&socket).unwrap().object, Object::Socket(_)));

        let terminal = openpty(None, None).unwrap();
        let master = find(&terminal.master).unwrap().object;
        let slave = find(&terminal.slave).unwrap().object;
        match (master, slave) {
            (Object::TerminalMaster(master), Object::Terminal(slave)) => assert_eq!(master, slave),
            other => panic!("{other:?}"),
        }

        let file = fs::File::open("/proc/self/status").unwrap();
        assert_eq!(find(&file), None);
        assert_eq!(find(&fs::File::open("/dev/null").unwrap()), None);
    }
}
