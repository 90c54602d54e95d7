//! What a reviewer should know about a policy that is valid.

mod covering;
mod duplicates;

use covering::Covering;
use portcullis_common::endpoint::{Endpoint, Host};
use portcullis_common::policy::{EffectivePolicy, EgressMode, Library, PolicyErrors, Rule};
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

/// Everything noteworthy about the policy with this name: what it repeats, then what it means; `None` when there is none.
///
/// # Errors
/// When `extends` can't be followed, or nothing says `egress-policy`.
pub fn lint(library: &Library, name: &str) -> Option<Result<Vec<LintFinding>, PolicyErrors>> {
    let source = library.get(name)?;
    let policy = library.effective(name)?;
    Some(policy.and_then(|policy| {
        let mut findings = duplicates::duplicates(library, &source.document)?;
        findings.extend(meaning(&policy));
        Ok(findings)
    }))
}

/// Everything noteworthy in what a policy means, in its order.
fn meaning(policy: &EffectivePolicy) -> Vec<LintFinding> {
    let lists = Lists {
        allowed: Covering::of(policy.allowed.iter().map(|rule| &rule.endpoint)),
        denied: Covering::of(policy.denied.iter().map(|rule| &rule.endpoint)),
    };
    let mut findings: Vec<LintFinding> = policy
        .allowed
        .iter()
        .enumerate()
        .flat_map(|(index, rule)| allowed(policy, &lists, index, rule))
        .collect();
    findings.extend(denied(policy, &lists));
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

/// Both lists of a policy, for looking up what covers what.
struct Lists {
    allowed: Covering,
    denied: Covering,
}

fn allowed(policy: &EffectivePolicy, lists: &Lists, index: usize, rule: &Rule) -> Vec<LintFinding> {
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
    // Of two that mean the same the first stays: [`duplicates`] tells of the others.
    let wider = lists.allowed.find_other(&rule.endpoint, index);
    if let Some(wider) = wider.and_then(|other| policy.allowed.get(other)) {
        findings.push(finding(
            "shadowed-endpoint",
            text,
            format!("`{}` is covered by `{}`{place}", rule.text, wider.text),
            "remove the narrower one, or the wider one if it was not meant",
        ));
    }
    let denied = lists.denied.find(&rule.endpoint);
    if let Some(denied) = denied.and_then(|other| policy.denied.get(other)) {
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
fn denied<'a>(
    policy: &'a EffectivePolicy,
    lists: &'a Lists,
) -> impl Iterator<Item = LintFinding> + 'a {
    let blocks = policy.egress == EgressMode::Block;
    let covers_allowed =
        lists.denied.cover_any(policy.allowed.iter().map(|allowed| &allowed.endpoint));
    let allows = |name| policy.allowed.iter().any(|allowed| is_name(&allowed.endpoint) == name);
    let (allows_names, allows_addresses) = (allows(true), allows(false));
    policy.denied.iter().zip(covers_allowed).filter_map(move |(rule, covers_allowed)| {
        let touches = covers_allowed
            || lists.allowed.find(&rule.endpoint).is_some()
            // A name can lead into a denied network, and a denied name to an allowed one.
            || if is_name(&rule.endpoint) { allows_addresses } else { allows_names };
        (blocks && !touches).then(|| {
            finding(
                "idle-denied",
                Some(&rule.text),
                format!("`{}` is denied, and nothing allows it anyway", rule.text),
                "keep it if other policies extend this one; remove it otherwise",
            )
        })
    })
}

const fn is_name(endpoint: &Endpoint) -> bool {
    matches!(endpoint.host, Host::Name(_) | Host::Wildcard(_))
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
