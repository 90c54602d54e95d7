//! What the processes of jobs were at each moment, by what the kernel told: pure.
//!
//! A process that has ended is remembered for a while, because packets and findings about it come later. Everything is
//! bounded: a job makes as many processes as it likes.

use crate::caller::ProcessKey;
use crate::watch::bounded::BoundedCache;
use portcullis_common::event::{Ancestor, Process};
use portcullis_monitor_bpf::event::{Image, Port, Subject, ticks};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Processes that live at a time. A kernel has 32 768 by default.
const LIVE_LIMIT: usize = 65_536;

/// Processes that have ended and are remembered.
const DEAD_LIMIT: usize = 8_192;

/// Connected UDP sockets that are remembered.
const PORT_LIMIT: usize = 16_384;

/// Programs of one process that are remembered: a call is put down to the one that was running then.
const IMAGES_LIMIT: usize = 4;

/// How many ancestors are listed.
const ANCESTOR_LIMIT: usize = 64;

/// The variable that holds the step's id.
const STEP_VARIABLE: &[u8] = b"GITHUB_ACTION=";

/// How long a step's name may be.
const STEP_LIMIT: usize = 256;

/// Who made a call, and when, in nanoseconds since boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Caller {
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) time: u64,
}

/// The processes of all jobs.
#[derive(Debug)]
pub(super) struct Images {
    live: HashMap<u32, Known>,
    dead: BoundedCache<u32, Known>,
    workers: HashMap<u64, ProcessKey>,
    /// By job, local port and destination.
    flows: BoundedCache<(u64, u16, SocketAddr), Caller>,
    /// By job and local port.
    clients: BoundedCache<(u64, u16), Caller>,
    /// Processes that were not followed because there were too many.
    not_followed: u64,
}

/// One process.
#[derive(Clone, Debug)]
struct Known {
    key: ProcessKey,
    parent: ProcessKey,
    job: u64,
    uid: u32,
    step: Option<Arc<str>>,
    /// The latest last.
    images: Vec<(u64, Arc<Image>)>,
}

fn key_of(subject: &Subject) -> ProcessKey {
    ProcessKey { pid: subject.pid, start_time: subject.start_ticks() }
}

fn parent_of(subject: &Subject) -> ProcessKey {
    ProcessKey { pid: subject.parent, start_time: ticks(subject.parent_start) }
}

impl Images {
    pub(super) fn new() -> Self {
        Self {
            live: HashMap::new(),
            dead: BoundedCache::new(DEAD_LIMIT),
            workers: HashMap::new(),
            flows: BoundedCache::new(PORT_LIMIT),
            clients: BoundedCache::new(PORT_LIMIT),
            not_followed: 0,
        }
    }

    /// A job begins; `present` are its Worker and what else is known to be there, with their parents.
    pub(super) fn add_job(
        &mut self,
        job: u64,
        worker: ProcessKey,
        present: impl IntoIterator<Item = (ProcessKey, ProcessKey, Process)>,
    ) {
        self.workers.insert(job, worker);
        self.add_below(job, present);
    }

    /// More of what was there before the job was watched; nothing when the job is over by now.
    pub(super) fn add_below(
        &mut self,
        job: u64,
        present: impl IntoIterator<Item = (ProcessKey, ProcessKey, Process)>,
    ) {
        if !self.workers.contains_key(&job) {
            return;
        }
        for (key, parent, process) in present {
            // What the kernel told meanwhile is newer.
            if self.live.get(&key.pid).is_some_and(|known| known.key == key) {
                continue;
            }
            let image = Image {
                executable: process.exe.unwrap_or_default(),
                directory: process.cwd.unwrap_or_default(),
                arguments: process.argv,
                links: 1,
                effective_uid: process.uid.unwrap_or_default(),
            };
            let known = Known {
                key,
                parent,
                job,
                uid: process.uid.unwrap_or_default(),
                step: process.step.map(Arc::from),
                images: vec![(0, Arc::new(image))],
            };
            self.insert(known);
        }
    }

    /// A job is over.
    pub(super) fn remove_job(&mut self, job: u64) {
        self.workers.remove(&job);
        self.live.retain(|_, known| known.job != job);
    }

    pub(super) fn fork(&mut self, subject: &Subject) {
        let parent = parent_of(subject);
        let (step, image) = self.find_key(parent).map_or((None, None), |known| {
            (known.step.clone(), known.images.last().map(|(_, image)| Arc::clone(image)))
        });
        let images = image.map(|image| (subject.time, image)).into_iter().collect();
        let key = key_of(subject);
        self.insert(Known { key, parent, job: subject.job, uid: subject.uid, step, images });
    }

    /// A program is executed; the effective user of the process before that, of a new one that of the process that made it.
    pub(super) fn exec(&mut self, subject: &Subject, image: Image) -> Option<u32> {
        let key = key_of(subject);
        if self.live.get(&key.pid).is_none_or(|known| known.key != key) {
            // Its beginning was lost.
            self.fork(subject);
        }
        let known = self.live.get_mut(&key.pid)?;
        known.uid = subject.uid;
        let before = known.images.last().map(|(_, image)| image.effective_uid);
        if known.images.len() == IMAGES_LIMIT {
            known.images.remove(0);
        }
        known.images.push((subject.time, Arc::new(image)));
        before
    }

