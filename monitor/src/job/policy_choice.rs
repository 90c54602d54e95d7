//! Which policy a job gets, also when the store can't say.

use super::last_known_good::LastKnownGood;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::{EffectivePolicy, EgressMode, FailureMode};
use portcullis_common::resolution::{Identity, Resolution, ScopeKind};

/// The policy that is put in force, and what has to be said about how it was had.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyChoice {
    /// The policy and why it is this one.
    pub resolution: Resolution,
    /// What to do when it can't be put in force.
    pub on_failure: FailureMode,
    /// How the choice came about.
    pub origin: Origin,
}

/// How a policy was had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The store said so.
    Store,
    /// The store could not say; this is what it said last.
    LastKnownGood {
        /// Why the store could not say.
        problem: String,
    },
    /// The store could not say and the failure mode is `audit`.
    AuditFallback {
        /// Why the store could not say.
        problem: String,
    },
    /// The store could not say and the failure mode is `closed`: nothing is allowed, and the hook fails.
    Closed {
        /// Why the store could not say.
        problem: String,
    },
}

impl Origin {
    /// What a person must be told about a policy that did not come from the store; `None` when it did.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Store => None,
            Self::LastKnownGood { problem } => Some(format!(
                "the policy store could not be asked ({problem}); the last known good policy applies"
            )),
            Self::AuditFallback { problem } => Some(format!(
                "the policy store could not be asked ({problem}); the failure mode is audit, so calls are only recorded and nothing is blocked"
            )),
            Self::Closed { problem } => Some(format!(
                "the policy store could not be asked ({problem}); the failure mode is closed, so nothing is allowed"
            )),
        }
    }
}

/// Chooses: `asked` is the store's answer or why there is none.
pub fn choose(
    context: &JobContext,
    asked: Result<Resolution, String>,
    host_failure_mode: FailureMode,
    last_known_good: &LastKnownGood,
) -> PolicyChoice {
    let problem = match asked {
        Ok(resolution) => {
            let on_failure = resolution.policy.on_failure.unwrap_or(host_failure_mode);
            return PolicyChoice { resolution, on_failure, origin: Origin::Store };
        }
        Err(problem) => problem,
    };
    let known = last_known_good.load(context);
    // The policy's own word counts, where one was ever had.
    let mode =
        known.as_ref().and_then(|known| known.policy.on_failure).unwrap_or(host_failure_mode);
    match (mode, known) {
        (FailureMode::LastKnownGood, Some(mut resolution)) => {
            // Whoever was vouched for then, it was another job.
            resolution.identity = Identity::Asserted;
            PolicyChoice { resolution, on_failure: mode, origin: Origin::LastKnownGood { problem } }
        }
        (FailureMode::LastKnownGood, None) => {
            let problem = format!("{problem}; no policy of an earlier job is known");
            fallback(FailureMode::Closed, Origin::Closed { problem })
        }
        (FailureMode::Audit, _) => fallback(mode, Origin::AuditFallback { problem }),
        (FailureMode::Closed, _) => fallback(mode, Origin::Closed { problem }),
    }
}

fn fallback(on_failure: FailureMode, origin: Origin) -> PolicyChoice {
    let (name, egress) = match &origin {
        Origin::AuditFallback { .. } => ("audit-fallback", EgressMode::Audit),
        _ => ("closed", EgressMode::Block),
    };
    let policy = EffectivePolicy {
        name: name.to_owned(),
        version: "built-in".to_owned(),
        on_failure: Some(on_failure),
        ..EffectivePolicy::built_in(egress)
    };
    let resolution = Resolution {
        policy,
        scope: ScopeKind::Default,
        target: "failure mode".to_owned(),
        identity: Identity::Asserted,
        considered: Vec::new(),
    };
    PolicyChoice { resolution, on_failure, origin }
}

#[cfg(test)]
mod tests {
    use super::{Origin, choose, fallback};
    use crate::job::last_known_good::LastKnownGood;
    use portcullis_common::job_context::JobContext;
    use portcullis_common::policy::{EgressMode, FailureMode};
    use portcullis_common::resolution::Resolution;

    fn context() -> JobContext {
        JobContext {
            repository: "octo/hello".to_owned(),
            workflow_ref: "octo/hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
            ..JobContext::default()
        }
    }

    fn known(on_failure: Option<FailureMode>) -> Resolution {
        let mut resolution =
            fallback(FailureMode::Closed, Origin::Closed { problem: String::new() }).resolution;
        resolution.policy.name = "known".to_owned();
        resolution.policy.on_failure = on_failure;
        resolution
    }

    /// What an earlier job left.
    #[derive(Clone, Copy)]
    enum Known {
        Nothing,
        Policy,
        PolicyWith(FailureMode),
    }

    fn choose_without_store(
        host: FailureMode,
        known_policy: Known,
    ) -> (String, EgressMode, Origin) {
        let directory = tempfile::tempdir().unwrap();
        let last_known_good = LastKnownGood::at(directory.path().to_owned());
        match known_policy {
            Known::Nothing => {}
            Known::Policy => last_known_good.save(&context(), &known(None)).unwrap(),
            Known::PolicyWith(mode) => {
                last_known_good.save(&context(), &known(Some(mode))).unwrap();
            }
        }
        let choice = choose(&context(), Err("it is gone".to_owned()), host, &last_known_good);
        (choice.resolution.policy.name, choice.resolution.policy.egress, choice.origin)
    }

    #[test]
    fn the_store_decides_when_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let last_known_good = LastKnownGood::at(directory.path().to_owned());
        let choice =
            choose(&context(), Ok(known(None)), FailureMode::LastKnownGood, &last_known_good);
        assert_eq!(choice.origin, Origin::Store);
        assert_eq!(choice.origin.warning(), None);
        assert_eq!(
            choice.on_failure,
            FailureMode::LastKnownGood,
            "the host's, for the policy has none"
        );
    }

    #[test]
    fn closed_allows_nothing() {
        let (name, mode, origin) = choose_without_store(FailureMode::Closed, Known::Policy);
        assert_eq!((name.as_str(), mode), ("closed", EgressMode::Block));
        assert!(origin.warning().unwrap().contains("it is gone"));
    }

    #[test]
    fn last_known_good_needs_a_known_policy() {
        let (name, ..) = choose_without_store(FailureMode::LastKnownGood, Known::Policy);
        assert_eq!(name, "known");
        let (name, mode, _) = choose_without_store(FailureMode::LastKnownGood, Known::Nothing);
        assert_eq!((name.as_str(), mode), ("closed", EgressMode::Block));
    }

    #[test]
    fn the_policy_knows_better_than_the_host() {
        let (name, ..) =
            choose_without_store(FailureMode::Audit, Known::PolicyWith(FailureMode::LastKnownGood));
        assert_eq!(name, "known");
        let (name, ..) = choose_without_store(
            FailureMode::LastKnownGood,
            Known::PolicyWith(FailureMode::Closed),
        );
        assert_eq!(name, "closed");
    }

    #[test]
    fn audit_is_never_silent() {
        let (_, mode, origin) = choose_without_store(FailureMode::Audit, Known::Nothing);
        assert_eq!(mode, EgressMode::Audit);
        assert!(origin.warning().unwrap().contains("nothing is blocked"));
    }
}
