//! Judges processes in containers: what of the host they have, whose their container is, and what follows.

use super::facts::{self, Contained, Reference, Seen, fingerprint, gather, look, mount_namespace};
use super::identity::{id_in_path, in_words};
use super::known::Known;
use super::ownership::{Owner, View, owner};
use super::{Containers, WatchedJob};
use crate::caller::{ProcFs, ProcessKey, ProcessTable, kill};
use crate::detect::privileged_container::{
    ContainerFacts, Subject, finding, privileges_of_process,
};
use crate::watch::kernel::{ContainedProgram, wake_stopped};
use crate::watch::process::ProcessInspector;
use portcullis_common::event::{DetectionType, EnforcementScope, Process};
use portcullis_common::policy::LockdownDetection;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// For how long a process may execute a program of another root directory than its own, as runtimes do that copy themselves into
/// memory, before it is judged as it is.
const MAKING_PATIENCE: Duration = Duration::from_secs(2);

/// The most processes in the making.
const MAKING_LIMIT: usize = 1_024;

/// The type that this is about.
const DETECTION: DetectionType = DetectionType::Lockdown(LockdownDetection::PrivilegedContainer);

/// What became of a process that was looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Judged {
    /// It was judged, or needs not be.
    Done,
    /// It is in the making, or was gone before everything was read.
    NotYet,
}

/// Where a container comes from.
#[derive(Debug)]
struct Origin {
    /// The network namespace of whoever made it. Engines of other networks than the Worker's, in other pods of the same node,
    /// work for others.
    network: Option<String>,
    /// The job whose processes made it by themselves, by its token in the kernel.
    job: Option<u64>,
}

/// Judges; remembers what was judged.
#[derive(Debug)]
pub(super) struct Judge {
    containers: Arc<Containers>,
    known: Known,
    /// Processes in the making of a container, and since when.
    making: HashMap<ProcessKey, Instant>,
}

/// Mount namespaces that are no container's: the machine's, the monitor's, the Workers'.
pub(super) fn not_contained(jobs: &[Arc<WatchedJob>]) -> Vec<String> {
    let mut known: Vec<String> =
        [1, std::process::id()].into_iter().filter_map(mount_namespace).collect();
    known.extend(jobs.iter().map(|job| job.reference.namespaces().name("mnt").to_owned()));
    known
}

impl Judge {
    pub(super) fn new(containers: Arc<Containers>) -> Self {
        Self { containers, known: Known::new(), making: HashMap::new() }
    }

    /// There is no job.
    pub(super) fn rest(&mut self) {
        self.making.clear();
    }

    /// Whether there is something in the making.
    pub(super) fn is_waiting(&self) -> bool {
        !self.making.is_empty()
    }

    /// Looks at all processes. With `wake_stopped` those in containers go on that somebody has stopped.
    pub(super) fn all(&mut self, jobs: &[Arc<WatchedJob>], wake_stopped: bool) {
        let not_contained = not_contained(jobs);
        for pid in ProcFs.pids() {
            if mount_namespace(pid).is_none_or(|namespace| not_contained.contains(&namespace))
                || !facts::executes_anything(pid)
            {
                continue;
            }
            self.look_at(pid, None, jobs);
            if wake_stopped {
                wake(pid, jobs);
            }
        }
    }

    /// Looks at a process that has executed a program. One that was stopped goes on as soon as nothing depends on it.
    pub(super) fn process(
        &mut self,
        pid: u32,
        held: Option<&mut ContainedProgram>,
        jobs: &[Arc<WatchedJob>],
    ) -> Judged {
        let is_elsewhere =
            || mount_namespace(pid).is_some_and(|own| not_contained(jobs).contains(&own));
        // The kernel's side tells of none of those; the connector tells of all.
        if held.is_none() && is_elsewhere() {
            return Judged::Done;
        }
        self.look_at(pid, held, jobs)
    }

    /// Looks again at what is in the making.
    pub(super) fn making(&mut self, jobs: &[Arc<WatchedJob>]) {
        self.making.retain(|process, _| ProcFs.is_alive(*process));
        for process in self.making.keys().copied().collect::<Vec<_>>() {
            self.look_at(process.pid, None, jobs);
        }
    }

