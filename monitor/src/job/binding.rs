//! Binding: what has to be known of a Worker and its surroundings before its policy can be put in force.

use super::host::Host;
use super::policy_choice::{Origin, PolicyChoice};
use super::state::JobState;
use crate::caller::ProcessKey;
use crate::caller::table::NetworkNamespaceId;
use crate::caller::{
    ProcFs, ProcessEntry, RunnerSurvey, Snapshot, Worker, WorkerCandidate, kill_left_overs,
    left_overs, runner_flows, survey_runners,
};
use crate::cgroup::{CgroupError, CgroupIdentity, Hierarchy, JobCgroup, stale_job_groups};
use crate::config::ScopeConfig;
use crate::network::{Interface, interfaces};
use crate::protect::{Protecting, Wanted};
use crate::watch::flow::Flow;
use crate::watch::sockets::SocketDiagnostics;
use jiff::Timestamp;
use portcullis_common::event::EnforcementScope;
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::EgressMode;
use portcullis_common::resolution::ScopeKind;
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long the groups of earlier jobs may take to become empty once killed. 500 processes take 25 ms.
const LEFT_OVER_PATIENCE: Duration = Duration::from_secs(5);

/// A Worker that is about to be bound.
#[derive(Debug)]
pub struct Binding {
    /// What is written down of it.
    pub state: JobState,
    /// The Worker, held by a pidfd.
    pub worker: Worker,
    /// The hook that asks and its shells, which are on their way into the group as well.
    callers: Vec<ProcessKey>,
    /// The job's group.
    pub group: Option<JobCgroup>,
    /// The Worker and everything below it on their way into the group.
    pub moving: Option<Moving>,
    /// The Worker being protected, meanwhile.
    pub protecting: Protecting,
    /// Processes of earlier jobs that were killed, in words.
    pub left_overs: Vec<String>,
    /// The interfaces of the Worker's network namespace.
    pub links: Vec<Interface>,
}

impl Binding {
    /// Starts to move the Worker into its group, unless that has begun: once the rules of other jobs know the group.
    pub fn start_moving(&mut self) {
        if let (None, Some(group)) = (&self.moving, &self.group) {
            self.moving =
                Some(Moving::start(group.clone(), self.worker.key(), self.callers.clone()));
        }
    }
}

/// Processes on their way into a job's group. The kernel waits some 10 ms for all processors when it moves a process
/// (`cgroup_threadgroup_rwsem`), so this is begun before everything else; policy and rules are made meanwhile. No step of
/// the job runs before the hook has its answer, and that waits for both.
#[derive(Debug)]
pub struct Moving {
    thread: io::Result<JoinHandle<Result<(), CgroupError>>>,
}

impl Moving {
    fn start(group: JobCgroup, worker: ProcessKey, callers: Vec<ProcessKey>) -> Self {
        let thread = thread::Builder::new()
            .name("cgroup".to_owned())
            .spawn(move || group.adopt(worker, &callers));
        Self { thread }
    }

    /// Waits until all are in the group.
    ///
    /// # Errors
    /// Why they are not, in words.
    pub fn finish(self) -> Result<(), String> {
        let thread = self.thread.map_err(|error| error.to_string())?;
        let moved = thread.join().map_err(|_| "moving the job's processes panicked".to_owned())?;
        moved.map_err(|error| with_causes(&error))
    }
}

/// Why a Worker can't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The Worker is gone or can't be held.
    #[error("the Runner.Worker can't be held")]
    Worker(#[from] crate::caller::CallerError),
    /// Its network namespace can't be looked into.
    #[error("the Worker's network namespace can't be looked into")]
    Network(#[source] io::Error),
    /// Its connections can't be listed.
    #[error("the runner's own connections can't be listed")]
    Flows(#[from] crate::watch::sockets::SocketError),
    /// Nothing tells the job apart from other jobs of this host.
    #[error(
        "with several runners on a host a job needs a cgroup or a user of its own, and it has neither ({0}); mount cgroup v2, or give each runner a user"
    )]
    NotTellable(String),
}

/// A Worker that could not be bound, and what was made for it.
#[derive(Debug)]
pub struct Unbound {
    /// Why.
    pub error: BindError,
    /// The group that was made, with whatever was moved there.
    pub group: Option<JobCgroup>,
}

