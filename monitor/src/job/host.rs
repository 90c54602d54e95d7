//! What is the same for every job of this host: its configuration, its store, what its kernel can do.

use super::last_known_good::LastKnownGood;
use crate::caller::{ProcFs, ProcessKey, Worker};
use crate::cgroup::{CgroupIdentity, Hierarchy, Slices, enter_monitor_group};
use crate::config::{Config, ConfigError, Paths, SensorBackend};
use crate::containers::Containers;
use crate::detect::memory_read::TrustedReaders;
use crate::dns::{Neighbours, SourcePorts};
use crate::egress::target::{CgroupId, OwnerMode};
use crate::nftables::{Probed, probe};
use crate::service_manager::ServiceManager;
use crate::store::{ServedStore, keep_header};
use crate::watch::audit::take_back_leftovers;
use crate::watch::backend::Sensors;
use portcullis_common::event::EnforcementScope;
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::resolution::{HostDefaults, Resolution};
use portcullis_common::store_client::directory::DirectoryStore;
use portcullis_common::wire::{IdTokenRequest, InfrastructureUnit};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// What is the same for every job of this host.
#[derive(Debug)]
pub struct Host {
    /// Where things are.
    pub paths: Paths,
    /// `monitor.toml`.
    pub config: Config,
    /// The cgroup v2 hierarchy, or why there is none.
    pub hierarchy: Result<Hierarchy, String>,
    /// The monitor's own cgroup.
    pub monitor_group: Option<CgroupIdentity>,
    /// What the kernel can do, as tried.
    pub kernel: Probed,
    /// Who did what.
    pub sensors: Sensors,
    /// Who started the monitor, and keeps sockets over its restarts.
    pub service_manager: ServiceManager,
    /// The last known good policies.
    pub last_known_good: LastKnownGood,
    /// Where the resolvers of all jobs ask upstreams from.
    pub dns_source_ports: SourcePorts,
    /// The resolvers of all jobs, which answer containers together.
    pub resolvers: Neighbours,
    /// The containers of this host.
    pub containers: Arc<Containers>,
    /// Opened when it is first needed: a directory that is missing now may be there for the next job.
    store: OnceLock<DirectoryStore>,
    /// As `store`, where the store is a server.
    served: OnceLock<ServedStore>,
}

/// Why a monitor can't serve this host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nothing could be tried out.
    #[error(
        "the kernel can't be tried out in a network namespace; run the monitor as root with CAP_SYS_ADMIN and CAP_NET_ADMIN"
    )]
    Probe(#[source] std::io::Error),
    /// The sensors that the configuration insists on can't be had.
    #[error(
        "the BPF sensors that sensors.backend asks for can't be had ({0}); set it to \"auto\" to go on without them"
    )]
    Sensors(String),
}

impl Host {
    /// Reads the configuration and tries out the kernel.
    ///
    /// # Errors
    /// When the configuration can't be used or this process may not make network namespaces; everything else that is
    /// missing shows in the posture of jobs.
    pub fn open(paths: Paths, service_manager: ServiceManager) -> Result<Self, HostError> {
        let config = Config::load(&paths)?;
        let hierarchy = Hierarchy::find().map_err(|error| with_causes(&error));
        let monitor_group = hierarchy.as_ref().ok().and_then(|hierarchy| {
            let group = enter_monitor_group(hierarchy);
            group.inspect_err(|error| tracing::warn!(error = %with_causes(error), "the monitor has no cgroup of its own")).ok()
        });
        let containers = Containers::new(&paths, hierarchy.as_ref().ok().cloned());
        take_back_leftovers();
        let host = Self {
            dns_source_ports: SourcePorts::default(),
            resolvers: Neighbours::default(),
            containers: Arc::new(containers),
            last_known_good: LastKnownGood::at(paths.last_known_good()),
            // First, for it takes longest.
            sensors: Sensors::load(config.sensors.backend),
            kernel: probe().map_err(HostError::Probe)?.without(&config.kernel.without),
            service_manager,
            monitor_group: monitor_group.map(|group| group.identity),
            hierarchy,
            store: OnceLock::new(),
            served: OnceLock::new(),
            config,
            paths,
        };
        if host.config.sensors.backend == SensorBackend::Bpf {
            host.sensors.kernel().map_err(|reason| HostError::Sensors(reason.to_owned()))?;
        }
        Ok(host)
    }

    /// Who may change the tables of a job. A table that vanishes with its owner's socket would leave the job without rules
    /// when the monitor dies, so it needs somebody who keeps the socket.
    pub fn owner_mode(&self) -> OwnerMode {
        match self.kernel.owner {
            OwnerMode::OwnerPersist => OwnerMode::OwnerPersist,
            OwnerMode::Owner if self.service_manager.can_keep() => OwnerMode::Owner,
            OwnerMode::Owner | OwnerMode::None => OwnerMode::None,
        }
    }

