use super::{DefaultPolicy, HostDefaults, PolicySet, ResolveError, ScopeKind};
use crate::job_context::JobContext;
use crate::policy::{EgressMode, parse_documents};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::sync::Arc;

fn set(yaml: &str) -> PolicySet {
    PolicySet::new(parse_documents("policies.yaml", yaml.as_bytes()).unwrap())
        .unwrap_or_else(|e| panic!("{e}"))
}

fn refused(yaml: &str) -> String {
    PolicySet::new(parse_documents("policies.yaml", yaml.as_bytes()).unwrap())
        .expect_err("must be refused")
        .to_string()
}

fn context() -> JobContext {
    JobContext {
        repository: "Octo/Hello".to_owned(),
        repository_owner: "Octo".to_owned(),
        workflow_ref: "Octo/Hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
        ..JobContext::default()
    }
}

fn host() -> HostDefaults {
    HostDefaults { cluster: Some("prod".to_owned()), default_policy: DefaultPolicy::Block }
}

const TARGETS: [(ScopeKind, &str); 4] = [
    (ScopeKind::Workflow, "workflow: octo/hello/.github/workflows/ci.yml"),
    (ScopeKind::Repository, "repository: octo/hello"),
    (ScopeKind::Organization, "organization: OCTO"),
    (ScopeKind::Cluster, "cluster: prod"),
];

