//! What a reviewer should know about a policy that is valid.

use portcullis_common::endpoint::{Endpoint, Host};
use portcullis_common::policy::{EffectivePolicy, Rule};
use portcullis_common::store_api::LintFinding;
use std::net::IpAddr;

/// Zones in which everybody can have a name or a bucket: a wildcard below one lets a job talk to strangers.
/// Public suffixes themselves are refused already; these are registered by one company and rented out by the name.
const MULTI_TENANT: [&str; 14] = [
    "amazonaws.com",
    "azureedge.net",
    "azurefd.net",
    "azurewebsites.net",
    "blob.core.windows.net",
    "cloudapp.azure.com",
    "cloudfront.net",
    "core.windows.net",
    "digitaloceanspaces.com",
    "fastly.net",
    "googleapis.com",
    "r2.dev",
    "storage.googleapis.com",
    "workers.dev",
];

/// Addresses at which clouds hand out credentials of the machine.
const METADATA: [&str; 4] =
    ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200"];

/// Networks so wide that they are hardly meant: an IPv4 prefix below this, an IPv6 prefix below that.
const WIDE_PREFIX: (u8, u8) = (8, 16);

/// Everything noteworthy, in the order of the policy.
pub fn lint(policy: &EffectivePolicy) -> Vec<LintFinding> {
    let mut findings: Vec<LintFinding> = policy
        .allowed
        .iter()
        .enumerate()
        .flat_map(|(index, rule)| allowed(policy, index, rule))
        .collect();
    findings.extend(policy.denied.iter().filter_map(|rule| denied(policy, rule)));
    if policy.lockdown.enabled && policy.lockdown.detections.is_empty() {
        findings.push(finding(
            "idle-lockdown",
            None,
            "lockdown mode is enabled but lists no detection, so it never acts".to_owned(),
            "list detections, or set `enabled: false`",
        ));
    }
    findings
}

fn allowed(policy: &EffectivePolicy, index: usize, rule: &Rule) -> Vec<LintFinding> {
    let mut findings = Vec::new();
    let text = Some(&*rule.text);
    let place = if *rule.policy == *policy.name {
        String::new()
    } else {
        format!(" (from policy `{}`)", rule.policy)
    };
    if rule.endpoint.is_unrestricted() {
        findings.push(finding(
            "unrestricted",
            text,
            format!("`{}` allows every address{place}", rule.text),
            "name the hosts or networks that are needed",
        ));
    } else if let Host::Network(network) = &rule.endpoint.host
        && network.prefix_len()
            < if network.addr().is_ipv4() { WIDE_PREFIX.0 } else { WIDE_PREFIX.1 }
    {
        findings.push(finding(
            "wide-network",
            text,
            format!("`{}` is a very large network{place}", rule.text),
            "name the networks that are needed",
        ));
    }
    if let Host::Wildcard(name) = &rule.endpoint.host
        && let Some(zone) = MULTI_TENANT
            .iter()
            .find(|zone| name.to_string().eq(**zone) || zone.ends_with(&format!(".{name}")))
    {
        findings.push(finding(
            "multi-tenant-wildcard",
            text,
            format!("`{}` covers `{zone}`, where anybody can have a name{place}", rule.text),
            "name the hosts that are needed",
        ));
    }
    if let Some(address) = metadata_address(&rule.endpoint) {
        findings.push(finding(
            "metadata-address",
            text,
            format!(
                "`{}` opens {address}, where clouds hand out the machine's credentials{place}",
                rule.text
            ),
            "remove it, or deny the address",
        ));
    }
    let wider = policy.allowed.iter().enumerate().find(|(other, wider)| {
        *other != index
            && covers(&wider.endpoint, &rule.endpoint)
            // Of two that mean the same the first stays; `extends` has united those already.
            && !(covers(&rule.endpoint, &wider.endpoint) && *other > index)
    });
    if let Some((_, wider)) = wider {
        findings.push(finding(
            "shadowed-endpoint",
            text,
            format!("`{}` is covered by `{}`{place}", rule.text, wider.text),
            "remove the narrower one, or the wider one if it was not meant",
        ));
    }
    if let Some(denied) =
        policy.denied.iter().find(|denied| covers(&denied.endpoint, &rule.endpoint))
    {
        findings.push(finding(
            "denied-anyway",
            text,
            format!("`{}` is denied by `{}`, and denied wins{place}", rule.text, denied.text),
            "remove one of the two",
        ));
    }
    findings
}

/// In block mode, denying what nothing allows changes nothing; in audit mode it blocks.
fn denied(policy: &EffectivePolicy, rule: &Rule) -> Option<LintFinding> {
    let blocks = policy.egress == portcullis_common::policy::EgressMode::Block;
    let touches = policy.allowed.iter().any(|allowed| {
        covers(&allowed.endpoint, &rule.endpoint) || covers(&rule.endpoint, &allowed.endpoint)
            // A name can lead into a denied network, and a denied name to an allowed one.
            || is_name(&allowed.endpoint) != is_name(&rule.endpoint)
    });
    (blocks && !touches).then(|| {
        finding(
            "idle-denied",
            Some(&rule.text),
            format!("`{}` is denied, and nothing allows it anyway", rule.text),
            "keep it if other policies extend this one; remove it otherwise",
        )
    })
}

const fn is_name(endpoint: &Endpoint) -> bool {
    matches!(endpoint.host, Host::Name(_) | Host::Wildcard(_))
}

/// Whether everything that `narrow` names is named by `wide`.
fn covers(wide: &Endpoint, narrow: &Endpoint) -> bool {
    wide.protocol == narrow.protocol
        && wide.host.includes(&narrow.host)
        && wide.ports.first() <= narrow.ports.first()
        && narrow.ports.last() <= wide.ports.last()
}

/// The metadata address that an endpoint opens by name or by a network that is not all of the internet.
fn metadata_address(endpoint: &Endpoint) -> Option<&'static str> {
    if endpoint.is_unrestricted() {
        return None;
    }
    METADATA.into_iter().find(|text| {
        text.parse::<IpAddr>().is_ok_and(|address| endpoint.host.matches_address(address))
    })
}

fn finding(rule: &str, endpoint: Option<&str>, message: String, hint: &str) -> LintFinding {
    LintFinding {
        rule: rule.to_owned(),
        endpoint: endpoint.map(str::to_owned),
        message,
        hint: hint.to_owned(),
    }
}
