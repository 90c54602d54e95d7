//! `monitor check`: probes this host and says what posture a job would get.

use super::shown_lines;
use crate::cgroup::Hierarchy;
use crate::config::{Config, Paths, ScopeConfig};
use crate::job::posture::{Measured, posture};
use crate::nftables;
use crate::watch::backend::Sensors;
use portcullis_common::event::{EnforcementScope, Feature, FeatureState, PostureLevel};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::EgressMode;
use portcullis_common::store_client::directory::DirectoryStore;
use portcullis_common::wire::HostCheck;
use std::fmt::Write;

/// Features without which no policy can be put in force.
const INDISPENSABLE: &[&str] = &["nftables", "nflog", "configuration", "policies"];

/// Tries everything out; nothing of the host is changed. Needs root.
pub fn check(paths: &Paths) -> HostCheck {
    let mut features = match nftables::probe() {
        Ok(probed) => probed.features,
        Err(error) => vec![missing(
            "nftables",
            format!("no network namespace can be made to try it ({error}); run this as root"),
        )],
    };
    features.push(match Hierarchy::find() {
        Ok(hierarchy) => Feature {
            name: "cgroup-v2".to_owned(),
            state: FeatureState::Active,
            reason: format!("mounted on {}", hierarchy.mount_point().display()),
        },
        Err(error) => Feature {
            name: "cgroup-v2".to_owned(),
            state: FeatureState::Missing,
            reason: with_causes(&error),
        },
    });
    let config = Config::load(paths);
    features.push(match &config {
        Ok(_) if paths.config().exists() => {
            active("configuration", paths.config().display().to_string())
        }
        Ok(_) => active(
            "configuration",
            format!("built-in defaults; there is no {}", paths.config().display()),
        ),
        Err(error) => missing("configuration", with_causes(error)),
    });
    let config = config.unwrap_or_default();
    features.extend(Sensors::load(config.sensors.backend).features());
    features.push(policies(&config, paths));

    let lacking: Vec<_> = features
        .iter()
        .filter(|feature| feature.state == FeatureState::Missing)
        .filter(|feature| INDISPENSABLE.contains(&feature.name.as_str()))
        .map(|feature| format!("{}: {}", feature.name, feature.reason))
        .collect();
    let rules = if lacking.is_empty() { Ok(()) } else { Err(lacking.join("; ")) };
    let scope = match config.defaults.scope {
        ScopeConfig::Job => EnforcementScope::Job,
        ScopeConfig::Host | ScopeConfig::Auto => EnforcementScope::Host,
    };
    let posture = posture(Measured {
        mode: EgressMode::Block,
        is_audit_fallback: false,
        scope,
        rules,
        features: features.clone(),
        warnings: Vec::new(),
    });
    HostCheck { features, posture }
}

/// Whether a job could be enforced here.
pub fn is_sufficient(check: &HostCheck) -> bool {
    matches!(check.posture.level, PostureLevel::Enforced | PostureLevel::Degraded)
}

/// The result as text for a person.
pub fn for_a_person(check: &HostCheck) -> String {
    let mut out = String::new();
    for feature in &check.features {
        let state = match feature.state {
            FeatureState::Active => "active",
            FeatureState::Degraded => "degraded",
            FeatureState::Missing => "MISSING",
        };
        let _ = writeln!(out, "{state:<9} {:<24} {}", feature.name, shown_lines(&feature.reason));
    }
    let summary = match check.posture.level {
        PostureLevel::Enforced => {
            "a policy in block mode would be enforced, with every mechanism in place"
        }
        PostureLevel::Degraded => {
            "a policy in block mode would be enforced, with the weaknesses above"
        }
        _ => "a policy could NOT be enforced here",
    };
    let _ = writeln!(out, "\n{summary}");
    out
}

fn policies(config: &Config, paths: &Paths) -> Feature {
    let Some(directory) = config.policy_directory(paths) else {
        return missing(
            "policies",
            format!("store.url is {}, and this monitor reads directories only", config.store.url),
        );
    };
    let opened = DirectoryStore::open(&directory).map_err(|error| error.to_string());
    match opened.and_then(|store| store.current().map_err(|errors| errors.to_string())) {
        Ok(policies) => active(
            "policies",
            format!("{} attachments in {}", policies.attachments().count(), directory.display()),
        ),
        Err(problem) => missing("policies", format!("{}: {problem}", directory.display())),
    }
}

fn active(name: &str, reason: String) -> Feature {
    Feature { name: name.to_owned(), state: FeatureState::Active, reason }
}

fn missing(name: &str, reason: String) -> Feature {
    Feature { name: name.to_owned(), state: FeatureState::Missing, reason }
}
