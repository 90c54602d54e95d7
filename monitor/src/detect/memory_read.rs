//! Runner-Worker-Memory-Read: somebody else's access to the memory of `Runner.Worker`, `Runner.Listener` or the monitor.
//!
//! The Worker's memory holds every secret of the job, masked or not, whether a step was given it or not.

use super::{Finding, name};
use crate::caller::ProcessKey;
use portcullis_common::event::{DetectionType, Process};
use portcullis_common::policy::LockdownDetection;

/// Whose memory it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MemoryTarget {
    /// The job's `Runner.Worker`.
    Worker,
    /// The `Runner.Listener` that started it.
    Listener,
    /// This monitor.
    Monitor,
}

/// How the memory was reached for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MemoryAccessKind {
    /// `/proc/PID/mem` was opened or read, by whatever path and procfs mount.
    ProcMem,
    /// `process_vm_readv(2)`, 64 or 32 bits.
    ProcessVmRead,
    /// `process_vm_writev(2)`, 64 or 32 bits.
    ProcessVmWrite,
    /// `ptrace(2)`: attach or seize.
    Ptrace,
    /// `pidfd_getfd(2)`: a descriptor of the target was copied.
    PidfdGetfd,
    /// `perf_event_open(2)`: samples hold pieces of the target's stack.
    PerfEvents,
    /// The diagnostic socket or debugger pipe of the target's .NET runtime was used.
    RuntimeDiagnostics,
    /// `/proc/PID/maps` and its like: where the memory is, not what is in it.
    Maps,
    /// `/proc/PID/environ`: what the target was started with.
    Environment,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessOutcome {
    /// Nothing was read: the kernel refused, or the reader was stopped before it got a byte.
    Prevented,
    /// It was seen, and whether anything was read is not known.
    Unknown,
}

/// An access, as a sensor saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryAccess {
    /// Who reached for it.
    pub reader: ProcessKey,
    /// The same as far as it could be found out, for the evidence.
    pub process: Process,
    /// Whose memory.
    pub target: MemoryTarget,
    /// The pid of the target.
    pub target_pid: u32,
    /// How.
    pub kind: MemoryAccessKind,
    /// What became of it.
    pub outcome: AccessOutcome,
}

/// The processes that may look into each other's memory; everybody else is judged, inside of the job or not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TrustedReaders {
    /// This monitor: it protects the Worker by ptrace, and reads what processes are.
    pub monitor: ProcessKey,
    /// The job's Worker.
    pub worker: ProcessKey,
    /// Its Listener.
    pub listener: Option<ProcessKey>,
}

/// Judges an access.
///
/// Reading one's own memory is none. The runner's own two processes may read each other, not the monitor. Where memory is
/// (`maps`) and what a process was started with (`environ`) is read by `ps e`, `lsof` and `pmap` all day and holds no secret
/// of a job: no finding.
pub fn memory_read(access: &MemoryAccess, trusted: &TrustedReaders) -> Option<Finding> {
    let reads_content =
        !matches!(access.kind, MemoryAccessKind::Maps | MemoryAccessKind::Environment);
    let is_runner = access.reader == trusted.worker || Some(access.reader) == trusted.listener;
    let is_own = access.reader.pid == access.target_pid;
    let is_trusted = access.reader == trusted.monitor
        || is_own
        || is_runner && access.target != MemoryTarget::Monitor;
    if !reads_content || is_trusted {
        return None;
    }
    let target = match access.target {
        MemoryTarget::Worker => "Runner.Worker",
        MemoryTarget::Listener => "Runner.Listener",
        MemoryTarget::Monitor => "the monitor",
    };
    let by = match access.kind {
        MemoryAccessKind::ProcMem => "/proc/PID/mem",
        MemoryAccessKind::ProcessVmRead => "process_vm_readv",
        MemoryAccessKind::ProcessVmWrite => "process_vm_writev",
        MemoryAccessKind::Ptrace => "ptrace",
        MemoryAccessKind::PidfdGetfd => "pidfd_getfd",
        MemoryAccessKind::PerfEvents => "perf_event_open",
        MemoryAccessKind::RuntimeDiagnostics => "the diagnostics of its .NET runtime",
        MemoryAccessKind::Maps | MemoryAccessKind::Environment => return None,
    };
    let outcome = match access.outcome {
        AccessOutcome::Prevented => "it was stopped before a byte was read",
        AccessOutcome::Unknown => "whether it got anything is not known",
    };
    let evidence = format!(
        "{} reached for the memory of {target} (pid {}) by {by}; {outcome}",
        name(&access.process),
        access.target_pid
    );
    let detection = DetectionType::Lockdown(LockdownDetection::RunnerWorkerMemoryRead);
    Some(Finding::new(detection, &evidence, Some(access.process.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::testing::process;

    const fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_time: pid as u64 * 10 }
    }

    const TRUSTED: TrustedReaders =
        TrustedReaders { monitor: key(1), worker: key(100), listener: Some(key(90)) };

    fn access(reader: u32, target: MemoryTarget, kind: MemoryAccessKind) -> MemoryAccess {
        MemoryAccess {
            reader: key(reader),
            process: process(reader, "/usr/bin/python3.11"),
            target,
            target_pid: match target {
                MemoryTarget::Worker => 100,
                MemoryTarget::Listener => 90,
                MemoryTarget::Monitor => 1,
            },
            kind,
            outcome: AccessOutcome::Prevented,
        }
    }

    #[test]
    fn whoever_reads_memory_is_found_whatever_the_way_and_the_target() {
        use MemoryAccessKind::*;
        for target in [MemoryTarget::Worker, MemoryTarget::Listener, MemoryTarget::Monitor] {
            for kind in [
                ProcMem,
                ProcessVmRead,
                ProcessVmWrite,
                Ptrace,
                PidfdGetfd,
                PerfEvents,
                RuntimeDiagnostics,
            ] {
                let found = memory_read(&access(500, target, kind), &TRUSTED).unwrap();
                assert!(
                    found.evidence.contains("/usr/bin/python3.11 (pid 500)"),
                    "{}",
                    found.evidence
                );
                assert_eq!(found.process.unwrap().pid, Some(500));
            }
        }
    }

    #[test]
    fn the_runner_and_the_monitor_do_what_they_must() {
        let worker = MemoryTarget::Worker;
        for reader in [1, 90, 100] {
            assert_eq!(
                memory_read(&access(reader, worker, MemoryAccessKind::ProcMem), &TRUSTED),
                None
            );
        }
        let at_monitor = access(100, MemoryTarget::Monitor, MemoryAccessKind::Ptrace);
        assert!(memory_read(&at_monitor, &TRUSTED).is_some());
        // A recycled pid of a trusted process is not trusted.
        let mut recycled = access(90, worker, MemoryAccessKind::ProcMem);
        recycled.reader.start_time += 1;
        assert!(memory_read(&recycled, &TRUSTED).is_some());
    }

    #[test]
    fn looking_at_processes_is_no_reading_of_memory() {
        for kind in [MemoryAccessKind::Maps, MemoryAccessKind::Environment] {
            assert_eq!(memory_read(&access(500, MemoryTarget::Worker, kind), &TRUSTED), None);
        }
    }
}
