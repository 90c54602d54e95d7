//! The sensors of one job: gathered in one place, and what they find made into events and answers.

use super::host::Host;
use super::shell_watch::LookSoon;
use crate::caller::{ProcFs, ProcessKey, Worker};
use crate::cgroup::{Hierarchy, JobCgroup};
use crate::detect::cgroup_escape::{Membership, cgroup_escape};
use crate::detect::fileless_execution::{Execution, fileless_execution};
use crate::detect::memory_read::{
    AccessOutcome, MemoryAccess, MemoryAccessKind, MemoryTarget, TrustedReaders, memory_read,
};
use crate::detect::monitor_tampering::{Tampering, TamperingFact, monitor_tampering};
use crate::detect::sudo_use::{Credentials, sudo_use};
use crate::record::recorder::Recorder;
use crate::respond::Responder;
use crate::watch::attribution::{ProcessSensor, ProcfsSensor};
use crate::watch::backend::fallback_features;
use crate::watch::kernel::{BpfSensor, JobToWatch, KernelObserver, Unusual, WatchedJob};
use nix::sys::signal::Signal;
use portcullis_common::event::{DetectionType, EnforcementScope, Feature, Process};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::{LockdownDetection, LockdownMode};
use portcullis_monitor_bpf::event::{Access, AccessWay, Escape};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Readers of which an access of each kind is remembered, so that a loop of reads is one finding.
const REMEMBERED_READERS: usize = 4_096;

/// The sensors of one job.
#[derive(Debug)]
pub struct JobSensors {
    /// The socket tables of the Worker's network namespace, and processes by procfs.
    pub sockets: Arc<ProcfsSensor>,
    /// Who did it.
    pub processes: Arc<dyn ProcessSensor>,
    /// What the sensors in the kernel watch for this job.
    pub watched: Option<Arc<WatchedJob>>,
    /// The mechanisms of this host.
    of_host: Vec<Feature>,
}

impl JobSensors {
    /// The mechanisms as they are for this job. Waits until all that watch it do.
    pub fn features(&self) -> Vec<Feature> {
        let of_job = self.watched.as_ref().map(|watched| watched.features()).unwrap_or_default();
        [self.of_host.clone(), of_job].concat()
    }
}

/// Gathers the sensors of a job, and begins to watch where the kernel has any. `sockets` works on every kernel.
pub fn job_sensors(
    host: &Host,
    worker: &Worker,
    group: Option<&JobCgroup>,
    lockdown: &LockdownMode,
    scope: EnforcementScope,
    sockets: Arc<ProcfsSensor>,
    observer: impl FnOnce(&JobCgroup) -> Arc<dyn KernelObserver>,
) -> JobSensors {
    let without = |sockets: Arc<ProcfsSensor>, reason: &str| JobSensors {
        processes: Arc::<ProcfsSensor>::clone(&sockets) as Arc<dyn ProcessSensor>,
        sockets,
        watched: None,
        of_host: fallback_features(reason),
    };
    let sensors = match host.sensors.kernel() {
        Ok(sensors) => sensors,
        Err(reason) => return without(sockets, reason),
    };
    let Some(group) = group else {
        return without(sockets, "the job has no cgroup of its own");
    };
    let detection = DetectionType::Lockdown(LockdownDetection::RunnerWorkerMemoryRead);
    let job = JobToWatch {
        worker: worker.key(),
        listener: worker.listener(),
        is_reader_ended: crate::respond::decide(detection, lockdown)
            == crate::respond::Decision::Lockdown,
        not_judged: host.not_judged(scope),
    };
    match sensors.watch(&job, group, observer(group)) {
        Ok(watched) => {
            let watched = Arc::new(watched);
            let sensor = BpfSensor::new(Arc::clone(&watched), Arc::clone(&sockets));
            let of_host = sensors.features();
            JobSensors { processes: Arc::new(sensor), sockets, watched: Some(watched), of_host }
        }
        Err(error) => without(sockets, &with_causes(&error)),
    }
}

/// Makes events and findings of what the kernel tells.
#[derive(Debug)]
pub struct JobObserver {
    /// Where events go.
    pub recorder: Arc<Recorder>,
    /// Where findings go.
    pub responder: Arc<Responder>,
    /// Asks for looks at the job's shells.
    pub look_soon: LookSoon,
    /// The user of the job's Worker.
    pub job_uid: u32,
    /// Who may read.
    pub trusted: TrustedReaders,
    /// The job's group.
    pub group: JobCgroup,
    /// Where groups are looked up.
    pub hierarchy: Option<Hierarchy>,
    /// Who has reached for what already.
    pub seen: Mutex<HashSet<(ProcessKey, u32, MemoryAccessKind)>>,
}

