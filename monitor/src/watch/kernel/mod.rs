//! The sensors in the kernel, as the host has them: one set of programs for all jobs, and hooks for each.
//!
//! [`images`] remembers what the kernel told of processes, [`sensor`] answers whose a flow is, [`guarded`] says whose memory
//! is guarded. What needs an answer (somebody reached for memory, a process left its cgroup) goes to the job's
//! [`KernelObserver`] on a thread of its own, because an answer takes longer than the kernel's ring buffer can wait.

mod containers;
mod guarded;
mod hooks;
mod images;
mod sensor;
mod streams;

pub use containers::{ContainedProgram, ContainerObserver, wake_stopped};
pub use guarded::Guarded;
pub use sensor::BpfSensor;
pub use streams::JobStreams;

use crate::caller::{ProcFs, ProcessKey, ProcessTable, Snapshot};
use crate::cgroup::JobCgroup;
use crate::cgroup::job::descendants;
use crate::sys::pidfd;
use crate::watch::process::ProcessInspector;
use crate::watch::programs::INTERPRETERS;
use hooks::{Hooks, HooksOfJobs};
use images::Images;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_common::event::{Feature, FeatureState, Process};
use portcullis_common::hook::with_causes;
use portcullis_monitor_bpf::event::{Access, Escape, Image, Subject};
use portcullis_monitor_bpf::{Event, Lifecycle, MemoryGuard, SensorError};
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// Findings that wait for their answer.
const WAITING_FINDINGS: usize = 4_096;

/// What is told of a job's processes.
pub trait KernelObserver: fmt::Debug + Send + Sync {
    /// A process executes a program. Called on the thread that reads the kernel's events: must be quick.
    fn executed(&self, process: Process);

    /// A process executes a program that has no file, or becomes another user by one. May block.
    fn unusual(&self, execution: Unusual);

    /// A process is in a cgroup that is not the job's. May block.
    fn escaped(&self, process: Process, escape: Escape, mover: Option<Process>);

    /// Somebody, of the job or not, reached for guarded memory. May block.
    fn accessed(&self, reader: ProcessKey, process: Process, access: Access);

    /// A process of the job sent a signal to this monitor. May block.
    fn signalled(&self, process: Process, signal: u32);

    /// A process that may be a shell at the end of a connection was stopped, and goes on when [`JobStreams::release`] is
    /// called. Happens to jobs only that have [`JobStreams::begin`]. Must be quick.
    fn held(&self, process: ProcessKey);
}

/// An execution that has to be judged.
#[derive(Clone, Debug)]
pub struct Unusual {
    /// The process after the exec.
    pub process: Process,
    /// Hard links of the executable.
    pub links: u32,
    /// Its effective user.
    pub effective_uid: u32,
    /// Its effective user before that.
    pub uid_before: Option<u32>,
}

/// The sensors of this host.
#[derive(Debug)]
pub struct KernelSensors {
    lifecycle: Arc<Lifecycle>,
    hooks: Arc<HooksOfJobs>,
    guard: Result<Guarded, String>,
    shared: Arc<Shared>,
    next_token: AtomicU64,
}

/// What the thread of the events and the jobs share.
#[derive(Debug)]
struct Shared {
    images: Mutex<Images>,
    observers: Mutex<HashMap<u64, Arc<dyn KernelObserver>>>,
    /// Boxed, because a place in the queue is there whether a finding waits in it or not.
    findings: SyncSender<Box<Finding>>,
    /// Findings that there was no room for.
    lost_findings: AtomicU64,
    /// Who is told of containers.
    containers: OnceLock<Arc<dyn ContainerObserver>>,
}

/// What needs an answer.
#[derive(Debug)]
enum Finding {
    Unusual(u64, Box<Unusual>),
    Escape(Subject, Escape),
    Access(Subject, Access, Image),
    Signal(Subject, u32),
}

/// What of a job is watched.
#[derive(Clone, Debug)]
pub struct JobToWatch {
    /// Its Worker.
    pub worker: ProcessKey,
    /// The Listener that started the Worker.
    pub listener: Option<ProcessKey>,
    /// Whether who reaches for their memory is ended; otherwise it is only told.
    pub is_reader_ended: bool,
    /// Cgroups whose packets nobody judges: what leaves the job for one of them makes no socket there.
    pub not_judged: Vec<PathBuf>,
}

