//! What programs are good for: shells, interpreters, relays; by their names, and by what their files are, so that a copy
//! under another name is known as well.

use super::bounded::BoundedCache;
use crate::detect::reverse_shell::Program;
use crate::sys::statx::{FileFacts, file_facts};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Programs that execute commands which they read. Numbers of versions are cut off before they are compared.
pub(super) const INTERPRETERS: &[&str] = &[
    "ash",
    "bash",
    "bun",
    "busybox",
    "csh",
    "dash",
    "deno",
    "elvish",
    "erl",
    "expect",
    "fish",
    "groovy",
    "guile",
    "irb",
    "ksh",
    "ksh93",
    "lua",
    "luajit",
    "mksh",
    "node",
    "nodejs",
    "nu",
    "osh",
    "perl",
    "php",
    "powershell",
    "pry",
    "pwsh",
    "pypy",
    "python",
    "rbash",
    "rc",
    "ruby",
    "sh",
    "static-sh",
    "tcsh",
    "tclsh",
    "toybox",
    "wish",
    "xonsh",
    "yash",
    "zsh",
];

/// Programs that are made to move data between a connection and other descriptors.
const RELAYS: &[&str] = &[
    "busybox",
    "cryptcat",
    "gs-netcat",
    "inetutils-telnet",
    "nc",
    "nc.openbsd",
    "nc.traditional",
    "ncat",
    "netcat",
    "openssl",
    "socat",
    "socat1",
    "socat2",
    "stunnel",
    "tcpserver",
    "telnet",
    "telnet.netkit",
    "toybox",
    "websocat",
];

/// Where a system has its programs.
const DIRECTORIES: &[&str] = &["bin", "usr/bin", "usr/local/bin", "sbin", "usr/sbin"];

/// Files whose content is compared are at most this long; the largest, node, has some 100 MB and is known by its name.
const COMPARED_BYTES: u64 = 16 << 20;

/// How many files are remembered.
const REMEMBERED: usize = 1_024;

/// Knows the programs of one job.
#[derive(Debug)]
pub struct Programs {
    /// `/proc/PID/root` of the Worker.
    root: PathBuf,
    /// The system's own shells, interpreters and relays; filled when the first program is asked for.
    known: Option<Vec<Known>>,
    /// By device, inode, length and owner.
    remembered: BoundedCache<(u64, u64, u64, u32), Program>,
}

/// A program of the system.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    size: u64,
    program: Program,
}

impl Programs {
    /// Programs as the Worker with this pid sees them.
    pub fn new(worker_pid: u32) -> Self {
        Self {
            root: PathBuf::from(format!("/proc/{worker_pid}/root")),
            known: None,
            remembered: BoundedCache::new(REMEMBERED),
        }
    }

    /// The executable of a process as the kernel shows it, and what it is good for; `None` when the process is gone.
    pub fn of(&mut self, pid: u32) -> Option<(String, Program)> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let process = open(Path::new(&format!("/proc/{pid}")), flags, Mode::empty()).ok()?;
        let path = nix::fcntl::readlinkat(&process, "exe").ok()?;
        let path = PathBuf::from(path);
        let facts = file_facts(process.as_fd(), c"exe").ok()?;
        let key = (facts.device, facts.inode, facts.size, facts.uid);
        let by_name = program_of_name(&path);
        let remembered = self.remembered.get(&key).copied();
        let by_file = remembered.unwrap_or_else(|| {
            let program = self.of_file(pid, &facts);
            self.remembered.insert(key, program);
            program
        });
        let program = Program {
            is_interpreter: by_name.is_interpreter || by_file.is_interpreter,
            is_brought_along: by_file.is_brought_along,
            is_relay: by_name.is_relay || by_file.is_relay,
        };
        Some((path.to_string_lossy().into_owned(), program))
    }

    /// What a file is, whatever its name: one of the system's shells or relays under another name, or brought along.
    fn of_file(&mut self, pid: u32, facts: &FileFacts) -> Program {
        // In memory, removed, or not installed by root.
        let is_brought_along = facts.uid != 0 || facts.links == 0;
        if !is_brought_along {
            return Program::default();
        }
        let root = &self.root;
        let known = self.known.get_or_insert_with(|| find_known(root));
        let same = known.iter().find(|known| {
            known.size == facts.size && have_same_content(&known.path, &format!("/proc/{pid}/exe"))
        });
        let program = same.map(|known| known.program).unwrap_or_default();
        Program { is_brought_along, ..program }
    }
}

