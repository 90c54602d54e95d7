//! The doors that a .NET runtime opens for debuggers: a socket and two pipes in the directory of temporary files, for every
//! process of the same user. By the socket a runtime is asked for a dump of its memory, or to load a library; by the pipes a
//! debugger attaches. (docs: "diagnostic ports", `dotnet/runtime`, `docs/design/mono/diagnostics-tracing.md`.)
//!
//! Their names are removed: who has no name can't connect, and the runtime never makes them again. Nothing of the job has
//! run when a Worker is bound, so nobody is connected yet.

use crate::caller::ProcessKey;
use crate::caller::table::{environment_value, read_bounded};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use portcullis_common::event::{Feature, FeatureState};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// How much of `/proc/PID/net/unix` is read.
const SOCKET_LIST_LIMIT: usize = 4 << 20;

/// The most names of a directory that are looked at.
const NAME_LIMIT: usize = 100_000;

/// Removes the names, and says what is left.
pub(super) fn close_diagnostics(worker: ProcessKey) -> Feature {
    let (state, reason) = match close(worker) {
        Ok(0) => (FeatureState::Active, "the Worker's runtime has no diagnostic port".to_owned()),
        Ok(closed) => (
            FeatureState::Active,
            format!(
                "{closed} diagnostic ports of the Worker's runtime were closed to other processes"
            ),
        ),
        Err(problem) => (
            FeatureState::Missing,
            format!("a process of the job can ask the Worker's runtime for its memory: {problem}"),
        ),
    };
    Feature { name: "worker-diagnostics".to_owned(), state, reason }
}

/// How many were removed.
fn close(worker: ProcessKey) -> Result<usize, String> {
    let pid = worker.pid;
    let own_pid = pid_in_its_namespace(pid).ok_or("its status can't be read")?;
    let root = open(
        Path::new(&format!("/proc/{pid}/root")),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| format!("its root directory can't be opened: {errno}"))?;
    let temporary = environment_value(pid, b"TMPDIR").filter(|path| !path.is_empty());
    let temporary = temporary.unwrap_or_else(|| b"/tmp".to_vec());
    let mut directories = vec![PathBuf::from(OsString::from_vec(temporary))];
    let listed = read_bounded(&format!("/proc/{pid}/net/unix"), SOCKET_LIST_LIMIT);
    for path in listening_paths(&listed.unwrap_or_default(), own_pid) {
        if let Some(directory) = path.parent()
            && !directories.iter().any(|known| known == directory)
        {
            directories.push(directory.to_owned());
        }
    }
    let mut closed = 0;
    for directory in directories {
        closed += close_in(&root, &directory, own_pid)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    Ok(closed)
}

/// Removes the ports of the process in one directory of its file system, and looks whether they are gone.
fn close_in(root: &OwnedFd, directory: &Path, own_pid: u32) -> io::Result<usize> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        // Whatever links a directory of the runner's user holds, they don't lead out of its root.
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let directory = match openat2(root, directory, how) {
        Ok(directory) => directory,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(0),
        Err(errno) => return Err(errno.into()),
    };
    let names = Dir::from_fd(directory.try_clone()?)?;
    let ports: Vec<OsString> = names
        .into_iter()
        .take(NAME_LIMIT)
        .flatten()
        .map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned())
        .filter(|name| is_port_of(name, own_pid))
        .collect();
    let mut closed = 0;
    for name in ports {
        closed += usize::from(remove(&directory, &name)?);
    }
    Ok(closed)
}

/// Removes a socket or pipe; whatever else has such a name stays.
fn remove(directory: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let is_there = || match fstatat(directory.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => {
            let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
            Ok(kind == SFlag::S_IFSOCK || kind == SFlag::S_IFIFO)
        }
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(io::Error::from(errno)),
    };
    if !is_there()? {
        return Ok(false);
    }
    match unlinkat(directory.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    if is_there()? {
        return Err(io::Error::other(format!("{} is there again", name.display())));
    }
    Ok(true)
}

/// Whether the name is one that the runtime of the process gives: `dotnet-diagnostic-4711-1234-socket`,
/// `clr-debug-pipe-4711-1234-in`.
fn is_port_of(name: &OsStr, pid: u32) -> bool {
    let pid = pid.to_string();
    ["dotnet-diagnostic-", "clr-debug-pipe-"].iter().any(|prefix| {
        name.as_bytes()
            .strip_prefix(prefix.as_bytes())
            .and_then(|rest| rest.strip_prefix(pid.as_bytes()))
            .is_some_and(|rest| rest.starts_with(b"-"))
    })
}

/// Paths of the process' diagnostic sockets in `/proc/PID/net/unix`, whose last column is the path.
fn listening_paths(list: &[u8], pid: u32) -> Vec<PathBuf> {
    list.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let begin = line.iter().position(|byte| *byte == b'/')?;
            let path = Path::new(OsStr::from_bytes(&line[begin..]));
            is_port_of(path.file_name()?, pid).then(|| path.to_owned())
        })
        .collect()
}

/// The pid that the process itself sees.
fn pid_in_its_namespace(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_known_by_their_names_and_only_those_of_the_process() {
        for name in [
            "dotnet-diagnostic-4711-987654-socket",
            "clr-debug-pipe-4711-987654-in",
            "clr-debug-pipe-4711-987654-out",
        ] {
            assert!(is_port_of(OsStr::new(name), 4711), "{name}");
            assert!(!is_port_of(OsStr::new(name), 471), "{name}");
        }
        assert!(!is_port_of(OsStr::new("dotnet-diagnostic-4711x-1-socket"), 4711));
        assert!(!is_port_of(OsStr::new("4711"), 4711));
    }

    #[test]
    fn sockets_in_other_directories_are_found_by_the_kernels_list() {
        let list = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 77 /opt/tmp/dotnet-diagnostic-4711-1-socket\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 78 /tmp/dotnet-diagnostic-4712-1-socket\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 79\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 80 @/tmp/abstract\n";
        assert_eq!(
            listening_paths(list, 4711),
            [PathBuf::from("/opt/tmp/dotnet-diagnostic-4711-1-socket")]
        );
    }
}
