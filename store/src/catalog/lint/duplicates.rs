//! Endpoints that a policy says more than once, itself or with what it extends.

use super::finding;
use portcullis_common::endpoint::Endpoint;
use portcullis_common::policy::{EndpointList, Library, PolicyDocument, PolicyErrors, Rule};
use portcullis_common::store_api::LintFinding;
use std::collections::HashMap;
use std::sync::Arc;

/// What says an endpoint first.
enum First<'a> {
    /// The policy itself, in these words.
    Here(&'a str),
    /// Something that it extends.
    Inherited(&'a Rule),
}

/// The rules that a policy gets from what it extends, in the order they were visited.
#[derive(Default)]
struct Inherited {
    allowed: Vec<Arc<Rule>>,
    denied: Vec<Arc<Rule>>,
}

/// A finding for each endpoint of the document that says nothing new. Those of policies that it extends are theirs.
///
/// # Errors
/// When `extends` can't be followed.
pub(super) fn duplicates(
    library: &Library,
    document: &PolicyDocument,
) -> Result<Vec<LintFinding>, PolicyErrors> {
    let mut inherited = Inherited::default();
    for parent in &document.extends {
        if let Some(rules) = library.rules(parent.as_str()) {
            let rules = rules?;
            inherited.allowed.extend(rules.allowed);
            inherited.denied.extend(rules.denied);
        }
    }
    let mut findings = repeated(document.allowed_endpoints.as_ref(), &inherited.allowed, "allowed");
    findings.extend(repeated(document.denied_endpoints.as_ref(), &inherited.denied, "denied"));
    Ok(findings)
}

fn repeated(
    list: Option<&EndpointList>,
    inherited: &[Arc<Rule>],
    verdict: &str,
) -> Vec<LintFinding> {
    let mut first: HashMap<&Endpoint, First<'_>> = HashMap::new();
    for rule in inherited {
        first.entry(&rule.endpoint).or_insert(First::Inherited(rule));
    }
    let mut findings = Vec::new();
    for written in list.into_iter().flat_map(|list| &list.0) {
        let text = written.text();
        let message = match first.get(written.endpoint()) {
            None => {
                first.insert(written.endpoint(), First::Here(text));
                continue;
            }
            Some(First::Here(same)) if *same == text => format!("`{text}` is {verdict} twice"),
            Some(First::Here(other)) => {
                format!("`{text}` is {verdict} twice: `{other}` means the same")
            }
            Some(First::Inherited(rule)) => {
                format!("`{text}` is {verdict} by `{}` already, which this extends", rule.policy)
            }
        };
        findings.push(finding(
            "duplicate-endpoint",
            Some(text),
            message,
            "one of them is enough: remove the other, unless it stands for a need of its own",
        ));
    }
    findings
}
