//! What a job's posture says of each mechanism.

use crate::caller::Worker;
use crate::dns::Resolver;
use crate::egress::RuleSet;
use crate::egress::target::OwnerMode;
use crate::job::host::Host;
use crate::job::privileges::job_privileges;
use crate::job::state::JobState;
use crate::protect::Protection;
use portcullis_common::event::{Feature, FeatureState};

/// The mechanisms as they are for this job.
pub(super) fn features(
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
