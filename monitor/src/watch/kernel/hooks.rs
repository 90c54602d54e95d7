//! The hooks of one job, attached beside what else its start needs.
//!
//! The kernel attaches nothing to a cgroup while processes are moved (`cgroup_mutex`), and moving takes as long as the rest of
//! a job's start. Loading takes milliseconds, too, so a set of hooks is kept loaded for the next job.

use crate::cgroup::JobCgroup;
use portcullis_common::hook::with_causes;
use portcullis_monitor_bpf::lifecycle::EscapeBarrier;
use portcullis_monitor_bpf::network::{LoadedHooks, NetworkHooks};
use portcullis_monitor_bpf::{Lifecycle, SensorError};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

/// What loads hooks, and those that are loaded for the next job.
#[derive(Debug)]
pub(super) struct HooksOfJobs {
    lifecycle: Arc<Lifecycle>,
    spare: Mutex<Option<LoadedHooks>>,
}

impl HooksOfJobs {
    pub(super) fn new(lifecycle: Arc<Lifecycle>) -> Self {
        Self { lifecycle, spare: Mutex::default() }
    }

    /// Loads hooks for the next job, unless there are some. A failure is the next job's to tell: it tries again.
    pub(super) fn prepare(&self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_none() {
            *spare = LoadedHooks::load(&self.lifecycle).ok();
        }
    }

    fn take(&self) -> Result<LoadedHooks, SensorError> {
        // Whoever prepares some just now is waited for.
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        spare.map_or_else(|| LoadedHooks::load(&self.lifecycle), Ok)
    }

    /// Attaches what the job with the token `job` needs, on a thread of its own.
    pub(super) fn attach(
        self: &Arc<Self>,
        job: u64,
        group: &JobCgroup,
        not_judged: Vec<PathBuf>,
    ) -> Hooks {
        let (hooks, group) = (Arc::clone(self), group.clone());
        let work = move || Attached {
            network: File::open(group.group().directory())
                .map_err(|error| error.to_string())
                .and_then(|directory| {
                    let attached =
                        hooks.take().and_then(|loaded| loaded.attach(job, directory.as_fd()));
                    attached.map_err(|error| with_causes(&error))
                }),
            barriers: hooks.barriers(&not_judged),
        };
        let thread = Builder::new().name("attach-hooks".to_owned()).spawn(work);
        match thread {
            Ok(thread) => Hooks { attaching: Mutex::new(Some(thread)), attached: OnceLock::new() },
            Err(error) => Hooks {
                attaching: Mutex::default(),
                attached: OnceLock::from(Attached::failed(&error.to_string())),
            },
        }
    }

    /// A cgroup that is gone by now needs none.
    fn barriers(&self, groups: &[PathBuf]) -> Result<Vec<EscapeBarrier>, String> {
        let directories = groups.iter().filter_map(|group| File::open(group).ok());
        let attach = |directory: File| self.lifecycle.refuse_escaped(directory.as_fd());
        directories.map(attach).collect::<Result<_, _>>().map_err(|error| with_causes(&error))
    }
}

/// The hooks of one job, which may be on their way. Dropping it detaches them.
#[derive(Debug)]
pub(super) struct Hooks {
    attaching: Mutex<Option<JoinHandle<Attached>>>,
    attached: OnceLock<Attached>,
}

#[derive(Debug)]
struct Attached {
    /// Hooks on the job's cgroup, or why there are none.
    network: Result<NetworkHooks, String>,
    /// Keep what has left the job from making sockets where nobody judges; or why not.
    barriers: Result<Vec<EscapeBarrier>, String>,
}

impl Attached {
    fn failed(reason: &str) -> Self {
        Self { network: Err(reason.to_owned()), barriers: Err(reason.to_owned()) }
    }
}

impl Hooks {
    /// Waits until they are attached.
    fn attached(&self) -> &Attached {
        self.attached.get_or_init(|| {
            let thread = self.attaching.lock().unwrap_or_else(PoisonError::into_inner).take();
            let attached = thread.and_then(|thread| thread.join().ok());
            attached.unwrap_or_else(|| {
                Attached::failed("attaching them panicked; the log has the reason")
            })
        })
    }

    /// Those on the job's cgroup.
    pub(super) fn network(&self) -> Result<&NetworkHooks, &str> {
        self.attached().network.as_ref().map_err(String::as_str)
    }

    /// Why something of the job is not hooked.
    pub(super) fn problem(&self) -> Option<&str> {
        let attached = self.attached();
        let barriers = attached.barriers.as_ref().err();
        attached.network.as_ref().err().or(barriers).map(String::as_str)
    }
}