/// The system's own.
fn find_known(root: &Path) -> Vec<Known> {
    let names = INTERPRETERS.iter().chain(RELAYS);
    let places = names.flat_map(|name| DIRECTORIES.iter().map(move |directory| (directory, name)));
    places
        .filter_map(|(directory, name)| {
            let path = root.join(directory).join(name);
            let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            (metadata.uid() == 0 && metadata.len() <= COMPARED_BYTES).then(|| Known {
                program: program_of_name(&path),
                size: metadata.len(),
                path,
            })
        })
        .collect()
}

/// What a program of this name is good for.
fn program_of_name(path: &Path) -> Program {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let name = name.strip_suffix(" (deleted)").unwrap_or(&name);
    // python3.11, php8.2, lua5.4, ruby3.1-dev
    let plain = name.trim_end_matches(|character: char| {
        character.is_ascii_digit() || matches!(character, '.' | '-' | '_')
    });
    let is_in = |list: &[&str]| list.contains(&name) || list.contains(&plain);
    Program {
        is_interpreter: is_in(INTERPRETERS),
        is_brought_along: false,
        is_relay: is_in(RELAYS),
    }
}

/// Whether two files are equal, at most [`COMPARED_BYTES`] of them. Both lie on local file systems of programs that run.
fn have_same_content(one: &Path, other: &str) -> bool {
    let open = |path: &Path| File::open(path).map(|file| CheckedReader(file.take(COMPARED_BYTES)));
    let (Ok(mut one), Ok(mut other)) = (open(one), open(Path::new(other))) else { return false };
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let (Ok(length), Ok(other_length)) = (one.fill(&mut left), other.fill(&mut right)) else {
            return false;
        };
        if length != other_length || left[..length] != right[..other_length] {
            return false;
        }
        if length == 0 {
            return true;
        }
    }
}

/// Reads as much as fits, so that two files are read in equal pieces.
struct CheckedReader(std::io::Take<File>);

impl CheckedReader {
    fn fill(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..])? {
                0 => break,
                length => filled += length,
            }
        }
        Ok(filled)
    }
}

/// What an executed program is, for [`crate::detect::fileless_execution`]: hard links, and whether it is a memfd; `None` when
/// the process is gone.
pub fn executable_links(pid: u32) -> Option<(u64, bool)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let process = open(Path::new(&format!("/proc/{pid}")), flags, Mode::empty()).ok()?;
    let path = nix::fcntl::readlinkat(&process, "exe").ok()?;
    let name = CString::new("exe").ok()?;
    let facts = file_facts(process.as_fd(), &name).ok()?;
    Some((facts.links.into(), path.to_string_lossy().starts_with("/memfd:")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::process::{Command, Stdio};

    #[test]
    fn names_with_versions_are_known() {
        for name in
            ["bash", "python3.11", "php8.2", "perl5.36.0", "node", "busybox", "lua5.4", "sh"]
        {
            assert!(program_of_name(Path::new(name)).is_interpreter, "{name}");
        }
        for name in ["nc", "nc.openbsd", "socat", "busybox", "openssl", "telnet.netkit"] {
            assert!(program_of_name(Path::new(name)).is_relay, "{name}");
        }
        for name in ["gcc-12", "ssh", "git", "cat", "curl", "shfmt", "nodemon-x"] {
            assert_eq!(program_of_name(Path::new(name)), Program::default(), "{name}");
        }
    }

    /// The program that a copy of `original` under the name of something harmless is taken for.
    fn copied(original: &str, uid: u32) -> Program {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("compile");
        fs::copy(original, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&copy, Some(uid), None).unwrap();
        let mut child = Command::new(&copy).stdin(Stdio::piped()).spawn().unwrap();
        let found = Programs::new(std::process::id()).of(child.id());
        drop(child.stdin.take());
        child.wait().unwrap();
        found.unwrap().1
    }

    #[test]
    fn a_copy_under_another_name_is_known() {
        let copy = copied("/bin/bash", 12_345);
        assert!(copy.is_interpreter && copy.is_brought_along, "{copy:?}");
        let other = copied("/bin/cat", 12_345);
        assert!(!other.is_interpreter && other.is_brought_along, "{other:?}");
        // What root has installed is what its name says.
        assert_eq!(copied("/bin/cat", 0), Program::default());
    }
}