/// A job that the sensors watch. Dropping it ends that.
#[derive(Debug)]
pub struct WatchedJob {
    sensors: Arc<KernelSensors>,
    token: u64,
    group: u64,
    worker: ProcessKey,
    /// Whether the memory of its runner is guarded, or why not.
    guarding: Result<(), String>,
    /// Events that were lost before it began.
    lost_before: u64,
    /// Hooks on its cgroup and on others.
    hooks: Hooks,
}

impl KernelSensors {
    /// Loads everything. Takes some hundred milliseconds.
    ///
    /// # Errors
    /// Why this kernel or this machine does not allow it; then nothing is left behind.
    pub fn start() -> Result<Self, SensorError> {
        let (findings, waiting) = sync_channel(WAITING_FINDINGS);
        let shared = Arc::new(Shared {
            images: Mutex::new(Images::new()),
            observers: Mutex::default(),
            findings,
            lost_findings: AtomicU64::new(0),
            containers: OnceLock::new(),
        });
        let answering = Arc::downgrade(&shared);
        thread::Builder::new()
            .name("kernel-findings".to_owned())
            .spawn(move || {
                answer(&waiting, || answering.upgrade());
            })
            .map_err(SensorError::Events)?;
        let handling = Arc::clone(&shared);
        let lifecycle = Arc::new(Lifecycle::start(move |event| handling.handle(event))?);
        let guard =
            MemoryGuard::start(&lifecycle, INTERPRETERS, || pidfd::open(std::process::id()))
                .and_then(Guarded::new)
                .map_err(|error| with_causes(&error));
        if let Err(reason) = &guard {
            tracing::warn!(reason, "the memory of runners is not guarded by BPF");
        }
        let hooks = Arc::new(HooksOfJobs::new(Arc::clone(&lifecycle)));
        hooks.prepare();
        Ok(Self { lifecycle, hooks, guard, shared, next_token: AtomicU64::new(1) })
    }

    /// The memory guard, or why there is none.
    pub fn guard(&self) -> Result<&Guarded, &str> {
        self.guard.as_ref().map_err(String::as_str)
    }

    /// Events and findings there was no room for.
    pub fn lost(&self) -> u64 {
        self.lifecycle.lost()
            + self.shared.lost_findings.load(Ordering::Relaxed)
            + self.shared.images().not_followed()
    }

    /// Watches a job from now on, with everything that is below its Worker.
    ///
    /// # Errors
    /// [`SensorError::Map`].
    pub fn watch(
        self: &Arc<Self>,
        job: &JobToWatch,
        group: &JobCgroup,
        observer: Arc<dyn KernelObserver>,
    ) -> Result<WatchedJob, SensorError> {
        let worker = job.worker;
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let id = group.identity().id;
        self.shared.observers().insert(token, observer);
        let mut watched = WatchedJob {
            sensors: Arc::clone(self),
            token,
            group: id,
            worker,
            guarding: Err(String::new()),
            lost_before: self.lost(),
            hooks: self.hooks.attach(token, group, job.not_judged.clone()),
        };
        // Before the look at procfs, so that nothing is missed in between. On an error dropping undoes it.
        self.lifecycle.add_job(token, id, worker.pid)?;
        self.shared.images().add_job(token, worker, present(worker, [worker]));
        // What a Worker has started before its job is bound is the hook that waits for us, and little else; all of procfs
        // is read beside what it waits for.
        let shared = Arc::clone(&self.shared);
        let look = move || {
            let entries: Vec<_> = Snapshot::take().entries().cloned().collect();
            let below = present(worker, descendants(&entries, worker));
            shared.images().add_below(token, below);
        };
        if let Err(error) = thread::Builder::new().name("present".to_owned()).spawn(look) {
            tracing::warn!(%error, "what runs already is not looked at");
        }
        watched.guarding = self
            .guard()
            .map_err(str::to_owned)
            .and_then(|guard| guard.add_job(token, worker, job.listener, job.is_reader_ended));
        Ok(watched)
    }

    /// Makes ready what the next job needs, so that its start does not wait for it. Takes some milliseconds.
    pub fn prepare_next(&self) {
        self.hooks.prepare();
    }

