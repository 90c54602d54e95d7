//! Putting a bound policy in force, for a new job and for one that is taken over after a restart.

mod features;
mod resolving;
mod target;

use super::detectors::{self, Detectors, Executed};
use super::frames::FrameSenders;
use super::grant_book::GrantBook;
use super::host::Host;
use super::name_services::NameServices;
use super::sensors::{JobObserver, job_sensors};
use super::shell_watch::{self, Looks};
use super::sink::{DnsSink, EventContext, LateTable};
use super::state::JobState;
use super::{Job, policy_reference};
use crate::caller::Worker;
use crate::cgroup::JobCgroup;
use crate::config::Paths;
use crate::containers::killing::EngineContainers;
use crate::dns::{NamePolicy, Resolver, SourcePorts};
use crate::egress::github_hosts::github_hosts;
use crate::egress::target::OwnerMode;
use crate::egress::{RuleSet, has_zones, rule_set};
use crate::network::{self, interfaces};
use crate::nftables::{DnsFlows, InstalledTable};
use crate::protect::Protecting;
use crate::protect::closed_sockets::{ClosedSockets, Service};
use crate::record::recorder::Recorder;
use crate::respond::containers::KnownContainers;
use crate::respond::{Parts, Responder};
use crate::watch::attribution::ProcfsSensor;
use crate::watch::kernel::KernelObserver;
use crate::watch::nflog::{NflogGroup, NflogReader};
use features::features;
use portcullis_common::event::EnforcementScope;
use portcullis_common::hook::with_causes;
use portcullis_common::policy::EffectivePolicy;
use resolving::{resolver_config, upstream_servers};
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
pub(super) use target::table_name;
use target::target;
use tokio::sync::mpsc;

/// The NFLOG groups that are tried. Low numbers are what administrators write by hand; the kernel has 65 536.
const NFLOG_GROUPS: std::ops::RangeInclusive<u16> = 20_480..=24_575;

/// Notices that wait for the job's task.
const WAITING_NOTICES: usize = 64;

/// Whether the rules are new or left by an earlier monitor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rules {
    /// There are none yet.
    New,
    /// An earlier monitor left them; addresses that are open stay open.
    LeftByEarlierMonitor,
}

/// Why a policy is not in force.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct EnforceError {
    /// What was being done, in words for a person.
    step: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

/// Names the step that failed.
fn at<E: Into<Box<dyn Error + Send + Sync>>>(step: &'static str) -> impl FnOnce(E) -> EnforceError {
    move |source| EnforceError { step, source: source.into() }
}

/// A job in force, and what its task must listen to.
#[derive(Debug)]
pub struct Enforced {
    /// The job.
    pub job: Arc<Job>,
    /// What changes its posture.
    pub notices: mpsc::Receiver<String>,
    /// What nobody needs to wait for.
    pub watching: Watching,
}

/// What looks for findings in a job, and what is tidied up after its rules are in force. To be started when whoever waits
/// for the job has the answer; no step of the job runs before.
#[derive(Debug)]
pub struct Watching {
    job: Arc<Job>,
    parts: detectors::Parts,
    /// To be closed, which can take a moment.
    dns_flows: Option<DnsFlows>,
}

impl Watching {
    /// Starts it.
    pub fn start(self) {
        let Self { job, parts, dns_flows } = self;
        // The job owns its detectors.
        let told = Arc::downgrade(&job);
        let started = Detectors::start(parts, move |problem: String| {
            if let Some(job) = told.upgrade() {
                job.note_gap(problem);
            }
        });
        *job.detectors.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        drop(dns_flows);
    }
}

