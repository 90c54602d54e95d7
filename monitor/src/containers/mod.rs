//! The containers of this host while jobs run: whose they are, how they are called, and what of the host they have.
//!
//! Containers are made by daemons, outside of any job's cgroup. [`watch`] finds their processes as the kernel shows them,
//! whatever engine made them, and [`judging`] judges them; [`events`] listens to Docker engines; [`authorization`] is asked by a Docker engine before it
//! does what it was asked. All three gather facts for [`crate::detect::privileged_container`] and hand findings to the
//! responder of the job that [`ownership`] names.

mod asked;
pub mod authorization;
pub mod callers;
pub mod engine;
pub mod events;
pub mod facts;
mod groups;
pub mod identity;
mod judging;
pub mod killing;
mod known;
pub mod names;
pub mod ownership;
mod sockets;
mod source;
pub mod watch;

use crate::caller::ProcessKey;
use crate::cgroup::{CgroupIdentity, Hierarchy};
use crate::config::Paths;
use crate::detect::Finding;
use crate::detect::privileged_container::{JobOwn, Privilege};
use crate::respond::Responder;
use crate::respond::containers::KnownContainers;
use crate::watch::bounded::BoundedCache;
use crate::watch::kernel::KernelSensors;
use engine::Engine;
use facts::Reference;
use identity::Description;
use jiff::Timestamp;
use names::Names;
use nix::unistd::{Uid, User};
use portcullis_common::event::EnforcementScope;
use portcullis_monitor_bpf::event::ContainerKey;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// Where engines listen. Podman's speaks the same language.
const ENGINE_SOCKETS: [&str; 2] = ["/run/docker.sock", "/run/podman/podman.sock"];

/// Descriptions of containers that are remembered.
const REMEMBERED_CONTAINERS: usize = 1_024;

/// Findings that are remembered, so that each is answered once.
const REMEMBERED_FINDINGS: usize = 4_096;

/// A job whose containers are looked after.
#[derive(Debug)]
pub struct WatchedJob {
    /// The job's id.
    pub id: String,
    /// Its Worker.
    pub worker: ProcessKey,
    /// What it has by itself.
    pub own: JobOwn,
    /// Its cgroup.
    pub group: Option<CgroupIdentity>,
    /// Its token in the kernel's sensors, where there are any.
    pub token: Option<u64>,
    /// When it was bound.
    pub started: Timestamp,
    /// Whether only its own traffic and containers are its.
    is_narrow: AtomicBool,
    /// The host as it sees it.
    pub reference: Reference,
    /// Where findings go.
    pub responder: Arc<Responder>,
    /// The containers that are known to be its.
    pub containers: Arc<killing::EngineContainers>,
    /// What is done for it when services open sockets.
    pub keep_up: KeepUp,
}

impl WatchedJob {
    /// A job; `None` when its Worker is gone.
    pub fn new(parts: JobParts) -> Option<Self> {
        let JobParts {
            id,
            worker,
            uid,
            executable,
            group,
            token,
            started,
            scope,
            responder,
            containers,
            keep_up,
        } = parts;
        Some(Self {
            reference: Reference::of(worker.pid)?,
            own: own_of(uid, &executable),
            is_narrow: AtomicBool::new(scope == EnforcementScope::Job),
            id,
            worker,
            group,
            token,
            started,
            responder,
            containers,
            keep_up,
        })
    }

    /// Whose containers are the job's.
    pub fn scope(&self) -> EnforcementScope {
        if self.is_narrow.load(Ordering::Relaxed) {
            EnforcementScope::Job
        } else {
            EnforcementScope::Host
        }
    }

    /// Only what is known to be the job's is its, from now on.
    pub fn narrow(&self) {
        self.is_narrow.store(true, Ordering::Relaxed);
        self.containers.narrow();
    }
}