    /// The mechanisms as they are.
    pub fn features(&self) -> Vec<Feature> {
        let active = |name: &str, reason: &str| Feature {
            name: name.to_owned(),
            state: FeatureState::Active,
            reason: reason.to_owned(),
        };
        let mut features = vec![active(
            "sensor-process",
            "BPF: what processes of a job come, execute, go and leave its cgroup is told by the kernel",
        )];
        features.push(match &self.guard {
            Ok(_) => active(
                "sensor-memory",
                "BPF: whoever reaches for the memory of a runner or of the monitor is seen, and stopped before it gets any where Lockdown Mode says so",
            ),
            Err(problem) => Feature {
                name: "sensor-memory".to_owned(),
                state: FeatureState::Missing,
                reason: problem.clone(),
            },
        });
        features
    }
}

impl WatchedJob {
    /// The token of the job in the kernel's maps.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The sensors.
    pub fn sensors(&self) -> &Arc<KernelSensors> {
        &self.sensors
    }

    /// The mechanisms as they are for this job, beside those of the host. Waits until its hooks are attached.
    pub fn features(&self) -> Vec<Feature> {
        let (state, reason) = match self.hooks.problem() {
            None => (
                FeatureState::Active,
                "BPF: hooks on the job's cgroup see each call in the process that makes it",
            ),
            Some(problem) => (FeatureState::Degraded, problem),
        };
        let reason = reason.to_owned();
        let mut features = vec![Feature { name: "sensor-network".to_owned(), state, reason }];
        // Without a guard the host's own mechanisms say so.
        if let (Ok(_), Err(problem)) = (self.sensors.guard(), &self.guarding) {
            features.push(Feature {
                name: "sensor-memory".to_owned(),
                state: FeatureState::Missing,
                reason: problem.clone(),
            });
        }
        features
    }

    /// Its shells, as far as they can be stopped when they read from a connection; or why they can't.
    ///
    /// # Errors
    /// Which sensor is missing.
    pub fn streams(self: &Arc<Self>) -> Result<JobStreams, &str> {
        self.sensors.guard()?;
        self.hooks.network()?;
        Ok(JobStreams::new(Arc::clone(self)))
    }

    /// The processes of the job that live, wherever they are.
    pub fn pids(&self) -> Vec<u32> {
        self.sensors.lifecycle.drain();
        self.sensors.shared.images().pids(self.token)
    }

    /// Ends the watch, once everything that has happened was handed over. How many events of all jobs were lost since it
    /// began.
    pub fn end(&self) -> u64 {
        self.sensors.lifecycle.drain();
        if let Ok(guard) = self.sensors.guard() {
            guard.remove_job(self.token);
        }
        self.sensors.lifecycle.remove_job(self.group, self.worker.pid);
        self.sensors.shared.observers().remove(&self.token);
        self.sensors.shared.images().remove_job(self.token);
        self.sensors.lost().saturating_sub(self.lost_before)
    }
}