    /// Which policy applies to the job. `id_token` and `request` are for a served store: a directory of files has nobody to
    /// verify a token. Blocks for some seconds at most.
    ///
    /// # Errors
    /// Why the store can't say, in words for a person.
    pub fn resolve(
        &self,
        context: &JobContext,
        id_token: Option<String>,
        request: Option<&IdTokenRequest>,
    ) -> Result<Resolution, String> {
        if self.config.policy_directory(&self.paths).is_none() {
            return self.served_store()?.resolve(context, id_token, request);
        }
        let store = self.store()?;
        let insecure = store
            .insecure_permissions(&[0, nix::unistd::geteuid().as_raw()])
            .map_err(|error| format!("{} can't be examined: {error}", store.path().display()))?;
        if let Some(insecure) = insecure.first() {
            return Err(format!(
                "{insecure}; policies must be root's alone: chown root and chmod go-w it"
            ));
        }
        let policies = store.current().map_err(|errors| errors.to_string())?;
        let defaults = HostDefaults {
            cluster: self.config.cluster.clone(),
            default_policy: self.config.default_policy(),
        };
        policies.resolve(context, &defaults).map_err(|error| with_causes(&error))
    }

    /// The served store, if the configuration names one. Opened when it is first needed: a credential that is missing now may
    /// be there for the next job.
    fn served_store(&self) -> Result<&ServedStore, String> {
        if let Some(store) = self.served.get() {
            return Ok(store);
        }
        let store = ServedStore::open(&self.config, &self.paths)?;
        Ok(self.served.get_or_init(|| store))
    }

    /// Begins to upload what an earlier monitor left, where there is a served store.
    pub fn resume_uploads(&self) {
        if self.config.policy_directory(&self.paths).is_none()
            && let Err(problem) = self.served_store().map(ServedStore::wake)
        {
            tracing::error!(problem, "the policy store can't be used");
        }
    }

    /// Notes a job for the served store, where there is one.
    pub fn announce(&self, id: &str, context: &JobContext, resolution: &Resolution) {
        if self.config.policy_directory(&self.paths).is_some() {
            return;
        }
        let kept =
            keep_header(&self.paths.spool(), id, context, resolution, jiff::Timestamp::now());
        if let Err(error) = kept {
            tracing::error!(job.id = id, error = %error, "the job can't be spooled for the policy store");
        }
        self.wake_uploads();
    }

    /// Says that there is something to upload.
    pub fn wake_uploads(&self) {
        if let Some(store) = self.served.get() {
            store.wake();
        }
    }

    /// The cgroups of the machine's own services that are running, and the monitor's own where it uploads to a store.
    pub fn infrastructure_groups(&self) -> Vec<CgroupId> {
        let groups = self.infrastructure().into_iter();
        groups.map(|group| CgroupId { id: group.id, level: group.level }).collect()
    }

    fn infrastructure(&self) -> Vec<CgroupIdentity> {
        if self.hierarchy.is_err() {
            return Vec::new();
        }
        let found = self.running_units().into_iter();
        let has_served_store = self.config.policy_directory(&self.paths).is_none();
        let own = self.monitor_group.clone().filter(|own| has_served_store && own.level > 0);
        found.chain(own).collect()
    }

    /// Cgroups in which nobody judges what a process sends: those of the infrastructure, and in scope `job` every one but the
    /// jobs' own.
    pub fn not_judged(&self, scope: EnforcementScope) -> Vec<PathBuf> {
        let Ok(hierarchy) = &self.hierarchy else { return Vec::new() };
        if scope == EnforcementScope::Job {
            return vec![hierarchy.mount_point().to_owned()];
        }
        let groups = self.infrastructure().into_iter();
        let groups = groups.filter_map(|group| hierarchy.group(&group.path).ok());
        groups.map(|group| group.directory().to_owned()).collect()
    }

    /// Makes ready what the next job needs, while nobody waits.
    pub fn prepare_next(&self) {
        if let Ok(sensors) = self.sensors.kernel() {
            sensors.prepare_next();
        }
    }

    /// Who may look into the memory of a job's runner.
    pub fn trusted_readers(&self, worker: &Worker) -> TrustedReaders {
        let pid = std::process::id();
        let unknown = ProcessKey { pid, start_time: 0 };
        TrustedReaders {
            monitor: ProcFs.key(pid).unwrap_or(unknown),
            worker: worker.key(),
            listener: worker.listener(),
        }
    }

    /// The paths of those groups.
    pub fn infrastructure_paths(&self) -> Vec<PathBuf> {
        self.running_units().into_iter().map(|group| group.path).collect()
    }

    fn slices(&self) -> Option<Slices> {
        Slices::list(self.hierarchy.as_ref().ok()?).ok()
    }

    /// The groups of the machine's own services that are running.
    fn running_units(&self) -> Vec<CgroupIdentity> {
        let Some(slices) = self.slices() else { return Vec::new() };
        let units = self.config.infrastructure_units();
        units.iter().filter_map(|unit| slices.find(unit)).collect()
    }

    /// The machine's own services, for `monitor status`.
    pub fn infrastructure_units(&self) -> Vec<InfrastructureUnit> {
        let slices = self.slices();
        let found = |unit: &str| slices.as_ref().is_some_and(|slices| slices.find(unit).is_some());
        let units = self.config.infrastructure_units();
        units.into_iter().map(|unit| InfrastructureUnit { found: found(&unit), unit }).collect()
    }

    fn store(&self) -> Result<&DirectoryStore, String> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let directory = self.config.policy_directory(&self.paths).ok_or_else(|| {
            format!(
                "this monitor reads policies from a directory only, and store.url is {}",
                self.config.store.url
            )
        })?;
        let store = DirectoryStore::open(&directory)
            .map_err(|error| format!("{} can't be read: {error}", directory.display()))?;
        Ok(self.store.get_or_init(|| store))
    }
}