/// What a [`WatchedJob`] is made of.
#[derive(Debug)]
pub struct JobParts {
    /// The job's id.
    pub id: String,
    /// Its Worker.
    pub worker: ProcessKey,
    /// The Worker's user.
    pub uid: u32,
    /// The Worker's program, `<runner>/bin/Runner.Worker`.
    pub executable: PathBuf,
    /// The job's cgroup.
    pub group: Option<CgroupIdentity>,
    /// The job's token in the kernel's sensors, where there are any.
    pub token: Option<u64>,
    /// When it was bound.
    pub started: Timestamp,
    /// Whose traffic is the job's.
    pub scope: EnforcementScope,
    /// Where findings go.
    pub responder: Arc<Responder>,
    /// The job's containers.
    pub containers: Arc<killing::EngineContainers>,
    /// What is done for it when services open sockets.
    pub keep_up: KeepUp,
}

/// What is done for a job when services open sockets that are closed to it.
pub struct KeepUp {
    work: Box<dyn Fn() + Send + Sync>,
    directories: Box<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
}

impl KeepUp {
    /// Calls `work` when something happens to a socket in one of `directories`, and every few seconds; not while there are none.
    pub fn new(
        work: impl Fn() + Send + Sync + 'static,
        directories: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static,
    ) -> Self {
        Self { work: Box::new(work), directories: Box::new(directories) }
    }

    fn run(&self) {
        (self.work)();
    }

    fn directories(&self) -> Vec<PathBuf> {
        (self.directories)()
    }
}

impl std::fmt::Debug for KeepUp {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("KeepUp")
    }
}

/// The runner's root directory and its user's home.
fn own_of(uid: u32, executable: &std::path::Path) -> JobOwn {
    let root = executable.parent().and_then(std::path::Path::parent).map(PathBuf::from);
    let home = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.dir);
    let directories = [root, home]
        .into_iter()
        .flatten()
        // The home of a system user can be `/`, which is nobody's own.
        .filter(|directory| {
            directory.components().count() > 2 || uid == 0 && directory.ends_with("root")
        })
        .collect();
    JobOwn { uid, directories }
}

/// Runs what waits for the runtime on a thread of its own, wherever it is called: a thread of the runtime can't wait for it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Option<T> + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("engine".to_owned()).spawn_scoped(scope, work);
        thread.ok()?.join().ok()?
    })
}

/// A finding that was told already: the job, the container, what it has of the host.
type KnownFinding = (String, String, Vec<Privilege>);

/// Looks after the containers of this host.
#[derive(Debug)]
pub struct Containers {
    engines: Vec<Engine>,
    hierarchy: Option<Hierarchy>,
    runtime: Mutex<Option<Handle>>,
    jobs: Mutex<HashMap<String, Arc<WatchedJob>>>,
    /// Told when a job comes.
    job_came: Notify,
    descriptions: Mutex<BoundedCache<String, Arc<Description>>>,
    findings: Mutex<BoundedCache<KnownFinding, ()>>,
    names: Names,
    asked: Arc<asked::Asked>,
    /// Who tells of containers.
    source: Mutex<source::Source>,
    /// Since when this monitor runs.
    since: Timestamp,
    /// The cgroups of the machine's own services, which are not judged.
    services: RwLock<Vec<PathBuf>>,
}

impl Containers {
    /// Nothing is watched before [`Containers::start`].
    pub fn new(paths: &Paths, hierarchy: Option<Hierarchy>) -> Self {
        Self {
            engines: ENGINE_SOCKETS.iter().map(|socket| Engine::at(paths.at(socket))).collect(),
            hierarchy,
            runtime: Mutex::default(),
            jobs: Mutex::default(),
            job_came: Notify::new(),
            descriptions: Mutex::new(BoundedCache::new(REMEMBERED_CONTAINERS)),
            findings: Mutex::new(BoundedCache::new(REMEMBERED_FINDINGS)),
            names: Names::default(),
            asked: Arc::default(),
            source: Mutex::default(),
            since: Timestamp::now(),
            services: RwLock::default(),
        }
    }

