//! Where the standard streams of a process lead, over whoever holds their other ends.

use super::{Certainty, Connection, Descriptor, Facts, Object};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// How many processes a way goes through at most: `sh | tee | sed | nc` is three.
const LONGEST_WAY: usize = 6;

/// The most ends that are looked at for one stream: a job can make as many holders of a pipe as it likes.
const MOST_ENDS: usize = 64;

/// A connection that a stream leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct End {
    pub(super) socket: u64,
    pub(super) peer: SocketAddr,
    pub(super) certainty: Certainty,
    /// Nothing but raw relays stands in between.
    pub(super) is_raw: bool,
    /// It is no standard stream, but a descriptor that the shell holds.
    pub(super) is_held: bool,
    /// Whoever is at the end of the way has the connection as a standard stream.
    pub(super) is_stream: bool,
    /// What programs that may be relays have on this side.
    pub(super) fed_by: Vec<Object>,
    /// Whoever is at the end of the way, unless that is the shell itself.
    pub(super) through: Option<usize>,
    /// In words: `descriptor 0 → nc (pid 7) → 203.0.113.66:4444`.
    pub(super) way: String,
    length: usize,
}

impl End {
    pub(super) const fn steps(&self) -> usize {
        self.length
    }

    /// Whether it is the stream itself that is the connection.
    pub(super) const fn is_direct(&self) -> bool {
        self.length == 0
    }
}

/// Which way data goes, seen from the shell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Direction {
    In,
    Out,
}

impl Direction {
    /// The standard streams of a filter that continue the way: what it reads to write to us, and the reverse.
    const fn far_streams(self) -> &'static [u32] {
        match self {
            Self::In => &[0],
            Self::Out => &[1, 2],
        }
    }

    /// The standard streams of a filter that are turned to us.
    const fn near_streams(self) -> &'static [u32] {
        match self {
            Self::In => &[1, 2],
            Self::Out => &[0],
        }
    }
}

/// Who holds what, to be asked many times.
#[derive(Debug)]
pub(super) struct Paths<'a> {
    facts: &'a Facts,
    holders: HashMap<Object, Vec<(usize, Descriptor)>>,
}

/// A way that is being followed.
#[derive(Clone, Debug)]
struct Walk {
    direction: Direction,
    certainty: Certainty,
    is_raw: bool,
    is_stream: bool,
    fed_by: Vec<Object>,
    through: Option<usize>,
    way: String,
    length: usize,
}

impl<'a> Paths<'a> {
    pub(super) fn new(facts: &'a Facts) -> Self {
        let mut holders: HashMap<Object, Vec<(usize, Descriptor)>> = HashMap::new();
        for (index, holder) in facts.holders.iter().enumerate() {
            for descriptor in &holder.descriptors {
                holders.entry(descriptor.object).or_default().push((index, *descriptor));
            }
        }
        Self { facts, holders }
    }

    /// Where the standard input of a process comes from.
    pub(super) fn inputs(&self, index: usize) -> Vec<End> {
        self.follow_stream(index, 0, Direction::In)
    }

    /// The processes at the end of what a process writes, over filters from standard input to standard output.
    pub(super) fn ends_of_output(&self, index: usize) -> Vec<usize> {
        let mut seen = HashSet::from([index]);
        let mut ends = Vec::new();
        let mut next = vec![index];
        for _ in 0..LONGEST_WAY {
            let mut readers = Vec::new();
            for writer in next {
                let streams = [1, 2].into_iter().filter_map(|number| self.stream(writer, number));
                let of_writer: Vec<usize> = streams
                    .filter(|stream| matches!(stream.object, Object::Pipe(..)))
                    .flat_map(|stream| self.holders.get(&stream.object).into_iter().flatten())
                    .filter(|(holder, held)| held.reads && seen.insert(*holder))
                    .map(|(holder, _)| *holder)
                    .collect();
                readers.extend(of_writer);
            }
            ends.extend(&readers);
            next = readers;
        }
        ends
    }

    /// Where its standard output goes. Connections that it holds on other descriptors may count as well: a shell can send
    /// the output of each command there. But so does one that asks a server something, so that has to be seen.
    pub(super) fn outputs(&self, index: usize) -> Vec<End> {
        let mut ends = self.follow_stream(index, 1, Direction::Out);
        // `exec 1>&2` makes a shell talk where only its errors went.
        ends.extend(self.follow_stream(index, 2, Direction::Out));
        for descriptor in &self.facts.holders[index].descriptors {
            if descriptor.number > 2
                && let Some(end) = self.held_connection(descriptor)
            {
                ends.push(end);
            }
        }
        ends
    }

    fn held_connection(&self, descriptor: &Descriptor) -> Option<End> {
        let Object::Socket(socket) = descriptor.object else { return None };
        let Some(Connection::Remote(peer)) = self.facts.connections.get(&socket) else {
            return None;
        };
        Some(End {
            socket,
            peer: *peer,
            certainty: Certainty::Flow,
            is_raw: false,
            is_held: true,
            is_stream: false,
            fed_by: Vec::new(),
            through: None,
            way: format!("descriptor {} → {peer}", descriptor.number),
            length: 1,
        })
    }