/// Gathers everything, moves the Worker into a group of its own and ends what earlier jobs left behind. `active` are the
/// groups of jobs that are running.
///
/// # Errors
/// See [`BindError`]; nothing is on its way into the group any more then.
pub fn bind(
    host: &Host,
    id: String,
    candidate: &WorkerCandidate,
    context: JobContext,
    choice: PolicyChoice,
    active: &[CgroupIdentity],
) -> Result<Binding, Unbound> {
    let worker =
        Worker::open(candidate).map_err(|error| Unbound { error: error.into(), group: None })?;
    let (group, mut left_overs) = match make_group(host, &worker, &id, active) {
        Ok((group, ended)) => (Ok(group), ended),
        Err(problem) => (Err(problem), Vec::new()),
    };
    // Before everything else: it takes the longest. Rules of other jobs must know the group before anything is in it.
    let is_alone = active.is_empty();
    let moving = group
        .as_ref()
        .ok()
        .filter(|_| is_alone)
        .map(|group| Moving::start(group.clone(), worker.key(), candidate.callers.clone()));
    let hierarchy = host.hierarchy.as_ref().ok().filter(|_| group.is_ok());
    let (surveyed, network) = thread::scope(|scope| {
        let surveying = scope.spawn(|| {
            let snapshot = Snapshot::take();
            let ended = hierarchy
                .map(|hierarchy| end_orphans(hierarchy, worker.uid(), active, &snapshot))
                .unwrap_or_default();
            (survey_runners(&snapshot, candidate), ended)
        });
        let network = Network::of(&worker);
        (surveying.join(), network)
    });
    let (survey, ended) = surveyed.unwrap_or_else(|panic| resume_unwind(panic));
    left_overs.extend(ended);
    let found = network.and_then(|network| {
        let scope = scope(host.config.defaults.scope, survey);
        if let Err(problem) = &group
            && scope == EnforcementScope::Job
            && survey.user_is_shared
        {
            return Err(BindError::NotTellable(problem.clone()));
        }
        Ok((network, scope))
    });
    match found {
        Ok((network, scope)) => {
            let has_own_user = !survey.user_is_shared;
            let links = network.links.clone();
            let mut state = state(id, &worker, context, choice, &network);
            (state.scope, state.has_own_user) = (scope, has_own_user);
            match &group {
                Ok(group) => state.cgroup = Some(group.identity().clone()),
                Err(problem) => {
                    tracing::error!(
                        job.id = state.id,
                        reason = problem,
                        "the job has no cgroup of its own"
                    );
                    state.warnings.push(format!("the job has no cgroup of its own: {problem}"));
                }
            }
            let protecting = protect(&state);
            let group = group.ok();
            let callers = candidate.callers.clone();
            Ok(Binding { state, worker, callers, group, moving, protecting, left_overs, links })
        }
        Err(error) => {
            // Whatever became of the move: what was moved is moved back, or ended.
            let _ = moving.map(Moving::finish);
            Err(Unbound { error, group: group.ok() })
        }
    }
}

/// What a Worker's network namespace looks like.
struct Network {
    id: NetworkNamespaceId,
    links: Vec<Interface>,
    /// The runner's own connections.
    flows: Vec<Flow>,
}

impl Network {
    fn of(worker: &Worker) -> Result<Self, BindError> {
        let namespace = worker.network_namespace()?;
        let id = NetworkNamespaceId::of(&namespace).map_err(BindError::Network)?;
        let links = interfaces(namespace.as_fd()).map_err(BindError::Network)?;
        let diagnostics = SocketDiagnostics::open(namespace.as_fd())?;
        let runner: Vec<_> =
            [Some(worker.key()), worker.listener()].into_iter().flatten().collect();
        let flows = runner_flows(&runner, &diagnostics)?;
        Ok(Self { id, links, flows })
    }
}

