//! Programs that are executed in containers, as the kernel tells them; some are stopped until somebody lets them go on.

use super::{KernelSensors, Shared, wake};
use crate::caller::{ProcFs, ProcessKey};
use portcullis_monitor_bpf::ContainerWatch;
use portcullis_monitor_bpf::event::{Contained, ContainerKey, Subject};
use std::fmt;
use std::sync::Arc;

/// Whoever is told of programs in containers.
pub trait ContainerObserver: fmt::Debug + Send + Sync {
    /// A program is executed in a container in a way that was not told before. Called on the thread that reads the kernel's
    /// events: must be quick.
    fn program(&self, program: ContainedProgram);
}

/// A program in a container. One that was stopped goes on when this is dropped.
#[derive(Debug)]
pub struct ContainedProgram {
    /// The process.
    pub process: ProcessKey,
    /// What the kernel's side remembers it by.
    pub container: ContainerKey,
    /// The token of the job that it descends from.
    pub job: Option<u64>,
    is_held: bool,
}

impl ContainedProgram {
    /// Lets it go on, when it was stopped.
    pub fn release(&mut self) {
        // What was killed meanwhile needs no waking, and its number may be another's.
        if std::mem::take(&mut self.is_held) && ProcFs.is_alive(self.process) {
            wake(self.process.pid);
        }
    }
}

impl Drop for ContainedProgram {
    fn drop(&mut self) {
        self.release();
    }
}

impl KernelSensors {
    /// Where it is set what is told of containers.
    pub fn containers(&self) -> &ContainerWatch {
        self.lifecycle.containers()
    }

    /// Who is told. The first one stays it.
    pub fn observe_containers(&self, observer: Arc<dyn ContainerObserver>) {
        self.shared.containers.get_or_init(|| observer);
    }
}

impl Shared {
    pub(super) fn contained(&self, subject: &Subject, contained: Contained) {
        let process = ProcessKey { pid: subject.pid, start_time: subject.start_ticks() };
        let Contained { container, is_held } = contained;
        // Without an observer it is dropped here, and goes on.
        let job = Some(subject.job).filter(|job| *job != 0);
        let program = ContainedProgram { process, container, job, is_held };
        if let Some(observer) = self.containers.get() {
            observer.program(program);
        }
    }
}

/// Lets a process go on that a monitor before this one had stopped.
pub fn wake_stopped(process: ProcessKey) {
    if super::streams::is_stopped(process.pid) && ProcFs.is_alive(process) {
        wake(process.pid);
    }
}