    fn follow_stream(&self, index: usize, number: u32, direction: Direction) -> Vec<End> {
        let mut ends = Vec::new();
        let Some(stream) = self.stream(index, number) else { return ends };
        let walk = Walk {
            direction,
            certainty: Certainty::Structure,
            is_raw: true,
            is_stream: true,
            fed_by: Vec::new(),
            through: None,
            way: format!("descriptor {number}"),
            length: 0,
        };
        let mut seen = HashSet::from([index]);
        self.follow(stream.object, &walk, &mut seen, &mut ends);
        ends
    }

    fn stream(&self, index: usize, number: u32) -> Option<&Descriptor> {
        self.facts.holders[index].descriptors.iter().find(|held| held.number == number)
    }

    /// Goes on from an object to those that hold its other end.
    fn follow(&self, object: Object, walk: &Walk, seen: &mut HashSet<usize>, ends: &mut Vec<End>) {
        if ends.len() >= MOST_ENDS {
            return;
        }
        let other_end = match object {
            Object::Socket(inode) => match self.facts.connections.get(&inode) {
                Some(Connection::Remote(_))
                    if walk.length > 0 && self.facts.look_ups.contains(&inode) =>
                {
                    return;
                }
                Some(Connection::Remote(peer)) => {
                    ends.push(End {
                        socket: inode,
                        peer: *peer,
                        certainty: walk.certainty,
                        is_raw: walk.is_raw,
                        is_held: false,
                        is_stream: walk.is_stream,
                        fed_by: walk.fed_by.clone(),
                        through: walk.through,
                        way: format!("{} → {peer}", walk.way),
                        length: walk.length,
                    });
                    return;
                }
                Some(Connection::Local(other)) => Object::Socket(*other),
                None => return,
            },
            Object::Pipe(..) => object,
            Object::Terminal(number) => Object::TerminalMaster(number),
            // A program that has the master side as its standard stream is no shell on a terminal.
            Object::TerminalMaster(_) => return,
        };
        if walk.length >= LONGEST_WAY {
            return;
        }
        for (holder, descriptor) in self.holders.get(&other_end).into_iter().flatten() {
            let fits = match (object, walk.direction) {
                (Object::Pipe(..), Direction::In) => descriptor.writes,
                (Object::Pipe(..), Direction::Out) => descriptor.reads,
                _ => true,
            };
            if fits && seen.insert(*holder) {
                self.through(*holder, descriptor, walk, seen, ends);
                // Another way may lead through the same process.
                seen.remove(holder);
            }
        }
    }

    /// Goes on through a process that holds the other end on `near`.
    fn through(
        &self,
        index: usize,
        near: &Descriptor,
        walk: &Walk,
        seen: &mut HashSet<usize>,
        ends: &mut Vec<End>,
    ) {
        let holder = &self.facts.holders[index];
        let is_terminal = matches!(near.object, Object::TerminalMaster(_));
        // A program that gives others a terminal moves data between that and its own standard streams.
        let is_filter = is_terminal || walk.direction.near_streams().contains(&near.number);
        let way = format!("{} → {} (pid {})", walk.way, holder.executable, holder.key.pid);
        for far in &holder.descriptors {
            if far.object == near.object {
                continue;
            }
            let is_far_stream = walk.direction.far_streams().contains(&far.number);
            let leads_away = self.is_remote(far.object);
            // `cat f`, `tee f`: a filter that has a FIFO beside its standard streams.
            let is_named = matches!(far.object, Object::Pipe(..))
                && match walk.direction {
                    Direction::In => far.reads,
                    Direction::Out => far.writes,
                };
            // What it moves: from stream to stream; a relay from anything to anything; others only to a connection that they
            // hold, and then it has to be seen.
            let is_moved =
                is_filter && (is_far_stream || is_named) || holder.program.is_relay || leads_away;
            if !is_moved {
                continue;
            }
            let is_sure = holder.program.is_relay
                || is_far_stream && (is_filter || leads_away)
                || near.number <= 2 && !is_terminal;
            let mut fed_by = walk.fed_by.clone();
            if !is_sure || holder.program.is_relay && !is_filter {
                fed_by.push(near.object);
            }
            let walk = Walk {
                direction: walk.direction,
                fed_by,
                through: Some(index),
                certainty: if is_sure { walk.certainty } else { Certainty::Flow },
                is_stream: is_far_stream,
                is_raw: walk.is_raw && (holder.program.is_relay || is_far_stream),
                way: format!("{way} descriptor {}", far.number),
                length: walk.length + 1,
            };
            self.follow(far.object, &walk, seen, ends);
        }
    }

    fn is_remote(&self, object: Object) -> bool {
        matches!(object, Object::Socket(inode)
            if matches!(self.facts.connections.get(&inode), Some(Connection::Remote(_))))
    }
}