/// Puts the policy of `state` in force for `worker`; `links` are the interfaces of its network namespace, where they are known
/// already. Must be called within a tokio runtime, on a thread that may block.
///
/// # Errors
/// When anything that enforcement rests on can't be had; then no rules are left behind.
pub fn enforce(
    host: &Host,
    state: JobState,
    worker: Worker,
    group: Option<JobCgroup>,
    protecting: Protecting,
    links: Option<Vec<network::Interface>>,
    rules: Rules,
) -> Result<Enforced, EnforceError> {
    let namespace =
        worker.network_namespace().map_err(at("the Worker's network namespace can't be opened"))?;
    let links = match links {
        Some(links) => links,
        None => interfaces(namespace.as_fd())
            .map_err(at("the interfaces of the Worker's network namespace can't be listed"))?,
    };
    // Where flows get a zone, none from before is taken for one of the job's.
    let dns_flows = (!has_zones(host.kernel.kernel, state.scope))
        .then(|| list_dns_flows(&namespace))
        .transpose();
    let packets = NflogGroup::bind(namespace.as_fd(), NFLOG_GROUPS)
        .map_err(at("the packets that rules log can't be received"))?
        .without_link_header(
            links.iter().filter(|link| link.mac.is_none()).map(|link| link.index).collect(),
        );
    let sockets = Arc::new(
        ProcfsSensor::new(&worker, group.clone()).map_err(at("sockets can't be looked up"))?,
    );
    let worker = Arc::new(worker);

    let directory = host.paths.jobs().join(&state.id);
    let spool = host.paths.spool().join(&state.id);
    fs::create_dir_all(&spool).map_err(at("the directory of the job's events can't be made"))?;
    let recorder = Arc::new(
        Recorder::open(&spool, &state.id).map_err(at("the job's events can't be written"))?,
    );

    let enforced = with_github_hosts(host, &state.resolution.policy)?;
    let known = KnownContainers::new(
        host.hierarchy.as_ref().ok().cloned(),
        state.cgroup.clone(),
        state.scope,
        state.network_namespace,
    );
    let containers = host.containers.of_job(known, state.started);
    let responder = Arc::new(Responder::new(Parts {
        job_id: state.id.clone(),
        policy: policy_reference(&state.resolution),
        lockdown: enforced.lockdown.clone(),
        worker: Arc::clone(&worker),
        group: group.clone(),
        containers: Arc::<EngineContainers>::clone(&containers),
        recorder: Arc::clone(&recorder),
    }));
    let (look_soon, looks) = shell_watch::looks();
    let executed = Arc::new(Executed {
        job_uid: worker.uid(),
        sensor: Arc::clone(&sockets),
        responder: Arc::clone(&responder),
        look_soon: look_soon.clone(),
    });
    let observer = |group: &JobCgroup| -> Arc<dyn KernelObserver> {
        Arc::new(JobObserver {
            recorder: Arc::clone(&recorder),
            responder: Arc::clone(&responder),
            look_soon: look_soon.clone(),
            job_uid: worker.uid(),
            trusted: host.trusted_readers(&worker),
            group: group.clone(),
            hierarchy: host.hierarchy.as_ref().ok().cloned(),
            seen: Mutex::default(),
        })
    };
    let sensors = job_sensors(
        host,
        &worker,
        group.as_ref(),
        &enforced.lockdown,
        state.scope,
        sockets,
        observer,
    );
    let late_table = Arc::new(LateTable::default());
    let book = GrantBook::open(&directory, Arc::<LateTable>::clone(&late_table))
        .map_err(at("the names of open addresses can't be kept"))?;
    let book = Arc::new(book);
    let servers = upstream_servers(host, &worker, &namespace)?;
    let context = Arc::new(EventContext {
        look_soon,
        dns_servers: servers.upstreams.clone(),
        sensor: Arc::clone(&sensors.processes),
        sockets: Arc::clone(&sensors.sockets),
        book: Arc::clone(&book),
        recorder: Arc::clone(&recorder),
        policy: Arc::clone(&enforced),
        reference: policy_reference(&state.resolution),
        frame_senders: FrameSenders::default(),
        containers: Arc::clone(&host.containers),
    });
    let (notify, notices) = mpsc::channel(WAITING_NOTICES);
    let dns_sink = Arc::new(
        DnsSink::start(Arc::clone(&context), notify)
            .map_err(at("the thread of DNS events can't be started"))?,
    );

    let config =
        resolver_config(&enforced, &namespace, &servers, &host.config.dns, &host.dns_source_ports)
            .map_err(at("the Worker's network namespace can't be held"))?;
    let resolver = Resolver::start(
        config,
        NamePolicy::compile(&enforced.allowed, &enforced.denied),
        Arc::<GrantBook>::clone(&book),
        Arc::<DnsSink>::clone(&dns_sink),
    )
    .map_err(at("the job's resolver can't be started"))?;

    let network_namespace =
        namespace.metadata().map_err(at("the Worker's network namespace can't be told"))?.ino();
    let target = target(host, &state, &links, &servers, &resolver, packets.group())
        .ok_or_else(|| at("the job's id is not one")("it has fewer than 12 digits"))?;
    let rules_value =
        rule_set(&enforced, &target).map_err(at("the policy can't be made into rules"))?;
    // Where the kernel tells who makes a call, nobody has to be found before they are gone.
    let packets = if sensors.watched.is_some() { packets.in_bursts() } else { packets };
    let reader = read_packets(packets, &context)?;
    // As late as can be, and before anything is in the kernel that would have to be taken out again.
    let protection = protecting.finish();
    if let Some(failure) = &protection.failure {
        return Err(at("the Worker can't be protected as the policy demands")(failure.as_str()));
    }
    let engine_sockets = close_engines(host, &state, worker.pid())?;
    let installed = put_in_kernel(host, &namespace, rules, &rules_value);
    if let (Err(_), Some(closed)) = (&installed, &engine_sockets) {
        closed.open();
    }
    let table = Arc::new(installed?);
    let name_services = NameServices::new(&host.paths, &host.config.dns, &state);
    if state.scope == EnforcementScope::Job {
        name_services.close();
    }
    late_table.set(Arc::clone(&table));
    resolver.answer_together(&host.resolvers, network_namespace);
    let dns_flows = forget_dns_flows(dns_flows, &host.dns_source_ports, &state.id);
    let mut features =
        features(host, &state, &worker, &rules_value, &resolver, group.is_some(), protection);
    let of_sensors = sensors.features();
    features.extend(detectors::features(&enforced.lockdown, &of_sensors));
    features.extend(of_sensors);
    let job = Job {
        enforced,
        worker,
        group,
        responder,
        containers,
        engine_sockets: Mutex::new(engine_sockets),
        name_services,
        other_jobs: Mutex::new(state.other_jobs.clone()),
        detectors: Mutex::default(),
        target: Mutex::new(target),
        table,
        has_no_rules: AtomicBool::new(false),
        book,
        resolver: Mutex::new(Some(resolver)),
        dns_sink,
        packets: Mutex::new(Some(reader)),
        recorder,
        sensors,
        features,
        gaps: Mutex::new(state.gaps.clone()),
        jobs_directory: host.paths.jobs(),
        applied_ms: OnceLock::new(),
        state,
    };
    let job = Arc::new(job);
    let parts = detector_parts(&job, &host.paths, executed, looks);
    let watching = Watching { job: Arc::clone(&job), parts, dns_flows };
    Ok(Enforced { job, notices, watching })
}