    fn look_at(
        &mut self,
        pid: u32,
        held: Option<&mut ContainedProgram>,
        jobs: &[Arc<WatchedJob>],
    ) -> Judged {
        // The jobs of this host see the same host; which of them it is compared with does not matter.
        let Some(first) = jobs.first() else { return Judged::Done };
        let in_job = jobs.iter().find_map(|job| {
            let group = &job.group.as_ref()?.path;
            facts::cgroup_of(pid).filter(|path| path.starts_with(group)).map(|_| group.as_path())
        });
        let contained = match look(pid, &first.reference, in_job) {
            Seen::Gone => return Judged::NotYet,
            Seen::Outside => return Judged::Done,
            Seen::Contained(contained) => contained,
            Seen::InTheMaking(contained) => {
                let is_over = if self.making.len() < MAKING_LIMIT {
                    let since = self.making.entry(contained.key).or_insert_with(Instant::now);
                    since.elapsed() >= MAKING_PATIENCE
                } else {
                    true
                };
                if !is_over {
                    return Judged::NotYet;
                }
                contained
            }
        };
        self.making.remove(&contained.key);
        self.judge(&contained, held, &first.reference, jobs)
    }

    fn judge(
        &mut self,
        contained: &Contained,
        held: Option<&mut ContainedProgram>,
        host: &Reference,
        jobs: &[Arc<WatchedJob>],
    ) -> Judged {
        let Some(way) = fingerprint(contained) else { return Judged::NotYet };
        let mounts = contained.namespaces.name("mnt").to_owned();
        let is_there = |process: ProcessKey| {
            ProcFs.is_alive(process)
                && mount_namespace(process.pid).is_some_and(|now| now == mounts)
        };
        let (is_new, name) = self.known.note(&mounts, contained.key, &way, is_there);
        if !is_new {
            return Judged::Done;
        }
        let by_group = id_in_path(&contained.cgroup).map(str::to_owned);
        let id = by_group.or_else(|| facts::id_by_maker(contained.key.pid));
        // What was gone while it was read has no privileges that were seen.
        let facts = gather(contained, host, id.as_deref());
        let origin = Origin {
            network: facts::maker_network(contained.key.pid),
            job: held.as_ref().and_then(|held| held.job),
        };
        let Some(facts) = facts.filter(|_| ProcFs.is_alive(contained.key)) else {
            self.known.forget(&mounts, &way);
            return Judged::NotYet;
        };
        self.answer(contained, held, facts, &origin, (id.as_deref(), &name), jobs);
        Judged::Done
    }

    /// `names` are the container's id, where it has one, and a name that no other gets.
    fn answer(
        &self,
        contained: &Contained,
        held: Option<&mut ContainedProgram>,
        mut facts: ContainerFacts,
        origin: &Origin,
        names: (Option<&str>, &str),
        jobs: &[Arc<WatchedJob>],
    ) {
        facts.service_cgroup = self.containers.service_of(&contained.cgroup);
        let concerns = |job: &Arc<WatchedJob>| !privileges_of_process(&facts, &job.own).is_empty();
        let ends =
            |job: &Arc<WatchedJob>| concerns(job) && job.responder.would_lock_down(DETECTION);
        // As long as it is sure to be there.
        let seen: Vec<(&Arc<WatchedJob>, Option<Arc<Process>>)> = jobs
            .iter()
            .filter(|job| concerns(job))
            .map(|job| (job, ProcessInspector::new(job.worker, 1).inspect(contained.key)))
            .collect();
        // Everything that only the process can tell was read. What may end a job waits for that, the rest does not wait for
        // engines.
        if let Some(held) = held.filter(|_| !jobs.iter().any(ends)) {
            held.release();
        }
        if seen.is_empty() {
            // An ordinary container; who it belongs to matters to nobody but the end of the job.
            self.containers.claim(contained, origin, None, jobs);
            return;
        }
        let (id, name) = names;
        let description = id.and_then(|id| self.containers.description(id));
        facts.is_made_by_runner = description.as_ref().is_some_and(|known| known.has_runner_label);
        let created = description.as_deref().and_then(|known| known.created);
        let owner = self.containers.claim(contained, origin, created, jobs);
        let (concerned, is_certain) = match owner {
            Owner::Job(index) => (jobs.get(index).into_iter().collect::<Vec<_>>(), true),
            Owner::Unknown => (jobs.iter().collect(), false),
            Owner::Nobody => return,
        };
        for job in concerned {
            let privileges = privileges_of_process(&facts, &job.own);
            let process = seen.iter().find(|(other, _)| other.id == job.id);
            let subject = Subject {
                container: in_words(id, description.as_deref()),
                process: process.and_then(|(_, process)| process.as_deref().cloned()),
                what: if is_certain { "runs" } else { "(it can't be told which job made it) runs" }
                    .to_owned(),
            };
            if let Some(finding) = finding(subject, &privileges) {
                self.containers.answer(job, id.unwrap_or(name), &privileges, finding, is_certain);
            }
            // A runtime of the job's own puts it where no group of the job's is, and no engine's.
            if is_certain
                && job.responder.is_locked_down()
                && let Err(error) = kill(contained.key)
            {
                tracing::error!(process = %contained.key, %error, "a privileged container can't be killed");
            }
        }
    }
}

