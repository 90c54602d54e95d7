//! Putting a bound policy in force, for a new job and for one that is taken over after a restart.

use super::detectors::{self, Detectors, Executed};
use super::frames::FrameSenders;
use super::grant_book::GrantBook;
use super::host::Host;
use super::privileges::job_privileges;
use super::sensors::{JobObserver, job_sensors};
use super::shell_watch::{self, Looks};
use super::sink::{DnsSink, EventContext, LateTable};
use super::state::JobState;
use super::{Job, group_ids, policy_reference};
use crate::caller::Worker;
use crate::cgroup::JobCgroup;
use crate::config::DnsConfig;
use crate::config::Paths;
use crate::containers::killing::EngineContainers;
use crate::dns::upstreams::{SystemResolver, from_resolv_conf, read_bounded};
use crate::dns::{NamePolicy, Resolver, ResolverConfig};
use crate::egress::github_hosts::github_hosts;
use crate::egress::target::{
    CgroupId, EnforcementTarget, Flow, Interface, OwnerMode, ResolverPorts, TableName, Uplink,
};
use crate::egress::{RuleSet, rule_set};
use crate::network::{self, interfaces};
use crate::nftables::{InstalledTable, forget_dns_flows};
use crate::protect::engine_sockets::{EngineSockets, engine_ports};
use crate::protect::{Protecting, Protection};
use crate::record::recorder::Recorder;
use crate::respond::containers::KnownContainers;
use crate::respond::{Parts, Responder};
use crate::sys::namespace::in_network_namespace;
use crate::watch::attribution::ProcfsSensor;
use crate::watch::kernel::KernelObserver;
use crate::watch::nflog::{NflogGroup, NflogReader};
use portcullis_common::event::{Feature, FeatureState};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::EffectivePolicy;
use std::error::Error;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;
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

    let config = resolver_config(&enforced, &namespace, &servers, &host.config.dns)
        .map_err(at("the Worker's network namespace can't be held"))?;
    let resolver = Resolver::start(
        config,
        NamePolicy::compile(&enforced.allowed, &enforced.denied),
        Arc::<GrantBook>::clone(&book),
        Arc::<DnsSink>::clone(&dns_sink),
    )
    .map_err(at("the job's resolver can't be started"))?;

    let target = target(host, &state, &links, &servers, &resolver, packets.group())
        .ok_or_else(|| at("the job's id is not one")("it has fewer than 12 digits"))?;
    let rules_value =
        rule_set(&enforced, &target).map_err(at("the policy can't be made into rules"))?;
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
    late_table.set(Arc::clone(&table));
    forget_dns_flows_meanwhile(namespace, &state.id);
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
    watch_for_findings(&job, &host.paths, executed, looks);
    Ok(Enforced { job, notices })
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

/// Starts what looks for findings in the job.
fn watch_for_findings(job: &Arc<Job>, paths: &Paths, executed: Arc<Executed>, looks: Looks) {
    let parts = detectors::Parts {
        worker: Arc::clone(&job.worker),
        group: job.group.clone(),
        sensor: Arc::clone(&job.sensors.sockets),
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
    };
    // The job owns its detectors.
    let told = Arc::downgrade(job);
    let started = Detectors::start(parts, move |problem: String| {
        if let Some(job) = told.upgrade() {
            job.note_gap(problem);
        }
    });
    *job.detectors.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
}

/// Forgets old flows of DNS on a thread of its own. The rules are in force without it, and an old flow is blocked by them
/// instead of redirected: its program would have to ask again from another port.
fn forget_dns_flows_meanwhile(namespace: File, job_id: &str) {
    let id = job_id.to_owned();
    let forget = move || {
        if let Err(error) = forget_dns_flows(namespace.as_fd()) {
            tracing::warn!(job.id = id, error = %error, "old DNS flows could not be forgotten");
        }
    };
    if let Err(error) = thread::Builder::new().name("dns-flows".to_owned()).spawn(forget) {
        tracing::warn!(job.id = job_id, error = %error, "old DNS flows could not be forgotten");
    }
}

