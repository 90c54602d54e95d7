//! Gathers what [`crate::detect::reverse_shell`] judges: the descriptors of a job's processes and where sockets lead.

use super::descriptors::descriptors;
use super::flow::TCP;
use super::inodes::socket_inodes;
use super::programs::Programs;
use super::sockets::{SocketDiagnostics, SocketError, SocketRecord};
use crate::caller::table::Parentage;
use crate::caller::{ProcFs, ProcessKey};
use crate::cgroup::JobCgroup;
use crate::detect::reverse_shell::flow::Sample;
use crate::detect::reverse_shell::{Connection, Facts, Holder, Lead};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process;

/// The most processes of a job that are looked at at once. A job can make more; then the newest are looked at.
const PROCESS_LIMIT: usize = 2_048;

/// The port of name servers.
const DNS: u16 = 53;

/// The states of a TCP socket that can still be accepted: established, half open, and one whose peer has sent all it has
/// (`TCP_ESTABLISHED`, `TCP_SYN_RECV`, `TCP_CLOSE_WAIT`).
const BEFORE_ACCEPT: [u8; 3] = [1, 3, 8];

/// Looks at one job.
#[derive(Debug)]
pub struct ShellSensor {
    worker: ProcessKey,
    listener: Option<ProcessKey>,
    group: Option<JobCgroup>,
    programs: Programs,
    /// Sockets of the runner's and the monitor's own, by inode. Without them it is seen at once that an idle job has nobody
    /// to talk to.
    not_the_jobs: HashSet<u32>,
    /// Connections to other machines that were none of those when it was looked, and are open still.
    the_jobs: HashSet<u32>,
}

/// What a look at the sockets alone shows.
#[derive(Debug, Default)]
pub struct Connections {
    /// Every socket that is connected.
    sockets: Vec<SocketRecord>,
    /// Whether there is one to another machine that neither the runner nor the monitor holds.
    pub any_remote: bool,
    /// Whether somebody's call from another machine waits to be accepted.
    pub any_waiting: bool,
}

impl ShellSensor {
    /// For the job of `worker`, which `listener` has started.
    pub fn new(worker: ProcessKey, listener: Option<ProcessKey>, group: Option<JobCgroup>) -> Self {
        let programs = Programs::new(worker.pid);
        Self {
            worker,
            listener,
            group,
            programs,
            not_the_jobs: HashSet::new(),
            the_jobs: HashSet::new(),
        }
    }

    /// The connections of the Worker's network namespace. The kernel goes through the tables of the whole
    /// machine for it, which takes some hundred microseconds.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn connections(
        &mut self,
        diagnostics: &SocketDiagnostics,
    ) -> Result<Connections, SocketError> {
        let mut sockets = diagnostics.connected()?;
        let waits = |socket: &SocketRecord| {
            socket.inode == 0
                && socket.protocol == TCP
                && BEFORE_ACCEPT.contains(&socket.state)
                && !socket.remote.ip().is_loopback()
        };
        let any_waiting = sockets.iter().any(waits);
        sockets.retain(|socket| socket.inode != 0);
        let local: HashSet<(SocketAddr, SocketAddr)> =
            sockets.iter().map(|socket| (socket.local, socket.remote)).collect();
        let is_remote = |socket: &&SocketRecord| {
            !socket.remote.ip().is_loopback() && !local.contains(&(socket.remote, socket.local))
        };
        let remote: Vec<u32> =
            sockets.iter().filter(is_remote).map(|socket| socket.inode).collect();
        self.the_jobs.retain(|inode| remote.contains(inode));
        let is_known =
            |inode: &u32| self.not_the_jobs.contains(inode) || self.the_jobs.contains(inode);
        // One of the job's is enough to know that there is one; who holds the others is not asked as long as it is there.
        if self.the_jobs.is_empty() && !remote.iter().all(is_known) {
            let listener = self.listener.filter(|key| ProcFs.key(key.pid) == Some(*key));
            let holders = [Some(self.worker.pid), listener.map(|key| key.pid), Some(process::id())];
            self.not_the_jobs = holders.into_iter().flatten().flat_map(socket_inodes).collect();
            let others = remote.iter().filter(|inode| !self.not_the_jobs.contains(inode));
            self.the_jobs = others.copied().collect();
        }
        let any_remote = !self.the_jobs.is_empty();
        Ok(Connections { sockets, any_remote, any_waiting })
    }

    /// The facts of this moment. `followed` are processes that are the job's by descent, wherever they are.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn facts(
        &mut self,
        connections: &Connections,
        diagnostics: &SocketDiagnostics,
        followed: &[u32],
    ) -> Result<Facts, SocketError> {
        let mut facts = Facts { holders: self.holders(followed), ..Facts::default() };
        let by_ends: HashMap<(SocketAddr, SocketAddr), u64> = connections
            .sockets
            .iter()
            .map(|socket| ((socket.local, socket.remote), socket.inode.into()))
            .collect();
        for socket in &connections.sockets {
            let connection = match by_ends.get(&(socket.remote, socket.local)) {
                Some(other) => Connection::Local(*other),
                // To a socket that was closed, or in another network namespace.
                None if socket.remote.ip().is_loopback() => continue,
                None => Connection::Remote(socket.remote),
            };
            facts.connections.insert(socket.inode.into(), connection);
            if socket.protocol != TCP && socket.remote.port() == DNS {
                facts.look_ups.insert(socket.inode.into());
            }
        }
        for (one, other) in diagnostics.unix_pairs()? {
            facts.connections.insert(one.into(), Connection::Local(other.into()));
        }
        Ok(facts)
    }

    /// The processes of the job but the Worker.
    fn holders(&mut self, followed: &[u32]) -> Vec<Holder> {
        let of_group = self.group.as_ref().and_then(|group| group.processes().ok());
        let mut pids: Vec<u32> = of_group.unwrap_or_default();
        pids.extend(followed);
        pids.sort_unstable_by(|one, other| other.cmp(one));
        pids.dedup();
        pids.retain(|pid| *pid != self.worker.pid && *pid != process::id());
        pids.truncate(PROCESS_LIMIT);
        pids.into_iter()
            .filter_map(|pid| {
                let Parentage { key, parent } = ProcFs.parentage(pid)?;
                let descriptors = descriptors(pid);
                let (executable, program) = self.programs.of(pid)?;
                Some(Holder { key, parent, executable, program, descriptors })
            })
            .collect()
    }
}