/// Lets a process that may be a job's go on when somebody has stopped it.
fn wake(pid: u32, jobs: &[Arc<WatchedJob>]) {
    let Some(key) = ProcFs.key(pid) else { return };
    if jobs.iter().any(|job| key.start_time >= job.worker.start_time) {
        wake_stopped(key);
    }
}

impl Containers {
    /// Whose the container is. One that is known to be a job's is killed with it.
    fn claim(
        &self,
        contained: &Contained,
        origin: &Origin,
        created: Option<jiff::Timestamp>,
        jobs: &[Arc<WatchedJob>],
    ) -> Owner {
        let group =
            self.hierarchy.as_ref().and_then(|hierarchy| hierarchy.group(&contained.cgroup).ok());
        // With one runner only a container that was there before raises the question.
        let is_asked =
            created.is_some() || jobs.iter().any(|job| job.scope() == EnforcementScope::Job);
        let callers = is_asked.then(callers).flatten();
        let views: Vec<View> = jobs
            .iter()
            .map(|job| {
                let in_group =
                    job.group.as_ref().is_some_and(|own| contained.cgroup.starts_with(&own.path));
                let is_made_by_job = origin.job.is_some() && origin.job == job.token;
                let has_id = id_in_path(&contained.cgroup).is_some();
                let is_younger = match (&group, &job.group) {
                    (Some(group), Some(own)) if has_id => group.identity().id > own.id,
                    _ => contained.key.start_time >= job.worker.start_time,
                };
                let is_of_host =
                    origin.network.as_deref() == Some(job.reference.namespaces().name("net"));
                View {
                    is_its_own: in_group || is_made_by_job,
                    is_younger: is_younger && is_of_host,
                    is_caller: is_caller(job, callers.as_deref()),
                    is_restarted: created.is_some_and(|created| created < job.started),
                    scope: job.scope(),
                }
            })
            .collect();
        let owner = owner(&views);
        if let (Owner::Job(index), Some(group)) = (owner, group)
            && let Some(job) = jobs.get(index)
            && id_in_path(&contained.cgroup).is_some()
        {
            job.containers.add(group.identity().clone());
        }
        owner
    }

    /// The cgroup of a service of this machine that the path lies in.
    pub(super) fn service_of(&self, path: &Path) -> Option<String> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services
            .iter()
            .find(|service| path.starts_with(service))
            .map(|path| path.display().to_string())
    }
}

/// Those who are connected to an engine; `None` when that is not known.
pub(super) fn callers() -> Option<Vec<u32>> {
    let engines = engine_processes();
    let mut found = Vec::new();
    for engine in engines {
        found.extend(super::callers::callers(engine)?);
    }
    Some(found)
}

/// Whether a process of the job is among the callers. A container of the job that has the engine's socket is one.
pub(super) fn is_caller(job: &WatchedJob, callers: Option<&[u32]>) -> bool {
    let Some(callers) = callers else { return false };
    callers.iter().any(|pid| {
        facts::cgroup_of(*pid).is_some_and(|path| {
            job.group.as_ref().is_some_and(|own| path.starts_with(&own.path))
                || job.containers.holds(&path)
        })
    })
}

/// The processes of Docker engines on this host: root's, of that name.
fn engine_processes() -> Vec<u32> {
    let is_engine = |pid: &u32| {
        facts::is_called(*pid, &["dockerd"])
            && ProcFs.process(*pid).is_some_and(|process| {
                process.uid == 0 && process.executable_name().is_some_and(|name| name == "dockerd")
            })
    };
    ProcFs.pids().into_iter().filter(is_engine).collect()
}
