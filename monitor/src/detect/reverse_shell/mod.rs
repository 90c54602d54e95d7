//! Reverse-Shell: a shell or interpreter whose standard input *and* output lead to the same remote peer, directly or through
//! pipes, FIFOs, ptys, socket pairs, loopback connections and the processes that hold their other ends.
//!
//! The facts are descriptors: who holds which end of what, and where sockets lead. Which way a connection was opened is no
//! matter, so that a shell on a listening port is found as well.
//!
//! A process that holds a pipe of a shell and a connection may be a relay, or a package manager that runs an install script
//! while it keeps a connection to its registry. They are told apart like this:
//!
//! * It moves data between its own standard streams (`nc`, `ssh`, `cat`, `openssl s_client`, whatever their names are), or it
//!   is a program made to relay (`socat`, `nc`): a relay, at once ([`Certainty::Structure`]).
//! * It holds them on other descriptors (`child_process.spawn`, `subprocess.Popen`, `proc_open`): it is one when data flows,
//!   that is when it hands on to the shell the very bytes that the connection received ([`Lead::fed_by`]; the kernel's sensors
//!   see that), or when the shell waits for input, then the connection receives, the shell reads, writes, and the connection
//!   sends, and the shell waits again ([`flow`], [`Certainty::Flow`]).
//!
//! Standard streams on *two* connections to one peer are a pipeline like `curl … | python … | curl …` as well; they count only
//! when nothing but raw relays stand in between.

pub mod command_line;
pub mod flow;
mod paths;
#[cfg(test)]
mod tests;

use super::{Finding, name};
use crate::caller::ProcessKey;
use paths::{End, Paths};
use portcullis_common::event::{DetectionType, Process};
use portcullis_common::policy::LockdownDetection;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// How far up it is looked for the relay that has started a shell.
const LONGEST_DESCENT: usize = 16;

/// What a program is good for, as far as that is known of its file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Program {
    /// It executes commands that it reads: a shell, an interpreter.
    pub is_interpreter: bool,
    /// The job brought it along, so that it can be anything. Counts as an interpreter where the structure alone is sure: jobs
    /// run their own tools and servers over pipes all day.
    pub is_brought_along: bool,
    /// It is made to move data between descriptors.
    pub is_relay: bool,
}

/// What a descriptor refers to. Files, devices and kernel objects that carry nothing to anybody are left out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Object {
    /// A socket, by its inode.
    Socket(u64),
    /// A pipe or FIFO, by device and inode.
    Pipe(u64, u64),
    /// The side of a pseudo-terminal that programs see, by its number.
    Terminal(u32),
    /// The other side of it.
    TerminalMaster(u32),
}

/// An open descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// What it refers to.
    pub object: Object,
    /// It was opened for reading.
    pub reads: bool,
    /// It was opened for writing.
    pub writes: bool,
}

/// A process with what it holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Which process.
    pub key: ProcessKey,
    /// Its parent.
    pub parent: u32,
    /// Its executable, for the evidence.
    pub executable: String,
    /// What its program is good for.
    pub program: Program,
    /// What it holds.
    pub descriptors: Vec<Descriptor>,
}

/// Where a socket leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Connection {
    /// To another machine.
    Remote(SocketAddr),
    /// To another socket of this machine, by its inode: the other end of a socket pair, or of a loopback connection.
    Local(u64),
}

/// The processes of a job and the connections of their machine, at one moment. The Worker is not among them: it holds the
/// streams of every step, and connections to GitHub.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The processes.
    pub holders: Vec<Holder>,
    /// The sockets that lead anywhere.
    pub connections: HashMap<u64, Connection>,
    /// Those of them that ask a name server: every program has one for a moment, and it is no end of a way through others.
    pub look_ups: HashSet<u64>,
}

/// How sure it is that the streams lead where they seem to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Certainty {
    /// By who holds what.
    Structure,
    /// It has to be seen that data flows.
    Flow,
    /// The same, more than once: the shell holds the connection itself, and may use it for something else.
    RepeatedFlow,
}

/// A shell whose standard streams lead to a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lead {
    /// The shell.
    pub shell: ProcessKey,
    /// Its connection, by the socket's inode.
    pub socket: u64,
    /// Where it leads.
    pub peer: SocketAddr,
    /// How sure that is.
    pub certainty: Certainty,
    /// What the one program that may be a relay would hand data on to: when it was seen to do that with the very bytes that the
    /// connection received, the lead is sure whatever its certainty.
    pub fed_by: Option<Object>,
    /// The way of its input and output, in words.
    pub way: String,
}

/// The shells whose standard streams lead to a remote peer; for each the surest lead.
pub fn leads(facts: &Facts) -> Vec<Lead> {
    let paths = Paths::new(facts);
    (0..facts.holders.len())
        .filter_map(|index| {
            let program = facts.holders[index].program;
            let may_be_shell = program.is_interpreter || program.is_brought_along;
            may_be_shell
                .then(|| lead(facts, &paths, index))
                .flatten()
                .filter(|lead| program.is_interpreter || lead.certainty == Certainty::Structure)
        })
        .collect()
}

