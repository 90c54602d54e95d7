//! The first line of `pre-job`.

use crate::event::PostureLevel;
use crate::policy::EgressMode;
use crate::text::log_line;
use crate::wire::Started;

/// One line: policy, version, scope, mode, number of endpoints, posture. Safe to print.
pub fn first_line(started: &Started) -> String {
    let endpoints = match started.endpoints {
        1 => "1 endpoint".to_owned(),
        count => format!("{count} endpoints"),
    };
    let text = format!(
        "Portcullis: policy {} version {} from {} {}, mode {}, {endpoints} allowed, posture {}",
        started.policy,
        started.policy_version,
        started.scope,
        started.target,
        mode_name(started.mode),
        level_name(started.posture.level),
    );
    log_line(&text, 1000)
}

/// `audit` or `block`.
pub(super) const fn mode_name(mode: EgressMode) -> &'static str {
    match mode {
        EgressMode::Audit => "audit",
        EgressMode::Block => "block",
    }
}

/// The posture in one word, as it is serialized.
pub(super) const fn level_name(level: PostureLevel) -> &'static str {
    match level {
        PostureLevel::Enforced => "enforced",
        PostureLevel::Degraded => "degraded",
        PostureLevel::Audit => "audit",
        PostureLevel::AuditFallback => "audit-fallback",
        PostureLevel::Unenforced => "unenforced",
    }
}