/// What shell and connection of a lead have moved so far, when the shell waits for its standard input now.
///
/// # Errors
/// When the kernel does not tell.
pub fn sample(
    lead: &Lead,
    connections: &Connections,
    diagnostics: &SocketDiagnostics,
) -> Result<Option<Sample>, SocketError> {
    if !waits_for_input(lead.shell.pid) {
        return Ok(None);
    }
    let socket = connections.sockets.iter().find(|socket| u64::from(socket.inode) == lead.socket);
    let Some(socket) = socket else { return Ok(None) };
    let Some(traffic) = diagnostics.traffic(socket)? else { return Ok(None) };
    let Some((shell_read, shell_wrote)) = moved(lead.shell.pid) else { return Ok(None) };
    // What was moved between two looks must not be put down to the wrong one: it still waits.
    let sample = Sample { shell_read, shell_wrote, received: traffic.received, sent: traffic.sent };
    Ok(waits_for_input(lead.shell.pid).then_some(sample))
}

/// Whether the process is in a call that reads its standard input, or waits for it alone.
fn waits_for_input(pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/syscall")) else { return false };
    let mut words = text.split_whitespace();
    let Some(call) = words.next().and_then(|word| word.parse::<libc::c_long>().ok()) else {
        return false;
    };
    let arguments: Vec<u64> =
        words.filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).collect();
    let first = arguments.first().copied();
    let second = arguments.get(1).copied();
    match call {
        libc::SYS_read | libc::SYS_readv => first == Some(0),
        // The highest descriptor and one.
        libc::SYS_pselect6 => first == Some(1),
        // How many descriptors.
        libc::SYS_ppoll => second == Some(1),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => first == Some(1),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => second == Some(1),
        _ => false,
    }
}

/// Bytes that a process and its ended children have read and written by `read` and `write`.
fn moved(pid: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    Some((field("rchar:")?, field("wchar:")?))
}

/// Where programs are that can be called by their name alone.
const PROGRAM_DIRECTORIES: [&str; 6] =
    ["usr/bin", "bin", "usr/sbin", "sbin", "usr/local/bin", "usr/local/sbin"];

/// Whether the process can execute a program by this name or path.
pub fn is_program(pid: u32, name: &str) -> bool {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    if name.contains('/') {
        let from = if name.starts_with('/') { root } else { format!("/proc/{pid}/cwd").into() };
        return from.join(name.trim_start_matches('/')).is_file();
    }
    let is_there = |directory: &str| root.join(directory).join(name).is_file();
    !name.starts_with('.') && PROGRAM_DIRECTORIES.iter().any(|directory| is_there(directory))
}

/// Whether a process was forked and has not executed anything since: it has the program of its parent, at the same
/// addresses. A shell that is about to execute something is such a process, and holds what that will hold.
pub fn is_forked_copy(pid: u32) -> bool {
    let stat =
        |pid: i32| procfs::process::Process::new(pid).and_then(|process| process.stat()).ok();
    let Some(own) = stat(pid.cast_signed()) else { return false };
    stat(own.ppid).is_some_and(|parent| {
        parent.startcode == own.startcode
            && parent.startstack == own.startstack
            && parent.arg_start == own.arg_start
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::testing::eventually;
    use std::process::{Command, Stdio};

    #[test]
    fn a_shell_at_its_prompt_waits_and_one_that_runs_something_does_not() {
        let start = |script: &str| {
            Command::new("sh")
                .args(["-c", script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut waiting = start("read line");
        eventually("it waits", || waits_for_input(waiting.id()).then_some(()));
        assert!(moved(waiting.id()).is_some());
        let mut running = start("sleep 1000; true");
        let stat = || procfs::process::Process::new(running.id().cast_signed()).unwrap().stat();
        eventually("it sleeps", || (stat().unwrap().state == 'S').then_some(()));
        assert!(!waits_for_input(running.id()));
        for child in [&mut waiting, &mut running] {
            let _ = Command::new("pkill").args(["-P", &child.id().to_string()]).status();
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_fork_is_a_copy_until_it_executes() {
        let mut child = Command::new("bash")
            .args(["-c", "(read line) & (sleep 1000; :) & wait"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        assert!(!is_forked_copy(child.id()));
        let children = || {
            let path = format!("/proc/{0}/task/{0}/children", child.id());
            let text = fs::read_to_string(path).ok()?;
            let pids: Vec<u32> =
                text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
            (!pids.is_empty()).then_some(pids)
        };
        let subshell =
            eventually("a subshell", || children()?.into_iter().find(|pid| is_forked_copy(*pid)));
        crate::caller::kill(ProcFs.key(subshell).unwrap()).unwrap();
        for pid in children().unwrap_or_default() {
            let _ = Command::new("pkill").args(["-P", &pid.to_string()]).status();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