/// What has to be written down of the job; group and scope are the caller's.
fn state(
    id: String,
    worker: &Worker,
    context: JobContext,
    choice: PolicyChoice,
    network: &Network,
) -> JobState {
    let mut warnings: Vec<String> = choice.origin.warning().into_iter().collect();
    if choice.origin == Origin::Store && choice.resolution.scope == ScopeKind::Default {
        let effect = match choice.resolution.policy.egress {
            EgressMode::Audit => "calls are only recorded, nothing is blocked",
            EgressMode::Block => "what it does not allow is blocked",
        };
        warnings.push(format!(
            "no policy is attached to this job's workflow, repository, organization or cluster, so this host's default applies: {effect}"
        ));
    }
    warnings.extend(choice.resolution.policy.warnings());
    JobState {
        format: JobState::FORMAT,
        id,
        context,
        worker: worker.key(),
        uid: worker.uid(),
        cgroup: None,
        is_audit_fallback: matches!(choice.origin, Origin::AuditFallback { .. }),
        resolution: choice.resolution,
        on_failure: choice.on_failure,
        warnings,
        scope: EnforcementScope::Host,
        has_own_user: false,
        network_namespace: network.id,
        other_jobs: Vec::new(),
        known_interfaces: network
            .links
            .iter()
            .map(|link| (link.name.clone(), link.index))
            .collect(),
        adopted_flows: network
            .flows
            .iter()
            // Loopback is not judged.
            .filter(|flow| !flow.destination.ip().is_loopback())
            .map(|flow| (flow.source, flow.destination))
            .collect(),
        gaps: Vec::new(),
        started: Timestamp::now(),
    }
}

/// Starts to protect the Worker of `state` as its policy says. Also when it is taken over after a restart: what is in force
/// already is left as it is.
pub fn protect(state: &JobState) -> Protecting {
    let policy = &state.resolution.policy;
    let no_new_privileges = policy.disable_sudo || policy.disable_sudo_and_containers;
    Protecting::start(state.worker, state.uid, Wanted { no_new_privileges })
}

fn scope(configured: ScopeConfig, survey: RunnerSurvey) -> EnforcementScope {
    match configured {
        ScopeConfig::Job => EnforcementScope::Job,
        ScopeConfig::Auto if survey.listeners_in_network_namespace > 1 => EnforcementScope::Job,
        ScopeConfig::Host | ScopeConfig::Auto => EnforcementScope::Host,
    }
}

/// Ends the groups of earlier jobs, then makes the group of this one.
fn make_group(
    host: &Host,
    worker: &Worker,
    id: &str,
    active: &[CgroupIdentity],
) -> Result<(JobCgroup, Vec<String>), String> {
    let hierarchy = host.hierarchy.as_ref().map_err(Clone::clone)?;
    let of_worker = hierarchy.group_of(worker.pid()).map_err(|error| with_causes(&error))?;
    let mut ended = Vec::new();
    for stale in stale_job_groups(&of_worker, active).map_err(|error| with_causes(&error))? {
        let name = stale.identity().path.display().to_string();
        match stale.end(LEFT_OVER_PATIENCE) {
            Ok(killed) if killed.is_empty() => {}
            Ok(killed) => ended.push(format!("{} processes in {name}", killed.len())),
            Err(error) => return Err(with_causes(&error)),
        }
    }
    let group = JobCgroup::create_empty(hierarchy, worker.key(), id)
        .map_err(|error| with_causes(&error))?;
    Ok((group, ended))
}

/// Ends the processes that earlier jobs of the user left outside of their groups.
fn end_orphans(
    hierarchy: &Hierarchy,
    uid: u32,
    active: &[CgroupIdentity],
    snapshot: &Snapshot,
) -> Vec<String> {
    let active_groups: Vec<_> =
        active.iter().filter_map(|group| JobCgroup::open_existing(hierarchy, group).ok()).collect();
    let is_active =
        |process: &ProcessEntry| active_groups.iter().any(|group| group.contains(process.key.pid));
    let mut orphans = left_overs(snapshot, uid, is_active);
    if !orphans.is_empty() {
        // A snapshot is not of one moment: what is killed is looked at once more.
        orphans = left_overs(&ProcFs, uid, is_active);
    }
    let outcomes = kill_left_overs(orphans);
    outcomes.into_iter().map(|outcome| format!("process {}", outcome.process.key.pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::scope;
    use crate::caller::RunnerSurvey;
    use crate::config::ScopeConfig;
    use portcullis_common::event::EnforcementScope;

    #[test]
    fn several_runners_are_kept_apart_and_one_has_the_host() {
        let survey = |listeners_in_network_namespace| RunnerSurvey {
            listeners_in_network_namespace,
            user_is_shared: false,
        };
        assert_eq!(scope(ScopeConfig::Auto, survey(1)), EnforcementScope::Host);
        assert_eq!(scope(ScopeConfig::Auto, survey(2)), EnforcementScope::Job);
        assert_eq!(scope(ScopeConfig::Host, survey(2)), EnforcementScope::Host);
        assert_eq!(scope(ScopeConfig::Job, survey(1)), EnforcementScope::Job);
    }
}
