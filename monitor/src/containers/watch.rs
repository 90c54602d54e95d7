//! Finds containers as the kernel shows them, whatever engine made them.
//!
//! A new cgroup tells that a container is being made; its processes are then looked at several times, because a runtime
//! takes some tenths of a second until the program of the image runs. What makes no cgroup is found by looking at all
//! processes twice a second. A process that was judged is not looked at again as long as its privileges stay.

use super::facts::{self, Contained, Seen, fingerprint, gather, look, mount_namespace};
use super::identity::{id_in_path, in_words};
use super::ownership::{Owner, View, owner};
use super::{Containers, WatchedJob};
use crate::caller::{ProcFs, ProcessTable};
use crate::detect::privileged_container::{
    ContainerFacts, Subject, finding, privileges_of_process,
};
use crate::watch::bounded::BoundedCache;
use crate::watch::process::ProcessInspector;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use portcullis_common::event::EnforcementScope;
use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often all processes are looked at while a job runs.
const INTERVAL: Duration = Duration::from_millis(500);

/// When processes are looked at after something happened, in milliseconds: a runtime needs 50 to 500 until a container's
/// program runs.
const AFTER: [u64; 8] = [0, 10, 30, 60, 120, 250, 400, 700];

/// The most groups that are watched.
const WATCH_LIMIT: usize = 4_096;

/// Processes whose judgement is remembered.
const REMEMBERED: usize = 16_384;

/// For how long a process may be in the making of its container before it is judged as it is.
const MAKING_PATIENCE: Duration = Duration::from_secs(10);

/// Wakes the thread.
#[derive(Debug)]
pub(super) struct Waker {
    ours: Mutex<Option<UnixStream>>,
}

impl Default for Waker {
    fn default() -> Self {
        Self { ours: Mutex::new(None) }
    }
}

impl Waker {
    /// Something has happened to a container.
    pub(super) fn wake(&self) {
        let mut stream = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = stream.as_mut() {
            // A full pipe wakes as well.
            let _ = stream.write(&[1]);
        }
    }
}

/// Starts the thread.
pub(super) fn start(containers: Arc<Containers>) -> std::io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    *containers.waker.ours.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .inspect_err(|error| tracing::warn!(%error, "new cgroups are not noticed at once"))
        .ok();
    std::thread::Builder::new().name("containers".to_owned()).spawn(move || {
        Watcher {
            containers,
            wake: theirs,
            groups: inotify.map(|inotify| Groups { inotify, watched: HashMap::new() }),
            judged: BoundedCache::new(REMEMBERED),
            making: HashMap::new(),
        }
        .run();
    })?;
    Ok(())
}

struct Watcher {
    containers: Arc<Containers>,
    wake: UnixStream,
    groups: Option<Groups>,
    /// What was judged, by the process's privileges; the mounts of a container don't change without `SYS_ADMIN`.
    judged: BoundedCache<String, ()>,
    /// Processes in the making of a container, and since when.
    making: HashMap<u32, Instant>,
}

impl Watcher {
    fn run(mut self) {
        let mut looks: Vec<Instant> = Vec::new();
        loop {
            let jobs = self.containers.jobs();
            let now = Instant::now();
            let next = looks.iter().min().copied().unwrap_or(now + INTERVAL);
            // Without a job there is nothing to look at, until one comes.
            let limit =
                (!jobs.is_empty()).then(|| next.saturating_duration_since(now).min(INTERVAL));
            if self.wait(limit) {
                let now = Instant::now();
                looks.extend(AFTER.iter().map(|after| now + Duration::from_millis(*after)));
            }
            let now = Instant::now();
            looks.retain(|look| *look > now);
            // Many at a time come to one look each ten milliseconds.
            looks.sort_unstable();
            looks.dedup_by_key(|look| look.saturating_duration_since(now).as_millis() / 10);
            let jobs = self.containers.jobs();
            if !jobs.is_empty() {
                self.look_at_all(&jobs);
            }
        }
    }

    /// Waits until something happens (`true`) or the time is over.
    fn wait(&mut self, limit: Option<Duration>) -> bool {
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut descriptors = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if let Some(groups) = &self.groups {
            descriptors.push(PollFd::new(groups.inotify.as_fd(), PollFlags::POLLIN));
        }
        // Interrupted or not: what is there is read below.
        let _ = poll(&mut descriptors, timeout);
        let mut woken = false;
        let mut buffer = [0; 256];
        while matches!((&self.wake).read(&mut buffer), Ok(length) if length > 0) {
            woken = true;
        }
        let root =
            self.containers.hierarchy.as_ref().map(|hierarchy| hierarchy.mount_point().to_owned());
        if let (Some(groups), Some(root)) = (&mut self.groups, root) {
            woken |= groups.take(&root, woken);
        }
        woken
    }

