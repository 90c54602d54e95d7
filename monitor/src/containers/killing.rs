//! Killing the containers of a job, so that their engine does not start them again.

use super::engine::Engine;
use super::identity::{Description, id_in_path};
use super::on_a_thread;
use crate::cgroup::CgroupIdentity;
use crate::respond::containers::{JobContainers, KnownContainers};
use jiff::Timestamp;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// The containers of a job, and the engines that may have made them.
#[derive(Debug)]
pub struct EngineContainers {
    known: KnownContainers,
    engines: Vec<Engine>,
    /// When the job was bound.
    started: Timestamp,
    runtime: Option<Handle>,
}

impl EngineContainers {
    /// Of the job that was bound at `started`.
    pub fn new(
        known: KnownContainers,
        engines: Vec<Engine>,
        started: Timestamp,
        runtime: Option<Handle>,
    ) -> Self {
        Self { known, engines, started, runtime }
    }

    /// Adds a container that the job has started.
    pub fn add(&self, group: CgroupIdentity) {
        self.known.add(group);
    }

    /// Only containers that are added are the job's, from now on.
    pub fn narrow(&self) {
        self.known.narrow();
    }

    /// Whether this cgroup is one of the job's containers, or below one.
    pub fn holds(&self, path: &Path) -> bool {
        self.known.identities().iter().any(|group| path.starts_with(&group.path))
    }

    /// Whether the engine says that the container was made before the job: it restarted it by itself, and it is not the
    /// job's.
    async fn is_older(&self, id: &str) -> bool {
        for engine in self.engines.iter().filter(|engine| engine.is_there()) {
            if let Ok(json) = engine.container(id).await {
                let created = Description::from_json(&json).created;
                return created.is_some_and(|created| created < self.started);
            }
        }
        false
    }
}

impl JobContainers for EngineContainers {
    fn kill(&self, patience: Duration) -> (usize, Vec<String>) {
        let groups = self.known.identities();
        let ids: Vec<String> =
            groups.iter().filter_map(|group| id_in_path(&group.path)).map(str::to_owned).collect();
        let Some(runtime) = self.runtime.clone().filter(|_| !ids.is_empty()) else {
            return self.known.kill_groups(&groups, patience);
        };
        let older = on_a_thread(|| {
            Some(runtime.block_on(async {
                let mut older = Vec::new();
                for id in &ids {
                    if self.is_older(id).await {
                        older.push(id.clone());
                    }
                }
                older
            }))
        });
        let older = older.unwrap_or_default();
        let is_older =
            |path: &Path| id_in_path(path).is_some_and(|id| older.iter().any(|other| other == id));
        let groups: Vec<_> = groups.into_iter().filter(|group| !is_older(&group.path)).collect();
        let result = self.known.kill_groups(&groups, patience);
        // An engine starts a container with a restart policy again, unless it was told to stop it.
        let engines: Arc<[Engine]> =
            self.engines.iter().filter(|engine| engine.is_there()).cloned().collect();
        let stopped = groups.iter().filter_map(|group| id_in_path(&group.path)).map(str::to_owned);
        for id in stopped {
            let engines = Arc::clone(&engines);
            runtime.spawn(async move {
                for engine in engines.iter() {
                    if engine.stop(&id).await.is_ok() {
                        return;
                    }
                }
            });
        }
        result
    }
}