/// Puts the rules into the kernel, and their socket into the keeping of whoever restarts the monitor, where they would
/// vanish with it.
fn put_in_kernel(
    host: &Host,
    namespace: &File,
    rules: Rules,
    value: &RuleSet,
) -> Result<InstalledTable, EnforceError> {
    let kept = host.service_manager.take(value.name.as_str());
    let is_kept = kept.is_some();
    let table = match (rules, kept) {
        (Rules::New, _) => InstalledTable::install(namespace.as_fd(), value),
        (Rules::LeftByEarlierMonitor, Some(socket)) => {
            InstalledTable::resume(namespace.as_fd(), socket, value)
        }
        (Rules::LeftByEarlierMonitor, None) => {
            InstalledTable::adopt(namespace.as_fd(), &value.name, value)
        }
    }
    .map_err(at("the rules can't be put in force"))?;
    if value.owner == OwnerMode::Owner && !is_kept {
        let kept = table
            .socket()
            .and_then(|socket| host.service_manager.keep(value.name.as_str(), socket.as_fd()));
        if let Err(error) = kept {
            if let Err(error) = table.remove() {
                tracing::error!(error = %with_causes(&error), "rules could not be taken out again");
            }
            return Err(at("systemd can't keep the socket that owns the rules")(error));
        }
    }
    Ok(table)
}