impl Drop for WatchedJob {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observers(&self) -> MutexGuard<'_, HashMap<u64, Arc<dyn KernelObserver>>> {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observer(&self, job: u64) -> Option<Arc<dyn KernelObserver>> {
        self.observers().get(&job).cloned()
    }

    /// Takes one event in. Runs on the thread that reads events, or on one that waits for them.
    fn handle(&self, event: Event) {
        match event {
            Event::Fork(subject) => self.images().fork(&subject),
            Event::Exec(subject, image) => {
                let (links, effective_uid) = (image.links, image.effective_uid);
                let (process, uid_before) = {
                    let mut images = self.images();
                    let uid_before = images.exec(&subject, image);
                    (images.find(subject.pid, subject.time), uid_before)
                };
                let Some((observer, process)) = self.observer(subject.job).zip(process) else {
                    return;
                };
                if links == 0 || uid_before.is_some_and(|before| before != effective_uid) {
                    let process = process.clone();
                    let unusual = Unusual { process, links, effective_uid, uid_before };
                    self.find(Finding::Unusual(subject.job, Box::new(unusual)));
                }
                observer.executed(process);
            }
            Event::Exit(subject) => self.images().exit(&subject),
            Event::Environment(subject, environment) => {
                let is_empty = environment.is_empty();
                if !self.images().environment(&subject, &environment) && is_empty {
                    // Too long for the kernel's copy; what a Worker starts lives for long enough to be looked at.
                    let read = crate::caller::table::read_bounded(
                        &format!("/proc/{}/environ", subject.pid),
                        1 << 20,
                    );
                    self.images().environment(&subject, &read.unwrap_or_default());
                }
            }
            Event::Port(subject, port) => self.images().port(&subject, &port),
            Event::Escape(subject, escape) => self.find(Finding::Escape(subject, escape)),
            Event::Access(subject, access, image) => {
                self.find(Finding::Access(subject, access, image));
            }
            Event::Signal(subject, number) => self.find(Finding::Signal(subject, number)),
            Event::Stopped(pid) => wake(pid),
            Event::Contained(subject, contained) => self.contained(&subject, contained),
            Event::Held(subject) => {
                let key = ProcessKey { pid: subject.pid, start_time: subject.start_ticks() };
                if let Some(observer) = self.observer(subject.job) {
                    observer.held(key);
                }
            }
        }
    }

    fn find(&self, finding: Finding) {
        if self.findings.try_send(Box::new(finding)).is_err() {
            self.lost_findings.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn answer(&self, finding: Finding) {
        match finding {
            Finding::Unusual(job, unusual) => {
                if let Some(observer) = self.observer(job) {
                    observer.unusual(*unusual);
                }
            }
            Finding::Escape(subject, escape) => {
                let (process, mover) = {
                    let mut images = self.images();
                    let process = images.find(subject.pid, subject.time);
                    (process, images.find(escape.by, subject.time))
                };
                let process = process.unwrap_or_else(|| bare(&subject));
                if let Some(observer) = self.observer(subject.job) {
                    observer.escaped(process, escape, mover);
                }
            }
            Finding::Signal(subject, number) => {
                let process = self.images().find(subject.pid, subject.time);
                if let Some(observer) = self.observer(subject.job) {
                    observer.signalled(process.unwrap_or_else(|| bare(&subject)), number);
                }
            }
            Finding::Access(subject, access, image) => {
                let key = ProcessKey { pid: subject.pid, start_time: subject.start_ticks() };
                let known = self.images().find(subject.pid, subject.time);
                let process = known.unwrap_or_else(|| Process {
                    exe: Some(image.executable),
                    cwd: Some(image.directory),
                    argv: image.arguments,
                    ..bare(&subject)
                });
                // A reader outside of every job that wants what belongs to no job concerns all that run.
                let concerned: Vec<_> = match self.observer(subject.job) {
                    Some(observer) => vec![observer],
                    None => self.observers().values().cloned().collect(),
                };
                for observer in concerned {
                    observer.accessed(key, process.clone(), access);
                }
            }
        }
    }
}

/// Processes as procfs has them now, with their parents.
fn present(
    worker: ProcessKey,
    keys: impl IntoIterator<Item = ProcessKey>,
) -> Vec<(ProcessKey, ProcessKey, Process)> {
    let inspector = ProcessInspector::new(worker, 64);
    let look = |key: ProcessKey| {
        let entry = ProcFs.process(key.pid).filter(|entry| entry.key == key)?;
        let process = inspector.inspect(key)?;
        Some((key, ProcFs.key(entry.parent)?, Process::clone(&process)))
    };
    keys.into_iter().filter_map(look).collect()
}

/// The process of an event when nothing else is known of it.
fn bare(subject: &Subject) -> Process {
    Process {
        pid: Some(subject.pid),
        start_time: Some(subject.start_ticks()),
        uid: Some(subject.uid),
        ..Process::default()
    }
}

/// Answers findings until the sensors are gone.
fn answer(waiting: &Receiver<Box<Finding>>, shared: impl Fn() -> Option<Arc<Shared>>) {
    while let Ok(finding) = waiting.recv() {
        let Some(shared) = shared() else { return };
        shared.answer(*finding);
    }
}

/// Lets a process go on that a tracer stopped, which was ended before it could do so itself.
fn wake(pid: u32) {
    let Ok(number) = i32::try_from(pid) else { return };
    if let Err(error) = kill(Pid::from_raw(number), Signal::SIGCONT) {
        tracing::warn!(pid, %error, "a process that a reader of its memory had stopped can't be woken");
    }
}

#[cfg(test)]
mod tests;
