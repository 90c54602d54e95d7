//! The watchers of one job whose facts are judged by [`crate::detect`]: executed programs, and shells.

use super::shell_watch::{self, Descent, LookSoon, Looks, Watched};
use super::source_watch;
use super::{memory_watch, mount_watch};
use crate::caller::{ProcFs, ProcessTable, Worker};
use crate::cgroup::JobCgroup;
use crate::detect::fileless_execution::{Execution, fileless_execution};
use crate::detect::sudo_use::{Credentials, sudo_use};
use crate::respond::Responder;
use crate::watch::attribution::{ProcessSensor, ProcfsSensor};
use crate::watch::kernel::WatchedJob;
use crate::watch::lifecycle::{JobProcesses, ProcessChange, ProcessChangeReader, ProcessChanges};
use crate::watch::programs::executable_links;
use portcullis_common::event::{Feature, FeatureState, Process};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::{LockdownDetection, LockdownMode};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

/// What detectors need of their job.
#[derive(Debug)]
pub struct Parts {
    /// The job's Worker.
    pub worker: Arc<Worker>,
    /// The job's group.
    pub group: Option<JobCgroup>,
    /// Socket tables and snapshots of processes.
    pub sensor: Arc<ProcfsSensor>,
    /// Who did it.
    pub processes: Arc<dyn ProcessSensor>,
    /// What the sensors in the kernel watch for this job, where there are any.
    pub watched: Option<Arc<WatchedJob>>,
    /// Where findings go.
    pub responder: Arc<Responder>,
    /// The workspace whose source files are watched, as the Worker sees it.
    pub workspace: Option<String>,
    /// The monitor's own directories and files.
    pub own_files: Vec<PathBuf>,
    /// What is done with executed programs.
    pub executed: Arc<Executed>,
    /// Where looks at the job's shells are asked for.
    pub looks: Looks,
}

/// Running detectors; they end with the job's Worker, or when this is dropped.
#[derive(Debug, Default)]
pub struct Detectors {
    changes: Arc<OnceLock<ProcessChangeReader>>,
}

impl Detectors {
    /// Starts them. To follow a job's processes all of `/proc` is read once, so that is done beside what the hook waits
    /// for; `failed` is told what does not work.
    pub fn start(parts: Parts, failed: impl Fn(String) + Clone + Send + 'static) -> Self {
        let changes = Arc::<OnceLock<ProcessChangeReader>>::default();
        let late = Arc::downgrade(&changes);
        let spawned = thread::Builder::new().name("detectors".to_owned()).spawn(move || {
            let (reader, problems) = run(parts, failed.clone());
            problems.into_iter().for_each(failed);
            if let (Some(reader), Some(changes)) = (reader, late.upgrade()) {
                // Set once, here.
                let _ = changes.set(reader);
            }
        });
        if let Err(error) = spawned {
            tracing::error!(error = %error, "the thread that starts the detectors can't be started");
        }
        Self { changes }
    }

    /// How often events of processes were lost because they came too fast.
    pub fn overruns(&self) -> u64 {
        self.changes.get().map_or(0, ProcessChangeReader::overruns)
    }
}

fn run(
    parts: Parts,
    failed: impl Fn(String) + Clone + Send + 'static,
) -> (Option<ProcessChangeReader>, Vec<String>) {
    let Parts {
        worker,
        group,
        sensor,
        processes: writers,
        watched,
        responder,
        workspace,
        own_files,
        executed,
        looks,
    } = parts;
    let mut problems = Vec::new();
    if let Some(workspace) = workspace {
        let watched = source_watch::Watched {
            worker: Arc::clone(&worker),
            sensor: writers,
            responder: Arc::clone(&responder),
        };
        if let Err(error) = source_watch::start(watched, &workspace, failed.clone()) {
            problems.push(format!("overwritten source files can't be noticed: {error}"));
        }
    }
    let mounts = mount_watch::Watched {
        worker: Arc::clone(&worker),
        responder: Arc::clone(&responder),
        own: own_files,
    };
    if let Err(error) = mount_watch::start(mounts) {
        problems.push(format!("mounts over the monitor's directories can't be noticed: {error}"));
    }
    let has_guard = watched.as_ref().is_some_and(|watched| watched.sensors().guard().is_ok());
    if !has_guard {
        let watched = memory_watch::Watched {
            worker: Arc::clone(&worker),
            sensor: Arc::clone(&sensor),
            responder: Arc::clone(&responder),
        };
        memory_watch::start(watched, failed.clone());
    }
    let mut reader = None;
    let processes = if let Some(watched) = watched {
        // They tell the job's observer of programs, too.
        Descent::Kernel(watched)
    } else {
        let processes = Arc::<Mutex<Option<JobProcesses>>>::default();
        reader = follow(&worker, &sensor, executed, &processes)
                .map_err(|problem| {
                    problems.push(format!(
                        "executed programs can't be followed ({problem}): use of sudo and programs without a file are not noticed, shells a second later"
                    ));
                })
                .ok();
        Descent::Connector(processes)
    };
    let watched = Watched { worker, group, sensor, processes, responder };
    if let Err(error) = shell_watch::start(watched, looks) {
        problems.push(format!("reverse shells can't be looked for: {error}"));
    }
    (reader, problems)
}