/// Lists the flows of DNS that are older than the rules, beside what is done before those are in force. Where flows get no zone
/// ([`has_zones`]): it takes the longer, the more memory the machine has.
fn list_dns_flows(namespace: &File) -> io::Result<JoinHandle<io::Result<DnsFlows>>> {
    let namespace = namespace.try_clone()?;
    thread::Builder::new()
        .name("dns-flows".to_owned())
        .spawn(move || DnsFlows::list(namespace.as_fd()))
}

/// Forgets flows of DNS that are older than the rules. Those are in force without it, and an old flow is blocked by them instead
/// of redirected: its program has to ask again from another port.
fn forget_dns_flows(
    listing: io::Result<Option<JoinHandle<io::Result<DnsFlows>>>>,
    resolvers: &SourcePorts,
    job_id: &str,
) -> Option<DnsFlows> {
    let forget = |thread: JoinHandle<io::Result<DnsFlows>>| {
        let mut flows = thread.join().map_err(|_| io::Error::other("listing them panicked"))??;
        flows.forget(&resolvers.in_use())?;
        Ok(flows)
    };
    listing
        .and_then(|thread| thread.map(forget).transpose())
        .map_err(|error| {
            tracing::warn!(job.id = job_id, error = %error, "old DNS flows could not be forgotten");
        })
        .ok()
        .flatten()
}

/// What looking for findings in the job needs.
fn detector_parts(
    job: &Job,
    paths: &Paths,
    executed: Arc<Executed>,
    looks: Looks,
) -> detectors::Parts {
    detectors::Parts {
        worker: Arc::clone(&job.worker),
        group: job.group.clone(),
        sensor: Arc::clone(&job.sensors.sockets),
        processes: Arc::clone(&job.sensors.processes),
        watched: job.sensors.watched.clone(),
        responder: Arc::clone(&job.responder),
        workspace: job
            .state
            .context
            .workspace
            .clone()
            .filter(|_| !job.enforced.disable_file_monitoring),
        own_files: vec![paths.config(), paths.run(), paths.spool(), paths.last_known_good()],
        executed,
        looks,
    }
}

/// Closes container engines to the job, when its policy says so.
fn close_engines(
    host: &Host,
    state: &JobState,
    worker: u32,
) -> Result<Option<ClosedSockets>, EnforceError> {
    if !state.resolution.policy.disable_sudo_and_containers {
        return Ok(None);
    }
    let directory = host.paths.closed_sockets();
    let engine = Service::ContainerEngine;
    ClosedSockets::close(engine, &directory, host.paths.root(), &state.id, worker, state.uid)
        .map(Some)
        .map_err(at("container engines can't be closed to the job as the policy demands"))
}

/// The policy with the hosts that a runner can't do without.
fn with_github_hosts(
    host: &Host,
    policy: &EffectivePolicy,
) -> Result<Arc<EffectivePolicy>, EnforceError> {
    let mut enforced = policy.clone();
    let hosts = github_hosts(&host.config.github.server)
        .map_err(at("github.server of monitor.toml is no host name"))?;
    enforced.allowed.extend(hosts);
    enforced.allowed.shrink_to_fit();
    Ok(Arc::new(enforced))
}

fn read_packets(
    packets: NflogGroup,
    context: &Arc<EventContext>,
) -> Result<NflogReader, EnforceError> {
    let context = Arc::clone(context);
    packets
        .start(move |packet| context.packet(&packet))
        .map_err(at("the thread of logged packets can't be started"))
}

/// The reason in one line, for hook and log.
pub fn reason(error: &EnforceError) -> String {
    with_causes(error)
}
