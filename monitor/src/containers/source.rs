//! Who tells that a program was executed in a container: the sensors in the kernel, else the process connector, else nobody.

use super::asked::Asked;
use super::{Containers, WatchedJob};
use crate::watch::kernel::{ContainerObserver, KernelSensors};
use crate::watch::lifecycle::{ProcessChange, ProcessChangeReader, ProcessChanges};
use portcullis_common::event::EnforcementScope;
use portcullis_common::hook::with_causes;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Who tells.
#[derive(Debug, Default)]
pub(super) enum Source {
    /// Nobody, for there is no job.
    #[default]
    None,
    /// The sensors in the kernel; what a job makes by itself is stopped until it was judged.
    Kernel(Arc<KernelSensors>),
    /// The process connector, a moment later.
    Connector {
        /// Ends when it is dropped.
        _reader: ProcessChangeReader,
    },
    /// Nobody can.
    Missing,
}

/// How it is looked for containers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Pace {
    /// How often all processes are looked at when nothing happens. `None` without a job.
    pub(super) interval: Option<Duration>,
    /// Whether nobody tells of programs, so that it is looked when anything happens.
    pub(super) is_blind: bool,
}

/// Where programs are told: for what becomes a container without executing anything, and for events that were lost. A look
/// takes some milliseconds.
const INTERVAL_OF_KERNEL: Duration = Duration::from_secs(30);

/// The process connector drops events under load.
const INTERVAL_OF_CONNECTOR: Duration = Duration::from_secs(5);

/// Where nobody tells of programs.
const INTERVAL_OF_MISSING: Duration = Duration::from_millis(500);

impl Source {
    pub(super) fn pace(&self) -> Pace {
        let interval = match self {
            Self::None => None,
            Self::Kernel(_) => Some(INTERVAL_OF_KERNEL),
            Self::Connector { .. } => Some(INTERVAL_OF_CONNECTOR),
            Self::Missing => Some(INTERVAL_OF_MISSING),
        };
        Pace { interval, is_blind: matches!(self, Self::Missing) }
    }
}

impl Containers {
    /// The jobs have changed: who tells is told. From now on nothing that these jobs make is missed. `sensors` are those in the
    /// kernel, where they are not known yet.
    pub(super) fn follow(&self, sensors: Option<&Arc<KernelSensors>>) {
        let jobs = self.jobs();
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let sensors = match &*source {
            Source::Kernel(known) => Some(Arc::clone(known)),
            Source::None | Source::Connector { .. } | Source::Missing => sensors.cloned(),
        };
        if jobs.is_empty() {
            if let Some(sensors) = &sensors {
                sensors.containers().end();
            }
            *source = Source::None;
            return;
        }
        if let Some(sensors) = sensors {
            sensors
                .observe_containers(Arc::<Asked>::clone(&self.asked) as Arc<dyn ContainerObserver>);
            match watch(&sensors, &jobs) {
                Ok(()) => {
                    *source = Source::Kernel(sensors);
                    return;
                }
                Err(problem) => tracing::warn!(problem, "containers are not told by BPF"),
            }
        }
        if matches!(*source, Source::None | Source::Kernel(_)) {
            *source = connector(&self.asked).unwrap_or_else(|problem| {
                tracing::warn!(problem, "programs in containers are looked for twice a second");
                Source::Missing
            });
        }
    }
}

fn watch(sensors: &KernelSensors, jobs: &[Arc<WatchedJob>]) -> Result<(), String> {
    // The jobs of this host see the same host.
    let first = jobs.first().ok_or("there is no job")?;
    let host = first.reference.container_host().ok_or("the Worker's namespaces are not known")?;
    let mounts: Vec<u32> = super::judging::not_contained(jobs)
        .iter()
        .filter_map(|name| super::facts::number_of(name))
        .collect();
    // With several runners, containers of daemons can be anybody's: those of a cluster's other pods must not wait for us.
    let is_holding_all = jobs.iter().all(|job| job.scope() == EnforcementScope::Host);
    sensors.containers().begin(&host, &mounts, is_holding_all).map_err(|error| with_causes(&error))
}

fn connector(asked: &Arc<Asked>) -> Result<Source, String> {
    let changes = ProcessChanges::subscribe_on_machine().map_err(|error| with_causes(&error))?;
    let asked = Arc::clone(asked);
    let reader = changes.start(move |change| {
        if let ProcessChange::Exec { pid } = change {
            asked.executed(pid);
        }
    });
    reader.map(|reader| Source::Connector { _reader: reader }).map_err(|error| with_causes(&error))
}