    /// The Worker gave a process this environment. Whether a step was named; a process can set any environment for what it
    /// starts, so that only the Worker's word is heard.
    pub(super) fn environment(&mut self, subject: &Subject, environment: &[u8]) -> bool {
        let step = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(STEP_VARIABLE))
            .filter(|step| !step.is_empty() && step.len() <= STEP_LIMIT);
        let known = self.live.get_mut(&subject.pid);
        let Some((step, known)) = step.zip(known.filter(|known| known.key == key_of(subject)))
        else {
            return false;
        };
        known.step = Some(Arc::from(String::from_utf8_lossy(step)));
        true
    }

    pub(super) fn exit(&mut self, subject: &Subject) {
        if self.live.get(&subject.pid).is_some_and(|known| known.key == key_of(subject))
            && let Some(known) = self.live.remove(&subject.pid)
        {
            self.dead.insert(subject.pid, known);
        }
    }

    pub(super) fn port(&mut self, subject: &Subject, port: &Port) {
        let caller = Caller { pid: subject.pid, uid: subject.uid, time: subject.time };
        let flow = (subject.job, port.source_port, port.destination);
        self.flows.insert(flow, caller);
        self.clients.insert((subject.job, port.source_port), caller);
    }

    /// Who connected a UDP socket of the job from this port to this destination last.
    pub(super) fn flow(&mut self, job: u64, port: u16, destination: SocketAddr) -> Option<Caller> {
        self.flows.get(&(job, port, destination)).copied()
    }

    /// Who connected a UDP socket of the job from this port last.
    pub(super) fn client(&mut self, job: u64, port: u16) -> Option<Caller> {
        self.clients.get(&(job, port)).copied()
    }

    /// The process that had a number at a time, as it was then.
    pub(super) fn find(&mut self, pid: u32, time: u64) -> Option<Process> {
        let began = |known: &&Known| known.key.start_time <= ticks(time);
        self.keep(pid, began);
        let known = self.live.get(&pid).filter(began);
        let known = known.or_else(|| self.dead.peek(&pid).filter(began))?;
        let (key, parent, job) = (known.key, known.parent, known.job);
        let process = process(known, time);
        Some(Process { ancestors: self.ancestors(key, parent, job), ..process })
    }

    /// The process by its key, as it is now or was at its end.
    pub(super) fn find_process(&mut self, key: ProcessKey) -> Option<Process> {
        let known = self.find_key(key)?;
        let (parent, job) = (known.parent, known.job);
        let process = process(known, u64::MAX);
        Some(Process { ancestors: self.ancestors(key, parent, job), ..process })
    }

    /// The processes of a job that live.
    pub(super) fn pids(&self, job: u64) -> Vec<u32> {
        let of_job = self.live.iter().filter(|(_, known)| known.job == job);
        of_job.map(|(pid, _)| *pid).collect()
    }

    /// How many processes were not followed because there were too many.
    pub(super) fn not_followed(&self) -> u64 {
        self.not_followed
    }

    fn find_key(&mut self, key: ProcessKey) -> Option<&Known> {
        let is_it = |known: &&Known| known.key == key;
        self.keep(key.pid, is_it);
        let live = self.live.get(&key.pid).filter(is_it);
        live.or_else(|| self.dead.peek(&key.pid).filter(is_it))
    }

    /// Keeps the dead one of this number young when no living one is meant.
    fn keep(&mut self, pid: u32, is_meant: impl Fn(&&Known) -> bool) {
        if self.live.get(&pid).is_none_or(|known| !is_meant(&known)) {
            self.dead.get(&pid);
        }
    }

    fn insert(&mut self, known: Known) {
        if self.live.len() >= LIVE_LIMIT && !self.live.contains_key(&known.key.pid) {
            self.not_followed += 1;
            return;
        }
        // The end of one that had the number before was lost.
        if let Some(earlier) = self.live.insert(known.key.pid, known) {
            self.dead.insert(earlier.key.pid, earlier);
        }
    }

    /// From the one that made a process of `job` up to the Worker.
    fn ancestors(&mut self, mut child: ProcessKey, parent: ProcessKey, job: u64) -> Vec<Ancestor> {
        let worker = self.workers.get(&job).copied();
        let mut found = Vec::new();
        let mut next = parent;
        while found.len() < ANCESTOR_LIMIT && Some(child) != worker {
            let Some(parent) = self.find_key(next) else { break };
            let exe = parent.images.last().map(|(_, image)| image.executable.clone());
            found.push(Ancestor { pid: parent.key.pid, exe: exe.unwrap_or_default() });
            (child, next) = (parent.key, parent.parent);
        }
        found
    }
}

/// A process as it was at a time, without its ancestors.
fn process(known: &Known, time: u64) -> Process {
    let image = known.images.iter().rev().find(|(since, _)| *since <= time);
    let image = image.or_else(|| known.images.first()).map(|(_, image)| image);
    let path = |path: &str| (!path.is_empty()).then(|| path.to_owned());
    Process {
        pid: Some(known.key.pid),
        start_time: Some(known.key.start_time),
        exe: image.and_then(|image| path(&image.executable)),
        cwd: image.and_then(|image| path(&image.directory)),
        argv: image.map(|image| image.arguments.clone()).unwrap_or_default(),
        uid: Some(known.uid),
        ancestors: Vec::new(),
        step: known.step.as_deref().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests;