    /// Starts to watch, on a thread and on the runtime; nothing is done while there are no jobs.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(self: &Arc<Self>, runtime: &Handle) -> std::io::Result<()> {
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime.clone());
        for engine in &self.engines {
            runtime.spawn(events::listen(Arc::clone(self), engine.clone()));
        }
        watch::start(Arc::clone(self))
    }

    /// Looks after the containers of a job, too: of what it starts from now on nothing is missed. `services` are the cgroups of
    /// the machine's own services, `sensors` those in the kernel where there are any.
    pub fn add(
        &self,
        job: Arc<WatchedJob>,
        services: Vec<PathBuf>,
        sensors: Option<&Arc<KernelSensors>>,
    ) {
        *self.services.write().unwrap_or_else(PoisonError::into_inner) = services;
        // The monitor that bound it may have died while a process of its was stopped.
        let is_taken_over = job.started < self.since;
        self.lock_jobs().insert(job.id.clone(), job);
        self.follow(sensors);
        self.job_came.notify_waiters();
        self.asked.look_at_all(is_taken_over);
    }

    /// The containers of a job that was bound at `started`.
    pub fn of_job(
        &self,
        known: KnownContainers,
        started: Timestamp,
    ) -> Arc<killing::EngineContainers> {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Arc::new(killing::EngineContainers::new(known, self.engines.clone(), started, runtime))
    }

    /// The job has ended.
    pub fn remove(&self, id: &str) {
        self.lock_jobs().remove(id);
        self.follow(None);
        self.asked.something_happened();
    }

    /// The job of this id judges its own traffic only, from now on.
    pub fn narrow(&self, id: &str) {
        if let Some(job) = self.lock_jobs().get(id) {
            job.narrow();
        }
        self.follow(None);
    }

    /// A program in a container could not be judged: the next one like it is told.
    fn forget(&self, container: &ContainerKey) {
        if let source::Source::Kernel(sensors) =
            &*self.source.lock().unwrap_or_else(PoisonError::into_inner)
        {
            sensors.containers().forget(container);
        }
    }

    fn jobs(&self) -> Vec<Arc<WatchedJob>> {
        let mut jobs: Vec<_> = self.lock_jobs().values().cloned().collect();
        jobs.sort_by(|a, b| a.id.cmp(&b.id));
        jobs
    }

    fn lock_jobs(&self) -> MutexGuard<'_, HashMap<String, Arc<WatchedJob>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engines whose sockets are there.
    fn engines(&self) -> impl Iterator<Item = &Engine> {
        self.engines.iter().filter(|engine| engine.is_there())
    }

    /// What an engine says of the container; asked once, for it does not change. Blocks for as long as an engine may take.
    fn description(&self, id: &str) -> Option<Arc<Description>> {
        {
            let mut known = self.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = known.get(id) {
                return Some(Arc::clone(found));
            }
        }
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let json = on_a_thread(|| {
            self.engines().find_map(|engine| runtime.block_on(engine.container(id)).ok())
        })?;
        Some(self.remember(Description::from_json(&json)))
    }

    fn remember(&self, description: Description) -> Arc<Description> {
        let description = Arc::new(description);
        let mut known = self.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(description.id.clone(), Arc::clone(&description));
        description
    }

    /// Answers a finding about a container, once for what was found. `is_certain` is whether the container is known to be
    /// the job's: a job is not killed for what may be another's.
    fn answer(
        &self,
        job: &WatchedJob,
        container: &str,
        privileges: &[Privilege],
        finding: Finding,
        is_certain: bool,
    ) {
        {
            let key = (job.id.clone(), container.to_owned(), privileges.to_vec());
            let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
            if findings.get(&key).is_some() {
                return;
            }
            findings.insert(key, ());
        }
        if is_certain {
            job.responder.answer(finding);
        } else {
            job.responder.record_only(finding);
        }
    }
}