#[test]
fn explains_what_was_considered() {
    let set = set(
        "name: base\negress-policy: block\nattach: [{repository: octo/hello}, {cluster: prod}]\n",
    );
    let resolution = set.resolve(&context(), &host()).unwrap();
    assert_eq!(
        (resolution.scope, resolution.target.as_str()),
        (ScopeKind::Repository, "octo/hello")
    );
    let lines: Vec<String> = resolution
        .considered
        .iter()
        .map(|c| {
            format!(
                "{}{} {} [{}]: {}",
                if c.chosen { "* " } else { "  " },
                c.scope,
                c.target,
                c.policy.as_deref().unwrap_or("-"),
                c.reason
            )
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @"
      workflow octo/hello/.github/workflows/ci.yml [-]: no policy is attached to this workflow
    * repository octo/hello [base]: it is attached to this repository, and to nothing more specific
      organization octo [-]: no policy is attached to this organization
      cluster prod [base]: it is attached to this cluster, but the repository's policy is more specific
      default default [default-block]: the host's default is not needed: the repository has a policy
    ");
}

#[test]
fn the_default_applies_when_nothing_is_attached() {
    let empty = PolicySet::default();
    let mut host = HostDefaults::default();
    let resolution = empty.resolve(&context(), &host).unwrap();
    assert_eq!(
        (resolution.policy.name.as_str(), resolution.policy.egress),
        ("default-audit", EgressMode::Audit)
    );
    assert_eq!((resolution.scope, resolution.target.as_str()), (ScopeKind::Default, "default"));
    assert_eq!(resolution.considered[3].reason, "this host belongs to no cluster");
    host.default_policy = DefaultPolicy::Block;
    assert_eq!(empty.resolve(&context(), &host).unwrap().policy.egress, EgressMode::Block);
    host.default_policy = DefaultPolicy::Named("bse".to_owned());
    let error = empty.resolve(&context(), &host).unwrap_err();
    assert!(matches!(error, ResolveError::DefaultMissing { .. }));
    let set = set("name: base\negress-policy: block\n");
    let text = set.resolve(&context(), &host).unwrap_err().diagnostic().to_string();
    assert!(
        text.contains("hint: set `policy` in `[defaults]` of monitor.toml; did you mean `base`?"),
        "{text}"
    );
    host.default_policy = DefaultPolicy::Named("base".to_owned());
    assert_eq!(set.resolve(&context(), &host).unwrap().policy.name, "base");
}

#[test]
fn the_default_policy_is_read_from_its_text() {
    for (text, expected) in [
        ("audit", Some(DefaultPolicy::Audit)),
        ("block", Some(DefaultPolicy::Block)),
        ("org-base", Some(DefaultPolicy::Named("org-base".to_owned()))),
        ("Block", None),
        ("", None),
    ] {
        assert_eq!(text.parse().ok(), expected, "{text}");
        if let Some(policy) = expected {
            assert_eq!(serde_json::to_string(&policy).unwrap(), format!("\"{text}\""));
        }
    }
}

#[test]
fn a_required_workflow_of_another_repository_has_its_own_target() {
    let set = set(
        "name: scan\negress-policy: block\nattach: [{workflow: octo/required/.github/workflows/scan.yml}]\n---\nname: repo\negress-policy: audit\nattach: [{repository: octo/hello}]\n",
    );
    let mut context = context();
    context.workflow_ref = "octo/required/.github/workflows/scan.yml@refs/heads/main".to_owned();
    assert_eq!(set.resolve(&context, &host()).unwrap().policy.name, "scan");
}

#[test]
fn mistakes_between_documents_are_told_with_both_places() {
    insta::assert_snapshot!(
        [
            refused("name: a\negress-policy: audit\nattach:\n  - repository: octo/hello\n---\nname: b\negress-policy: audit\nattach:\n  - cluster: x\n  - repository: OCTO/Hello\n"),
            refused("name: a\n---\nname: a\n"),
            refused("name: default-block\n"),
            refused("name: a\nextends: [b]\n---\nname: b\nextends: [c]\n---\nname: c\nextends: [a]\n"),
            refused("name: a\nextends:\n  - org-bse\n---\nname: org-base\n"),
            refused("name: a\nattach: [{cluster: x}]\n"),
        ]
        .join("\n\n----\n\n"), @"
    error: policies.yaml:10:5: `attach`: the repository octo/hello has a policy already: `a`, attached in policies.yaml:4:5

    hint: remove one of the two; a target has at most one policy, `extends` unites several

    ----

    error: policies.yaml:3:7: `name`: there are two policies named `a`; the first is in policies.yaml:1:7

    hint: rename one of them

    ----

    error: policies.yaml:1:7: `name`: `default-block` is the name of a built-in policy

    hint: choose another name

    ----

    error: policies.yaml:8:11: `extends`: the policies extend each other in a circle: `a` → `b` → `c` → `a`

    hint: remove one of these entries

    ----

    error: policies.yaml:3:5: `extends`: there is no policy named `org-bse`: `a` → `org-bse`

    hint: did you mean `org-base`? It can be `a` or `org-base`

    ----

    error: policies.yaml:1:7: `egress-policy`: neither policy `a` nor what it extends says `egress-policy`

    hint: add `egress-policy: block`, or `egress-policy: audit` to only record
    ");
}

#[test]
fn extends_unites_endpoints_and_the_nearest_key_wins() {
    let set = set(r"
name: leaf
extends: [left, right]
allowed-endpoints: [leaf.test]
disable-sudo: false
---
name: left
extends: [root]
allowed-endpoints: [left.test, shared.test]
denied-endpoints: [bad.test]
---
name: right
extends: [root]
egress-policy: audit
fail-on-block: true
disable-sudo: true
allowed-endpoints: [Shared.test:443, right.test]
lockdown-mode: {enabled: true}
---
name: root
egress-policy: block
fail-on-block: false
allowed-endpoints: [root.test]
lockdown-mode: {enabled: true, detections: [Reverse-Shell]}
");
    let leaf = set.library().effective("leaf").unwrap().unwrap();
    let shown = |rules: &[Arc<crate::policy::Rule>]| {
        rules.iter().map(|r| format!("{}@{}", r.text, r.policy)).collect::<Vec<_>>()
    };
    // Visited: leaf, left, root, right. `root` is met below `left`, before `right`.
    assert_eq!(
        shown(&leaf.allowed),
        [
            "leaf.test@leaf",
            "left.test@left",
            "shared.test@left",
            "root.test@root",
            "right.test@right"
        ]
    );
    assert_eq!(shown(&leaf.denied), ["bad.test@left"]);
    assert_eq!(leaf.egress, EgressMode::Block);
    assert!(!leaf.fail_on_block && !leaf.disable_sudo);
    assert_eq!(leaf.lockdown.detections.len(), 1);
}

#[test]
fn the_version_follows_the_meaning() {
    let version = |yaml: &str| set(yaml).library().effective("a").unwrap().unwrap().version;
    let base = version("name: a\negress-policy: block\nallowed-endpoints: [x.test, y.test]\n");
    assert_eq!(base.len(), 12);
    assert_eq!(
        base,
        version(
            "name: a\ndescription: d\negress-policy: block\nallowed-endpoints: [Y.test:443, x.test]\n"
        )
    );
    assert_eq!(
        base,
        version(
            "name: a\nextends: [b]\n---\nname: b\negress-policy: block\nallowed-endpoints: x.test y.test\n"
        )
    );
    for other in [
        "name: a\negress-policy: audit\nallowed-endpoints: [x.test, y.test]\n",
        "name: a\negress-policy: block\nallowed-endpoints: [x.test]\n",
        "name: a\negress-policy: block\nallowed-endpoints: [x.test, y.test]\ndenied-endpoints: [x.test]\n",
        "name: a\negress-policy: block\nallowed-endpoints: [x.test, y.test]\ndisable-sudo: true\n",
        "name: a\negress-policy: block\nallowed-endpoints: [x.test, y.test]\non-failure: audit\n",
    ] {
        assert_ne!(base, version(other), "{other}");
    }
}

#[test]
fn an_effective_policy_survives_json() {
    let set = set(
        "name: a\negress-policy: block\nallowed-endpoints: ['*.Wild.test', '[2001:db8::/32]:*']\ndenied-endpoints: icmp://192.0.2.1\nattach: [{cluster: prod}]\n",
    );
    let resolution = set.resolve(&context(), &host()).unwrap();
    let json = serde_json::to_string(&resolution).unwrap();
    assert!(json.contains("\"*.wild.test:443\"") && json.contains("\"*.Wild.test\""), "{json}");
    assert_eq!(serde_json::from_str::<super::Resolution>(&json).unwrap(), resolution);
}

#[test]
fn long_and_wide_extends_are_bounded() {
    let chain = |length: usize| {
        let mut yaml = String::from("name: p0\n");
        for index in 1..length {
            yaml = format!("{yaml}---\nname: p{index}\nextends: [p{}]\n", index - 1);
        }
        yaml
    };
    set(&chain(32));
    assert!(
        refused(&chain(40)).contains("extends more than 256 policies, or more than 32 in a row")
    );
    assert!(refused(&chain(20_000)).contains("there may be more errors than these 100"));
}

proptest! {
    #[test]
    fn the_most_specific_attachment_wins(attached in prop::collection::vec(any::<bool>(), 4)) {
        let documents: Vec<String> = TARGETS
            .iter()
            .zip(&attached)
            .filter(|(_, attached)| **attached)
            .map(|((scope, target), _)| format!("name: for-{scope}\negress-policy: block\nattach: [{{{target}}}]\n"))
            .collect();
        let documents = if documents.is_empty() { "name: other\n".to_owned() } else { documents.join("---\n") };
        let resolution = set(&documents).resolve(&context(), &host()).unwrap();
        let expected = TARGETS.iter().zip(&attached).find(|(_, attached)| **attached).map_or(ScopeKind::Default, |((scope, _), _)| *scope);
        prop_assert_eq!(resolution.scope, expected);
        prop_assert_eq!(resolution.considered.len(), 5);
        prop_assert!(resolution.considered.windows(2).all(|pair| pair[0].scope > pair[1].scope));
        let chosen: Vec<_> = resolution.considered.iter().filter(|c| c.chosen).collect();
        prop_assert_eq!(chosen.len(), 1);
        prop_assert_eq!(chosen[0].policy.as_deref(), Some(resolution.policy.name.as_str()));
        prop_assert_eq!(&chosen[0].target, &resolution.target);
    }

    #[test]
    fn extends_of_any_graph_unites_what_is_reachable(edges in prop::collection::vec((0_usize..8, 0_usize..8), 0..14)) {
        // Edges lead to higher numbers only, so there is no cycle.
        let mut yaml = String::new();
        let mut parents = vec![Vec::new(); 8];
        for (a, b) in edges {
            let (low, high) = (a.min(b), a.max(b));
            if low != high && !parents[low].contains(&high) {
                parents[low].push(high);
            }
        }
        for (index, extends) in parents.iter().enumerate() {
            let names: Vec<String> = extends.iter().map(|parent| format!("p{parent}")).collect();
            let names = names.join(", ");
            write!(
                yaml,
                "---\nname: p{index}\negress-policy: block\nallowed-endpoints: [h{index}.test]\nextends: [{names}]\n"
            )
            .unwrap();
        }
        let set = set(&yaml);
        for start in 0..8 {
            let mut reachable = vec![start];
            let mut next = 0;
            while let Some(node) = reachable.get(next).copied() {
                for parent in &parents[node] {
                    if !reachable.contains(parent) {
                        reachable.push(*parent);
                    }
                }
                next += 1;
            }
            let policy = set.library().effective(&format!("p{start}")).unwrap().unwrap();
            let mut expected: Vec<String> = reachable.iter().map(|index| format!("h{index}.test")).collect();
            let mut found: Vec<String> = policy.allowed.iter().map(|rule| rule.text.to_string()).collect();
            prop_assert_eq!(&found[0], &format!("h{start}.test"));
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn any_cycle_is_found(length in 1_usize..12) {
        let yaml: Vec<String> = (0..length).map(|index| format!("name: p{index}\nextends: [p{}]\n", (index + 1) % length)).collect();
        let text = refused(&yaml.join("---\n"));
        prop_assert!(text.contains("extend each other in a circle: `p0`"), "{text}");
    }
}