/// Follows the job's processes by the process connector.
fn follow(
    worker: &Worker,
    sensor: &Arc<ProcfsSensor>,
    executed: Arc<Executed>,
    processes: &Arc<Mutex<Option<JobProcesses>>>,
) -> Result<ProcessChangeReader, String> {
    let changes = ProcessChanges::subscribe_on_machine().map_err(|error| with_causes(&error))?;
    let followed = JobProcesses::follow(worker.key(), Arc::clone(sensor.inspector()));
    *processes.lock().unwrap_or_else(PoisonError::into_inner) = Some(followed);
    let processes = Arc::clone(processes);
    changes
        .start(move |change: ProcessChange| {
            let pid = {
                let mut processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                processes.as_mut().and_then(|processes| processes.track(change))
            };
            if let Some(pid) = pid {
                executed.program(pid);
            }
        })
        .map_err(|error| with_causes(&error))
}

/// Judges programs that processes of a job have executed. Most cost two look-ups in procfs.
#[derive(Debug)]
pub struct Executed {
    /// The user that the job runs as.
    pub job_uid: u32,
    /// Snapshots of processes.
    pub sensor: Arc<ProcfsSensor>,
    /// Where findings go.
    pub responder: Arc<Responder>,
    /// Asks for looks at the job's shells.
    pub look_soon: LookSoon,
}

impl Executed {
    /// A process of the job has executed a program.
    pub fn program(&self, pid: u32) {
        self.look_soon.executed();
        let Some((links, is_memfd)) = executable_links(pid) else { return };
        let uid = effective_uid(pid);
        let is_other_user = self.job_uid != 0 && uid.is_some_and(|uid| uid != self.job_uid);
        if links > 0 && !is_other_user {
            return;
        }
        let Some(process) = self.process(pid) else { return };
        let parent_uid = ProcFs.process(pid).and_then(|entry| effective_uid(entry.parent));
        let execution = Execution { process: process.clone(), links, is_memfd };
        let credentials = Credentials {
            process,
            job_uid: self.job_uid,
            effective_uid: uid.unwrap_or(self.job_uid),
            parent_uid,
        };
        let findings = [fileless_execution(&execution), sudo_use(&credentials)];
        for finding in findings.into_iter().flatten() {
            self.responder.answer(finding);
        }
    }

    fn process(&self, pid: u32) -> Option<Process> {
        let key = ProcFs.key(pid)?;
        self.sensor.inspector().inspect(key).map(|process| Process::clone(&process))
    }
}

/// The effective user of a process: the owner of its directory in procfs.
fn effective_uid(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|directory| directory.uid())
}

/// What the posture says of detection: how shells are found, and whether all that Lockdown Mode lists can be found.
/// `sensors` are those of the job.
pub fn features(lockdown: &LockdownMode, sensors: &[Feature]) -> Vec<Feature> {
    let mut features = vec![shell_feature(lockdown, sensors)];
    if lockdown.enabled {
        let missing: Vec<String> = lockdown
            .detections
            .iter()
            .filter(|detection| !is_detectable(**detection, sensors))
            .map(|detection| crate::respond::type_name((*detection).into()))
            .collect();
        features.push(if missing.is_empty() {
            Feature {
                name: "lockdown-mode".to_owned(),
                state: FeatureState::Active,
                reason: "a listed detection kills the job".to_owned(),
            }
        } else {
            Feature {
                name: "lockdown-mode".to_owned(),
                state: FeatureState::Degraded,
                reason: format!("this monitor has no sensor for {}", missing.join(", ")),
            }
        });
    }
    features
}

/// A shell is stopped before it can do anything where the kernel's side sees both what processes read and what connections they
/// have, and only where it ends the job.
fn shell_feature(lockdown: &LockdownMode, sensors: &[Feature]) -> Feature {
    let detection = LockdownDetection::ReverseShell.into();
    let ends = crate::respond::decide(detection, lockdown) == crate::respond::Decision::Lockdown;
    let is_active = |name: &str| {
        let mut of_name = sensors.iter().filter(|sensor| sensor.name == name).peekable();
        of_name.peek().is_some() && of_name.all(|sensor| sensor.state == FeatureState::Active)
    };
    let (state, reason) = if ends && is_active("sensor-memory") && is_active("sensor-network") {
        (
            FeatureState::Active,
            "BPF: what may be a shell at the end of a connection is stopped when it has read from there, until it was judged",
        )
    } else {
        (
            FeatureState::Degraded,
            "shells are found by procfs a moment after they have started: a first command of their peer may run",
        )
    };
    Feature { name: "sensor-reverse-shell".to_owned(), state, reason: reason.to_owned() }
}

/// Whether there is a sensor for the detection.
fn is_detectable(detection: LockdownDetection, sensors: &[Feature]) -> bool {
    match detection {
        // By procfs, with every kernel.
        LockdownDetection::ReverseShell | LockdownDetection::PrivilegedContainer => true,
        LockdownDetection::RunnerWorkerMemoryRead => sensors
            .iter()
            .any(|sensor| sensor.name == "sensor-memory" && sensor.state != FeatureState::Missing),
    }
}