impl JobObserver {
    /// The group that a process is in now, by its path; by its inode when it has ended.
    fn group_of(&self, process: &Process, escape: Escape) -> PathBuf {
        let alive = process.pid.filter(|pid| {
            let key = ProcFs.key(*pid);
            key.is_some_and(|key| Some(key.start_time) == process.start_time)
        });
        let hierarchy = self.hierarchy.as_ref();
        let found = alive.and_then(|pid| hierarchy?.group_of(pid).ok());
        found.map_or_else(
            || PathBuf::from(format!("the group with the inode {}", escape.cgroup)),
            |group| group.identity().path.clone(),
        )
    }
}

impl KernelObserver for JobObserver {
    fn executed(&self, process: Process) {
        self.look_soon.executed();
        self.recorder.process(process);
    }

    fn unusual(&self, execution: Unusual) {
        let Unusual { process, links, effective_uid, uid_before } = execution;
        let is_memfd =
            links == 0 && process.exe.as_deref().is_some_and(|exe| exe.starts_with("/memfd:"));
        let execution = Execution { process: process.clone(), links: links.into(), is_memfd };
        let credentials =
            Credentials { process, job_uid: self.job_uid, effective_uid, parent_uid: uid_before };
        let findings = [fileless_execution(&execution), sudo_use(&credentials)];
        for finding in findings.into_iter().flatten() {
            self.responder.answer(finding);
        }
    }

    fn escaped(&self, process: Process, escape: Escape, mover: Option<Process>) {
        let membership = Membership {
            now: self.group_of(&process, escape),
            job: self.group.identity().path.clone(),
            moved_by: mover,
            process,
        };
        let pid = membership.process.pid;
        if let Some(finding) = cgroup_escape(&membership) {
            self.responder.answer(finding);
        }
        // Back to where rules and hooks take it for the job's. Sockets that it has made outside stay what they are.
        if let Some(pid) = pid
            && let Err(error) = self.group.group().add(pid)
        {
            tracing::warn!(pid, error = %with_causes(&error), "a process that left its job's cgroup can't be moved back");
        }
    }

    fn signalled(&self, process: Process, signal: u32) {
        let named = i32::try_from(signal).ok().and_then(|number| Signal::try_from(number).ok());
        let signal = named.map_or_else(|| format!("signal {signal}"), |known| known.to_string());
        let tampering = Tampering::Signal { signal };
        let fact = TamperingFact { tampering, process: Some(process), is_of_job: Some(true) };
        if let Some(finding) = monitor_tampering(&fact) {
            self.responder.answer(finding);
        }
    }

    fn held(&self, process: ProcessKey) {
        self.look_soon.held(process);
    }

    fn accessed(&self, reader: ProcessKey, process: Process, access: Access) {
        let kind = match access.way {
            AccessWay::MemoryFile | AccessWay::IoUring => MemoryAccessKind::ProcMem,
            AccessWay::Ptrace => MemoryAccessKind::Ptrace,
            AccessWay::VmRead => MemoryAccessKind::ProcessVmRead,
            AccessWay::VmWrite => MemoryAccessKind::ProcessVmWrite,
            AccessWay::Descriptor => MemoryAccessKind::PidfdGetfd,
            AccessWay::Perf => MemoryAccessKind::PerfEvents,
        };
        let target = if access.target == self.trusted.monitor.pid {
            MemoryTarget::Monitor
        } else if access.target == self.trusted.worker.pid {
            MemoryTarget::Worker
        } else {
            MemoryTarget::Listener
        };
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.len() >= REMEMBERED_READERS {
                seen.clear();
            }
            if !seen.insert((reader, access.target, kind)) {
                return;
            }
        }
        let access = MemoryAccess {
            reader,
            process,
            target,
            target_pid: access.target,
            kind,
            outcome: if access.is_ended {
                AccessOutcome::Prevented
            } else {
                AccessOutcome::Unknown
            },
        };
        if let Some(finding) = memory_read(&access, &self.trusted) {
            self.responder.answer(finding);
        }
    }
}
