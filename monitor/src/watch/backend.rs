//! Which sensors this host has: those in the kernel where it allows them, procfs and netlink everywhere else.

use super::kernel::KernelSensors;
use crate::config::SensorBackend;
use portcullis_common::event::{Feature, FeatureState};
use portcullis_common::hook::with_causes;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

/// The sensors of this host; those in the kernel are loaded on a thread of their own, because that takes half a second and
/// the socket should listen meanwhile.
#[derive(Debug)]
pub struct Sensors {
    loading: Mutex<Option<JoinHandle<Loaded>>>,
    loaded: OnceLock<Loaded>,
}

/// The sensors in the kernel, or why there are none.
type Loaded = Result<Arc<KernelSensors>, String>;

impl Sensors {
    /// Begins to load what `backend` asks for.
    pub fn load(backend: SensorBackend) -> Self {
        let loaded = OnceLock::new();
        if backend == SensorBackend::Procfs {
            // Just made: nobody has set it.
            let _ = loaded.set(Err("sensors.backend of monitor.toml is \"procfs\"".to_owned()));
            return Self { loading: Mutex::new(None), loaded };
        }
        let thread = Builder::new()
            .name("load-sensors".to_owned())
            .spawn(|| KernelSensors::start().map(Arc::new).map_err(|error| with_causes(&error)));
        match thread {
            Ok(thread) => Self { loading: Mutex::new(Some(thread)), loaded },
            Err(error) => {
                let _ = loaded.set(Err(error.to_string()));
                Self { loading: Mutex::new(None), loaded }
            }
        }
    }

    /// The sensors in the kernel, or why there are none. Waits until they are loaded.
    pub fn kernel(&self) -> Result<&Arc<KernelSensors>, &str> {
        let loaded = self.loaded.get_or_init(|| {
            let thread = self.loading.lock().unwrap_or_else(PoisonError::into_inner).take();
            let loaded = thread.map(JoinHandle::join);
            let loaded = match loaded {
                Some(Ok(loaded)) => loaded,
                Some(Err(_)) => Err("loading them panicked; the log has the reason".to_owned()),
                None => Err("they were not loaded".to_owned()),
            };
            if let Err(reason) = &loaded {
                tracing::warn!(reason, "no BPF sensors; processes are found by procfs");
            }
            loaded
        });
        loaded.as_ref().map_err(String::as_str)
    }

    /// The mechanisms as they are on this host.
    pub fn features(&self) -> Vec<Feature> {
        match self.kernel() {
            Ok(sensors) => sensors.features(),
            Err(reason) => fallback_features(reason),
        }
    }
}

/// What there is without the sensors in the kernel, and what is weaker.
pub fn fallback_features(reason: &str) -> Vec<Feature> {
    let feature = |name: &str, state, what: &str| Feature {
        name: name.to_owned(),
        state,
        reason: format!("{what} (no BPF: {reason})"),
    };
    vec![
        feature(
            "sensor-process",
            FeatureState::Degraded,
            "processes are found by procfs and sock_diag: one that ends at once may be known by its user only",
        ),
        match (crate::sys::fanotify::opened_on_procfs(), super::audit::probe()) {
            (Ok(_), Ok(())) => feature(
                "sensor-memory",
                FeatureState::Degraded,
                "fanotify and audit: who opens /proc/PID/mem of a runner, traces it or copies its memory by process_vm_readv is told, and ended a moment later; other mounts of procfs, pidfd_getfd, perf_event_open and io_uring by root are not seen",
            ),
            (Ok(_), Err(error)) => feature(
                "sensor-memory",
                FeatureState::Degraded,
                &format!(
                    "fanotify: who opens /proc/PID/mem of a runner is told, and ended a moment later; ptrace and process_vm_readv by root are not seen, for audit can't be used: {error}"
                ),
            ),
            (Err(error), _) => feature(
                "sensor-memory",
                FeatureState::Missing,
                &format!("nobody is told who reads the memory of a runner: {error}"),
            ),
        },
    ]
}