    fn look_at_all(&mut self, jobs: &[Arc<WatchedJob>]) {
        for job in jobs {
            (job.keep_up.0)();
        }
        let mut known: Vec<String> =
            [1, std::process::id()].into_iter().filter_map(mount_namespace).collect();
        known.extend(jobs.iter().map(|job| job.reference.namespaces().name("mnt").to_owned()));
        let pids = ProcFs.pids();
        self.making.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            if mount_namespace(pid).is_none_or(|namespace| known.contains(&namespace)) {
                continue;
            }
            self.look_at(pid, jobs);
        }
    }

    fn look_at(&mut self, pid: u32, jobs: &[Arc<WatchedJob>]) {
        // The jobs of this host see the same host; which of them it is compared with does not matter.
        let Some(first) = jobs.first() else { return };
        let in_job = jobs.iter().find_map(|job| {
            let group = &job.group.as_ref()?.path;
            facts::cgroup_of(pid).filter(|path| path.starts_with(group)).map(|_| group.as_path())
        });
        let contained = match look(pid, &first.reference, in_job) {
            Seen::Outside => return,
            Seen::Contained(contained) => contained,
            Seen::InTheMaking => {
                let since = *self.making.entry(pid).or_insert_with(Instant::now);
                let contained = facts::as_it_is(pid, &first.reference);
                match contained.filter(|_| since.elapsed() >= MAKING_PATIENCE) {
                    Some(contained) => contained,
                    None => return,
                }
            }
        };
        self.making.remove(&pid);
        let Some(fingerprint) = fingerprint(&contained) else { return };
        if self.judged.get(&fingerprint).is_some() {
            return;
        }
        let by_group = id_in_path(&contained.cgroup).map(str::to_owned);
        let id = by_group.or_else(|| facts::id_by_maker(contained.key.pid));
        let Some(facts) = gather(&contained, &first.reference, id.as_deref()) else { return };
        self.judged.insert(fingerprint, ());
        self.judge(&contained, facts, id.as_deref(), jobs);
    }

    fn judge(
        &self,
        contained: &Contained,
        mut facts: ContainerFacts,
        id: Option<&str>,
        jobs: &[Arc<WatchedJob>],
    ) {
        facts.service_cgroup = self.containers.service_of(&contained.cgroup);
        let may_concern =
            jobs.iter().any(|job| !privileges_of_process(&facts, &job.own).is_empty());
        if !may_concern {
            // An ordinary container; who it belongs to matters to nobody but the end of the job.
            self.containers.claim(contained, None, jobs);
            return;
        }
        let description = id.and_then(|id| self.containers.description(id));
        facts.is_made_by_runner = description.as_ref().is_some_and(|known| known.has_runner_label);
        let owner = self.containers.claim(
            contained,
            description.as_deref().and_then(|known| known.created),
            jobs,
        );
        let (concerned, is_certain) = match owner {
            Owner::Job(index) => (jobs.get(index).into_iter().collect::<Vec<_>>(), true),
            Owner::Unknown => (jobs.iter().collect(), false),
            Owner::Nobody => return,
        };
        for job in concerned {
            let privileges = privileges_of_process(&facts, &job.own);
            let process = ProcessInspector::new(job.worker, 1).inspect(contained.key);
            let subject = Subject {
                container: in_words(id, description.as_deref()),
                process: process.as_deref().cloned(),
                what: if is_certain { "runs" } else { "(it can't be told which job made it) runs" }
                    .to_owned(),
            };
            if let Some(finding) = finding(subject, &privileges) {
                let container = id.unwrap_or_else(|| contained.namespaces.name("mnt")).to_owned();
                self.containers.answer(job, &container, &privileges, finding, is_certain);
            }
        }
    }
}

impl Containers {
    /// Whose the container is. One that is known to be a job's is killed with it.
    fn claim(
        &self,
        contained: &Contained,
        created: Option<jiff::Timestamp>,
        jobs: &[Arc<WatchedJob>],
    ) -> Owner {
        let group =
            self.hierarchy.as_ref().and_then(|hierarchy| hierarchy.group(&contained.cgroup).ok());
        // With one runner only a container that was there before raises the question.
        let is_asked =
            created.is_some() || jobs.iter().any(|job| job.scope() == EnforcementScope::Job);
        let callers = is_asked.then(callers).flatten();
        let maker = facts::maker_network(contained.key.pid);
        let views: Vec<View> = jobs
            .iter()
            .map(|job| {
                let in_group =
                    job.group.as_ref().is_some_and(|own| contained.cgroup.starts_with(&own.path));
                let has_id = id_in_path(&contained.cgroup).is_some();
                let is_younger = match (&group, &job.group) {
                    (Some(group), Some(own)) if has_id => group.identity().id > own.id,
                    _ => contained.key.start_time >= job.worker.start_time,
                };
                let is_of_host = maker.as_deref() == Some(job.reference.namespaces().name("net"));
                View {
                    in_group,
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

/// Tells when cgroups are made.
struct Groups {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

impl Groups {
    /// Takes what has happened; whether it may be a container. Watches everything below `root` when nothing is watched yet,
    /// or when `again`.
    fn take(&mut self, root: &Path, again: bool) -> bool {
        let mut happened = false;
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                happened = true;
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watched.remove(&event.wd);
                } else if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.watch_below(root);
                } else if let (Some(parent), Some(name)) = (self.watched.get(&event.wd), event.name)
                {
                    let made = parent.join(name);
                    self.watch_below(&made);
                }
            }
        }
        if again || self.watched.is_empty() {
            self.watch_below(root);
        }
        happened
    }

    fn watch_below(&mut self, directory: &Path) {
        let mut open = vec![directory.to_owned()];
        while let Some(directory) = open.pop() {
            if self.watched.len() >= WATCH_LIMIT {
                return;
            }
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
            // It may be gone again.
            let Ok(watch) = self.inotify.add_watch(&directory, flags) else { continue };
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            open.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
            self.watched.insert(watch, directory);
        }
    }
}
