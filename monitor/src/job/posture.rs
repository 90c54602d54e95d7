//! The posture of a job: what is really in force, from what was measured.

use portcullis_common::event::{EnforcementScope, Feature, FeatureState, Posture, PostureLevel};
use portcullis_common::policy::EgressMode;

/// What was measured of a job's enforcement.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Audit or block, as the policy says.
    pub mode: EgressMode,
    /// Whether the policy is there only because the store could not be asked and the failure mode is `audit`.
    pub is_audit_fallback: bool,
    /// Whose traffic is the job's.
    pub scope: EnforcementScope,
    /// Whether the rule set is in the kernel as it was read back; otherwise why not.
    pub rules: Result<(), String>,
    /// The mechanisms.
    pub features: Vec<Feature>,
    /// What a person must be told.
    pub warnings: Vec<String>,
}

/// The posture that follows from what was measured.
pub fn posture(measured: Measured) -> Posture {
    let Measured { mode, is_audit_fallback, scope, rules, mut features, mut warnings } = measured;
    let weaknesses: Vec<&Feature> =
        features.iter().filter(|feature| feature.is_weakness()).collect();
    let level = match (&rules, mode) {
        (Err(_), _) => PostureLevel::Unenforced,
        (Ok(()), _) if is_audit_fallback => PostureLevel::AuditFallback,
        (Ok(()), EgressMode::Audit) => PostureLevel::Audit,
        (Ok(()), EgressMode::Block) if weaknesses.is_empty() => PostureLevel::Enforced,
        (Ok(()), EgressMode::Block) => PostureLevel::Degraded,
    };
    for weakness in weaknesses {
        warnings.push(format!("{}: {}", weakness.name, weakness.reason));
    }
    let (state, reason) = match rules {
        Ok(()) => (FeatureState::Active, "installed, read back and equal to the policy".to_owned()),
        Err(problem) => {
            warnings.insert(0, format!("the rules are not in force: {problem}"));
            (FeatureState::Missing, problem)
        }
    };
    features.insert(0, Feature { name: "rules".to_owned(), state, reason });
    Posture { level, scope, features, warnings }
}

#[cfg(test)]
mod tests {
    use super::{Measured, posture};
    use portcullis_common::event::{EnforcementScope, Feature, FeatureState, PostureLevel};
    use portcullis_common::policy::EgressMode;

    fn measured(mode: EgressMode, features: &[(&str, FeatureState)]) -> Measured {
        Measured {
            mode,
            is_audit_fallback: false,
            scope: EnforcementScope::Host,
            rules: Ok(()),
            features: features
                .iter()
                .map(|(name, state)| Feature {
                    name: (*name).to_owned(),
                    state: *state,
                    reason: "because".to_owned(),
                })
                .collect(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn enforced_needs_every_mechanism() {
        let all = posture(measured(EgressMode::Block, &[("table-owner", FeatureState::Active)]));
        assert_eq!(all.level, PostureLevel::Enforced);
        assert!(all.warnings.is_empty());

        let weak = posture(measured(EgressMode::Block, &[("table-owner", FeatureState::Missing)]));
        assert_eq!(weak.level, PostureLevel::Degraded);
        assert_eq!(weak.warnings, ["table-owner: because"]);
    }

    #[test]
    fn a_weak_sensor_is_told_but_enforces_no_less() {
        let features = [("sensor-process", FeatureState::Degraded)];
        let posture = posture(measured(EgressMode::Block, &features));
        assert_eq!(posture.level, PostureLevel::Enforced);
        assert_eq!(posture.features.len(), 2);
    }

    #[test]
    fn rules_that_are_not_there_are_no_audit() {
        for mode in [EgressMode::Audit, EgressMode::Block] {
            let rules = Err("the table is gone".to_owned());
            let posture = posture(Measured { rules, ..measured(mode, &[]) });
            assert_eq!(posture.level, PostureLevel::Unenforced);
            assert_eq!(posture.warnings, ["the rules are not in force: the table is gone"]);
        }
    }

    #[test]
    fn audit_by_policy_and_audit_by_failure_are_told_apart() {
        assert_eq!(posture(measured(EgressMode::Audit, &[])).level, PostureLevel::Audit);
        let fallback = Measured { is_audit_fallback: true, ..measured(EgressMode::Audit, &[]) };
        assert_eq!(posture(fallback).level, PostureLevel::AuditFallback);
    }
}
