//! What a policy means for a job: built-in defaults, the version, and what a reviewer should know.

use super::{EffectivePolicy, EgressMode, LockdownMode, Rule};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// The name of the built-in policy that allows nothing and audits.
pub const DEFAULT_AUDIT: &str = "default-audit";

/// The name of the built-in policy that allows nothing and blocks.
pub const DEFAULT_BLOCK: &str = "default-block";

/// Bytes of the content hash that make a version: 48 bits tell apart what one operator ever writes, and stay readable.
const VERSION_BYTES: usize = 6;

impl EffectivePolicy {
    /// The built-in policy for jobs that no policy is attached to: it allows nothing but what the runner itself needs.
    pub fn built_in(egress: EgressMode) -> Self {
        let name = match egress {
            EgressMode::Audit => DEFAULT_AUDIT,
            EgressMode::Block => DEFAULT_BLOCK,
        };
        let mut policy = Self {
            name: name.to_owned(),
            version: String::new(),
            egress,
            allowed: Vec::new(),
            denied: Vec::new(),
            fail_on_block: false,
            disable_sudo: false,
            disable_sudo_and_containers: false,
            disable_file_monitoring: false,
            disable_telemetry: false,
            on_failure: None,
            lockdown: LockdownMode::default(),
        };
        policy.version = policy.content_version();
        policy
    }

    /// The version of an embedded store: the first 12 hexadecimal digits of the SHA-256 of the policy's canonical content.
    ///
    /// It depends on everything that changes what is enforced, and on nothing that does not: order and spelling of
    /// endpoints, descriptions, the documents they come from.
    pub fn content_version(&self) -> String {
        let endpoints = |rules: &[Arc<Rule>]| -> BTreeSet<String> {
            rules.iter().map(|rule| rule.endpoint.to_string()).collect()
        };
        let detections: BTreeSet<_> = self.lockdown.detections.iter().collect();
        // An object's keys are sorted, so the same content has the same text.
        let canonical = json!({
            "name": self.name,
            "egress": self.egress,
            "allowed": endpoints(&self.allowed),
            "denied": endpoints(&self.denied),
            "fail_on_block": self.fail_on_block,
            "disable_sudo": self.disable_sudo,
            "disable_sudo_and_containers": self.disable_sudo_and_containers,
            "disable_file_monitoring": self.disable_file_monitoring,
            "disable_telemetry": self.disable_telemetry,
            "on_failure": self.on_failure,
            "lockdown_enabled": self.lockdown.enabled,
            "lockdown_detections": detections,
        });
        let digest = Sha256::digest(canonical.to_string());
        digest.iter().take(VERSION_BYTES).fold(String::new(), |mut version, byte| {
            let _ = write!(version, "{byte:02x}");
            version
        })
    }

    /// What a reviewer should know about this policy, in words: rules that restrict nothing, Lockdown Mode without effect.
    pub fn warnings(&self) -> Vec<String> {
        let open = self.allowed.iter().filter(|rule| rule.endpoint.is_unrestricted()).map(|rule| {
            format!("`{}` in policy `{}` allows every address", rule.text, rule.policy)
        });
        let idle = (self.lockdown.enabled && self.lockdown.detections.is_empty()).then(|| {
            "lockdown mode is enabled but lists no detection, so it never acts".to_owned()
        });
        open.chain(idle).collect()
    }
}
