//! What changed between two versions of a policy.

use portcullis_common::policy::{EndpointList, PolicyDocument};
use portcullis_common::store_api::PolicyDiff;
use similar::TextDiff;

/// The difference of two versions of policy `name`.
pub fn diff(
    name: &str,
    (from, old): (u64, &PolicyDocument),
    (to, new): (u64, &PolicyDocument),
) -> PolicyDiff {
    let text = |document: &PolicyDocument| document.to_yaml().unwrap_or_default();
    let (old_text, new_text) = (text(old), text(new));
    let unified = TextDiff::from_lines(&old_text, &new_text)
        .unified_diff()
        .header(&format!("{name} version {from}"), &format!("{name} version {to}"))
        .to_string();
    PolicyDiff {
        from,
        to,
        unified: if old_text == new_text { String::new() } else { unified },
        allowed_added: missing(new.allowed_endpoints.as_ref(), old.allowed_endpoints.as_ref()),
        allowed_removed: missing(old.allowed_endpoints.as_ref(), new.allowed_endpoints.as_ref()),
        denied_added: missing(new.denied_endpoints.as_ref(), old.denied_endpoints.as_ref()),
        denied_removed: missing(old.denied_endpoints.as_ref(), new.denied_endpoints.as_ref()),
    }
}

/// The endpoints of `list` whose meaning `other` does not have.
fn missing(list: Option<&EndpointList>, other: Option<&EndpointList>) -> Vec<String> {
    let known = |endpoint| {
        other.is_some_and(|other| other.0.iter().any(|written| written.endpoint() == endpoint))
    };
    list.into_iter()
        .flat_map(|list| &list.0)
        .filter(|written| !known(written.endpoint()))
        .map(|written| written.text().to_owned())
        .collect()
}