/// Whether the streams of a process are half of a reverse shell whose other half may be on its way: its input leads to a
/// remote peer for sure, and at the end of its output is a relay without a connection, or a program that `is_starting`.
pub fn is_half(facts: &Facts, shell: ProcessKey, is_starting: impl Fn(ProcessKey) -> bool) -> bool {
    let Some(index) = facts.holders.iter().position(|holder| holder.key == shell) else {
        return false;
    };
    let paths = Paths::new(facts);
    let is_fed = paths.inputs(index).iter().any(|end| end.certainty == Certainty::Structure);
    is_fed
        && paths.ends_of_output(index).into_iter().any(|end| {
            let holder = &facts.holders[end];
            let has_connection = holder.descriptors.iter().any(|held| {
                matches!(held.object, Object::Socket(inode)
                    if matches!(facts.connections.get(&inode), Some(Connection::Remote(_))))
            });
            !has_connection && (holder.program.is_relay || is_starting(holder.key))
        })
}

/// The lead of a shell that has itself read what came by `socket` last, and now has its standard output there:
/// `while read command <&5; do eval "$command" >&5; done`. Its input is the connection only while it reads.
///
/// A client that asks a server something sends its requests there as well, but not its errors, and what it reads are answers:
/// without the errors it counts when what was read `is_command` ([`command_line`]).
pub fn reader_of_its_own(
    facts: &Facts,
    shell: ProcessKey,
    socket: u64,
    is_command: impl FnOnce() -> bool,
) -> Option<Lead> {
    let holder = facts.holders.iter().find(|holder| holder.key == shell)?;
    let Some(Connection::Remote(peer)) = facts.connections.get(&socket) else { return None };
    let leads_there = |number| {
        let mut streams = holder.descriptors.iter().filter(|held| held.number == number);
        streams.any(|held| held.object == Object::Socket(socket))
    };
    let is_sure =
        holder.program.is_interpreter && leads_there(1) && (leads_there(2) || is_command());
    is_sure.then(|| Lead {
        shell,
        socket,
        peer: *peer,
        certainty: Certainty::Structure,
        fed_by: None,
        way: format!("in: commands that it reads from {peer}; out: descriptor 1 → {peer}"),
    })
}

/// The finding that follows from a lead which is sure. `shell` is the process as far as it could be found out.
pub fn reverse_shell(lead: &Lead, shell: &Process) -> Finding {
    let evidence = format!(
        "the standard input and output of {} lead to {}: {}",
        name(shell),
        lead.peer,
        lead.way
    );
    let detection = DetectionType::Lockdown(LockdownDetection::ReverseShell);
    Finding::new(detection, &evidence, Some(shell.clone()))
}

fn lead(facts: &Facts, paths: &Paths<'_>, index: usize) -> Option<Lead> {
    let shell = &facts.holders[index];
    let inputs = paths.inputs(index);
    if inputs.is_empty() {
        return None;
    }
    let outputs = paths.outputs(index);
    let pairs = inputs.iter().flat_map(|input| outputs.iter().map(move |output| (input, output)));
    let (input, output) = pairs
        .filter(|(input, output)| belong_together(input, output))
        .min_by_key(|(input, output)| (input.certainty.max(output.certainty), input.steps()))?;
    // What the shell holds itself it has handed down to whatever it started: that others hold it, too, shows nothing.
    let is_handed_down = shell
        .descriptors
        .iter()
        .any(|held| held.number > 2 && held.object == Object::Socket(input.socket));
    let by_structure = input.certainty.max(output.certainty);
    // But it has itself from a relay that has started it (`ncat -e`).
    let is_from_relay = by_structure == Certainty::Structure
        && [input, output].iter().all(|end| {
            end.through.is_some_and(|relay| is_ancestor(facts, facts.holders[relay].key.pid, shell))
        });
    let is_own = is_handed_down && !is_from_relay;
    let certainty = if is_own && !(input.is_stream && output.is_stream) {
        Certainty::RepeatedFlow
    } else {
        by_structure
    };
    Some(Lead {
        shell: shell.key,
        socket: input.socket,
        peer: input.peer,
        certainty,
        fed_by: match input.fed_by.as_slice() {
            [object] if !output.is_held => Some(*object),
            _ => None,
        },
        way: format!("in: {}; out: {}", input.way, output.way),
    })
}

/// Whether the process `pid` has started `process`, over others of the job.
fn is_ancestor(facts: &Facts, pid: u32, process: &Holder) -> bool {
    let mut parent = process.parent;
    for _ in 0..LONGEST_DESCENT {
        if parent == pid {
            return true;
        }
        let Some(next) = facts.holders.iter().find(|holder| holder.key.pid == parent) else {
            return false;
        };
        parent = next.parent;
    }
    false
}

/// One connection both ways; or two to the same peer with nothing but raw relays in between.
fn belong_together(input: &End, output: &End) -> bool {
    // `read line <&3` of a shell puts its connection onto its standard input for a moment.
    if input.is_direct() && output.is_held {
        return false;
    }
    input.socket == output.socket
        || input.peer.ip() == output.peer.ip() && input.is_raw && output.is_raw
}