/// Closes container engines to the job, when its policy says so.
fn close_engines(
    host: &Host,
    state: &JobState,
    worker: u32,
) -> Result<Option<EngineSockets>, EnforceError> {
    if !state.resolution.policy.disable_sudo_and_containers {
        return Ok(None);
    }
    let directory = host.paths.closed_sockets();
    EngineSockets::close(&directory, host.paths.root(), &state.id, worker, state.uid)
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

/// The servers that the resolver asks: the configured ones, or those of the Worker's own `resolv.conf`.
fn upstream_servers(
    host: &Host,
    worker: &Worker,
    namespace: &File,
) -> Result<SystemResolver, EnforceError> {
    let configured = &host.config.dns.upstreams;
    if !configured.is_empty() {
        return Ok(SystemResolver { upstreams: configured.clone(), ..SystemResolver::default() });
    }
    let root = PathBuf::from(format!("/proc/{}/root", worker.pid()));
    let text = read_bounded(&root.join("etc/resolv.conf")).map_err(at(
        "the Worker's /etc/resolv.conf can't be read; set dns.upstreams in monitor.toml",
    ))?;
    // Absent unless systemd-resolved runs; whether it is needed is decided by what resolv.conf says.
    let resolved = read_bounded(&root.join("run/systemd/resolve/resolv.conf")).ok();
    // Zones of link-local servers are interfaces of the Worker's namespace.
    in_network_namespace(namespace.as_fd(), || from_resolv_conf(&text, resolved.as_deref()))
        .map_err(at("the Worker's network namespace can't be entered"))?
        .map_err(at("there is no DNS server to ask"))
}

fn resolver_config(
    policy: &EffectivePolicy,
    namespace: &File,
    servers: &SystemResolver,
    dns: &DnsConfig,
) -> std::io::Result<ResolverConfig> {
    let mut config = ResolverConfig::new(policy.egress, &policy.name, servers.upstreams.clone());
    config.network_namespace = Some(OwnedFd::from(namespace.try_clone()?));
    config.listen_anywhere = true;
    config.search_domains.clone_from(&servers.search_domains);
    config.lifetimes.grant_floor = Duration::from_secs(dns.grant_floor_seconds.into());
    config.lifetimes.grant_grace = Duration::from_secs(dns.grant_grace_seconds.into());
    Ok(config)
}

/// Everything measured that the rule set depends on.
fn target(
    host: &Host,
    state: &JobState,
    links: &[network::Interface],
    servers: &SystemResolver,
    resolver: &Resolver,
    nflog_group: u16,
) -> Option<EnforcementTarget> {
    let mut target = EnforcementTarget::new(table_name(&state.id)?, state.scope);
    let group_id =
        |group: &crate::cgroup::CgroupIdentity| CgroupId { id: group.id, level: group.level };
    target.job_cgroup = state.cgroup.as_ref().map(group_id);
    target.runner_uid = (state.has_own_user && state.uid != 0).then_some(state.uid);
    target.other_jobs = group_ids(&state.other_jobs);
    target.infrastructure = host.infrastructure_groups();
    target.monitor_cgroup = host.monitor_group.as_ref().map(group_id);
    target.upstreams.clone_from(&servers.upstreams);
    target.upstream_source_ports =
        resolver.upstream_source_ports().iter().map(|source| source.port).collect();
    let listens = |wanted: IpAddr| {
        let mut addresses = resolver.listen_addresses().iter();
        addresses.find(|address| address.ip() == wanted).map(SocketAddr::port)
    };
    target.resolver = ResolverPorts {
        v4: listens(Ipv4Addr::LOCALHOST.into()),
        v6: listens(Ipv6Addr::LOCALHOST.into()),
    };
    let anywhere = |is_v4: bool| {
        let mut listeners = resolver.listens_anywhere().iter();
        listeners.find(|address| address.is_ipv4() == is_v4).map(SocketAddr::port)
    };
    if state.resolution.policy.disable_sudo_and_containers {
        target.closed_ports = engine_ports();
    }
    target.container_resolver = ResolverPorts { v4: anywhere(true), v6: anywhere(false) };
    let plain =
        |link: &network::Interface| Interface { name: link.name.clone(), index: link.index };
    target.uplinks = links
        .iter()
        .filter(|link| link.is_uplink())
        .map(|link| Uplink { interface: plain(link), mac: link.mac })
        .collect();
    target.container_bridges =
        links.iter().filter(|link| link.is_container_bridge()).map(plain).collect();
    target.known_interfaces = state
        .known_interfaces
        .iter()
        .map(|(name, index)| Interface { name: name.clone(), index: *index })
        .collect();
    target.adopted_flows = state
        .adopted_flows
        .iter()
        .map(|(local, remote)| Flow { local: *local, remote: *remote })
        .collect();
    target.nflog_group = nflog_group;
    target.grace = Duration::from_secs(host.config.dns.grant_grace_seconds.into());
    target.owner = host.owner_mode();
    target.kernel = host.kernel.kernel;
    Some(target)
}

/// The job's tables: named after the last 12 digits of its id, which are random.
pub(super) fn table_name(job_id: &str) -> Option<TableName> {
    let digits: String = job_id.chars().filter(char::is_ascii_hexdigit).collect();
    TableName::for_job(digits.get(digits.len().checked_sub(12)?..)?)
}

/// The mechanisms as they are for this job.
fn features(
    host: &Host,
    state: &JobState,
    worker: &Worker,
    rules: &RuleSet,
    resolver: &Resolver,
    has_group: bool,
    protection: Protection,
) -> Vec<Feature> {
    let feature =
        |name: &str, state, reason: String| Feature { name: name.to_owned(), state, reason };
    let mut features = Vec::new();
    features.push(match (has_group, &host.hierarchy) {
        (true, _) => {
            feature("cgroup-v2", FeatureState::Active, "the job has a group of its own".to_owned())
        }
        (false, Err(problem)) => feature("cgroup-v2", FeatureState::Missing, problem.clone()),
        (false, Ok(_)) => feature(
            "cgroup-v2",
            FeatureState::Missing,
            "the job's group could not be made; left-over processes can't be told apart".to_owned(),
        ),
    });
    features.push(match host.owner_mode() {
        OwnerMode::OwnerPersist => feature(
            "table-owner",
            FeatureState::Active,
            "only the monitor can change the rules, and they outlive it".to_owned(),
        ),
        OwnerMode::Owner => feature(
            "table-owner",
            FeatureState::Active,
            "only the monitor can change the rules; systemd keeps their socket while it is restarted, and they vanish when its service is stopped"
                .to_owned(),
        ),
        OwnerMode::None => feature(
            "table-owner",
            FeatureState::Degraded,
            "the kernel has no persistent owned tables (6.9): root in the job can remove the rules; that is noticed and undone"
                .to_owned(),
        ),
    });
    for gap in &rules.gaps {
        features.push(feature("rule-gap", FeatureState::Degraded, gap.clone()));
    }
    for skipped in resolver.skipped_listeners() {
        // Without an IPv6 loopback there is no IPv6 to be judged; the rules block that family's DNS all the same.
        let reason = format!("no resolver on {}: {}", skipped.address, skipped.error);
        features.push(feature("sensor-dns-listener", FeatureState::Degraded, reason));
    }
    features.push(job_privileges(
        worker.pid(),
        host.paths.root(),
        protection.has_no_new_privileges,
    ));
    features.extend(protection.features);
    let policy = &state.resolution.policy;
    if policy.disable_sudo_and_containers {
        features.push(feature(
            "disable-containers",
            FeatureState::Active,
            "the sockets of container engines refuse the job, as was tried".to_owned(),
        ));
    }
    features
}

/// The reason in one line, for hook and log.
pub fn reason(error: &EnforceError) -> String {
    with_causes(error)
}
