//! Egress decisions as values: from a policy and what is enforced on whom, to a rule set; and what names grant.

pub mod grant;
