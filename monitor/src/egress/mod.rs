//! Egress decisions as values: from a policy and what is enforced on whom, to a rule set; and what names grant.
//!
//! Nothing here does I/O. [`plan::rule_set`] is a pure function; [`crate::nftables`] applies its result and verifies it.

pub mod expression;
pub mod grant;
pub mod log_prefix;
pub mod plan;
pub mod rule_set;
pub mod target;

pub use portcullis_common::judging::github_hosts;

pub use plan::{PlanError, has_zones, rule_set};
pub use rule_set::RuleSet;
pub use target::EnforcementTarget;
