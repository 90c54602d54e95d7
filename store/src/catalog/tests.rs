use super::{
    ChangeError, Entry, Expected, Snapshot, attach, delete, detach, export, import, put, rename,
};
use crate::database::Change;
use jiff::Timestamp;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::{Attachment, parse_documents};
use portcullis_common::resolution::{DefaultPolicy, HostDefaults, ScopeKind};
use std::collections::BTreeMap;
use std::sync::Arc;

fn snapshot(yaml: &str) -> Snapshot {
    let documents = parse_documents("bundle.yaml", yaml.as_bytes()).unwrap();
    Snapshot::new(
        1,
        documents.into_iter().map(|source| Entry {
            id: format!("id-{}", source.document.name),
            version: 7,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            updated_by: "token:test".to_owned(),
            source: Arc::new(source),
        }),
    )
}

fn repository(name: &str) -> Attachment {
    Attachment::new(ScopeKind::Repository, name).unwrap()
}

fn write(
    snapshot: &Snapshot,
    name: &str,
    yaml: &str,
    expected: Expected,
) -> Result<super::Plan, ChangeError> {
    let source = parse_documents("policy.yaml", yaml.as_bytes()).unwrap().remove(0);
    put(snapshot, name, source, expected, 1, None, "token:test", Timestamp::UNIX_EPOCH)
}

const TWO: &str = "name: base\nallowed-endpoints: [github.com:443]\n---\nname: app\negress-policy: block\nextends: [base]\nattach: [{repository: octo/hello}]\n";

#[test]
fn a_new_version_keeps_the_attachments_and_counts_up() {
    let plan =
        write(&snapshot(TWO), "app", "name: app\negress-policy: audit\n", Expected::Anything)
            .unwrap();
    let entry = &plan.entries["app"];
    assert_eq!(entry.version, 8);
    assert_eq!(entry.attachments(), [repository("octo/hello")]);
    let [Change::Write { policy_id, version: 8, is_new: false, yaml, .. }] =
        plan.changes.as_slice()
    else {
        panic!("{:?}", plan.changes)
    };
    assert_eq!(policy_id, "id-app");
    assert!(!yaml.contains("attach"), "{yaml}");
}

#[test]
fn what_another_wrote_meanwhile_is_not_overwritten() {
    let snapshot = snapshot(TWO);
    for (expected, is_allowed) in [
        (Expected::Anything, true),
        (Expected::Version(7), true),
        (Expected::Version(6), false),
        (Expected::Nothing, false),
    ] {
        let result = write(&snapshot, "app", "name: app\negress-policy: audit\n", expected);
        assert_eq!(result.is_ok(), is_allowed, "{expected:?}");
    }
    assert!(write(&snapshot, "new", "name: new\n", Expected::Nothing).is_ok());
}

#[test]
fn a_change_must_leave_all_policies_valid() {
    let snapshot = snapshot(TWO);
    let Err(ChangeError::Invalid(errors)) =
        write(&snapshot, "app", "name: app\nextends: [bas]\n", Expected::Anything)
    else {
        panic!("must be refused")
    };
    insta::assert_snapshot!(errors, @"
    error: policy.yaml:2:11: `extends`: there is no policy named `bas`: `app` → `bas`

    hint: did you mean `base`? It can be `app` or `base`
    ");
    // An attached policy that would lose its mode.
    assert!(matches!(
        write(&snapshot, "app", "name: app\nextends: [base]\n", Expected::Anything),
        Err(ChangeError::Invalid(_))
    ));
    assert!(matches!(
        write(&snapshot, "x", "name: app\negress-policy: block\n", Expected::Anything),
        Err(ChangeError::NameDiffers { .. })
    ));
}

#[test]
fn a_policy_in_use_is_not_deleted() {
    let snapshot = snapshot(TWO);
    for name in ["base", "app"] {
        assert!(
            matches!(delete(&snapshot, name, Expected::Anything), Err(ChangeError::InUse { .. })),
            "{name}"
        );
    }
    assert!(matches!(
        delete(&snapshot, "none", Expected::Anything),
        Err(ChangeError::NotFound { .. })
    ));
    let plan = detach(&snapshot, "app", &repository("Octo/Hello")).unwrap();
    let after = Snapshot::new(2, plan.entries.into_values());
    assert_eq!(delete(&after, "app", Expected::Version(7)).unwrap().changes.len(), 1);
}

#[test]
fn a_target_has_one_policy() {
    let snapshot = snapshot(&format!("{TWO}---\nname: other\negress-policy: audit\n"));
    let target = repository("octo/hello");
    assert!(matches!(
        attach(&snapshot, "other", &target, false),
        Err(ChangeError::TargetTaken { .. })
    ));
    let plan = attach(&snapshot, "other", &target, true).unwrap();
    assert!(matches!(plan.changes.as_slice(), [Change::Detach { .. }, Change::Attach { .. }]));
    let after = Snapshot::new(2, plan.entries.into_values());
    assert_eq!(after.attached_to(&target), Some("other"));
    assert!(attach(&after, "other", &target, false).unwrap().changes.is_empty());
    // `base` never says `egress-policy`: it can't be put in force.
    assert!(matches!(
        attach(&after, "base", &repository("octo/x"), false),
        Err(ChangeError::Invalid(_))
    ));
}

#[test]
fn renaming_takes_dependents_along() {
    let new_name = "root".parse().unwrap();
    let plan = rename(
        &snapshot(TWO),
        "base",
        &new_name,
        Expected::Anything,
        None,
        "token:test",
        Timestamp::UNIX_EPOCH,
    )
    .unwrap();
    assert_eq!(plan.changes.len(), 2);
    assert_eq!(plan.entries["root"].id, "id-base");
    assert_eq!(plan.entries["app"].source.document.extends, [new_name]);
    assert_eq!(plan.entries["app"].attachments().len(), 1);
}

#[test]
fn a_bundle_comes_back_as_it_went() {
    let before = snapshot(TWO);
    let bundle = parse_documents("bundle.yaml", export(&before).as_bytes()).unwrap();
    let again = |prune| {
        import(&before, bundle.clone(), &BTreeMap::new(), prune, None, "x", Timestamp::UNIX_EPOCH)
            .unwrap()
    };
    let (plan, outcome) = again(true);
    assert!(plan.changes.is_empty(), "{:?}", plan.changes);
    assert!(outcome.iter().all(|policy| policy.action == "unchanged"));
}

#[test]
fn an_import_moves_targets_and_prunes() {
    let bundle = parse_documents(
        "b.yaml",
        b"name: next\negress-policy: block\nattach: [{repository: octo/hello}]\n",
    )
    .unwrap();
    let before = snapshot(TWO);
    let clash =
        import(&before, bundle.clone(), &BTreeMap::new(), false, None, "x", Timestamp::UNIX_EPOCH);
    assert!(matches!(clash, Err(ChangeError::Invalid(_))), "octo/hello belongs to `app`");
    let (plan, outcome) =
        import(&before, bundle, &BTreeMap::new(), true, None, "x", Timestamp::UNIX_EPOCH).unwrap();
    let actions: Vec<_> =
        outcome.iter().map(|policy| (policy.name.as_str(), policy.action.as_str())).collect();
    assert_eq!(actions, [("app", "deleted"), ("base", "deleted"), ("next", "created")]);
    assert_eq!(
        Snapshot::new(2, plan.entries.into_values()).attached_to(&repository("octo/hello")),
        Some("next")
    );
}

#[test]
fn versions_identify_the_content() {
    let snapshot = snapshot(&format!("{TWO}---\nname: plain\negress-policy: audit\n"));
    let version = |name: &str| snapshot.effective(name).unwrap().unwrap().version;
    assert_eq!(version("plain"), "7");
    assert!(version("app").starts_with("7-") && version("app").len() == 14, "{}", version("app"));
    let context = JobContext {
        repository: "octo/hello".to_owned(),
        workflow_ref: "octo/hello/.github/workflows/a.yml@refs/heads/main".to_owned(),
        ..JobContext::default()
    };
    let host = HostDefaults { cluster: None, default_policy: DefaultPolicy::Audit };
    assert_eq!(snapshot.resolve(&context, &host).unwrap().policy.version, version("app"));
}

#[test]
fn lint_tells_what_a_reviewer_should_know() {
    let snapshot = snapshot(
        "name: p\negress-policy: block\nallowed-endpoints: ['*.amazonaws.com:443', 's3.eu-west-1.amazonaws.com:443', 0.0.0.0/0, 169.254.169.254:80, 10.0.0.0/7:443, 'example.com:443', 'good.test:443']\ndenied-endpoints: ['*.example.com:443', 'example.com:1-1000', '*.nowhere.test:443']\nlockdown-mode: {enabled: true}\n",
    );
    let findings = snapshot.lint("p").unwrap().unwrap();
    let shown: Vec<_> =
        findings.iter().map(|finding| format!("{}: {}", finding.rule, finding.message)).collect();
    insta::assert_snapshot!(shown.join("\n"), @"
    multi-tenant-wildcard: `*.amazonaws.com:443` covers `amazonaws.com`, where anybody can have a name
    shadowed-endpoint: `s3.eu-west-1.amazonaws.com:443` is covered by `*.amazonaws.com:443`
    unrestricted: `0.0.0.0/0` allows every address
    metadata-address: `169.254.169.254:80` opens 169.254.169.254, where clouds hand out the machine's credentials
    wide-network: `10.0.0.0/7:443` is a very large network
    shadowed-endpoint: `10.0.0.0/7:443` is covered by `0.0.0.0/0`
    denied-anyway: `example.com:443` is denied by `example.com:1-1000`, and denied wins
    idle-lockdown: lockdown mode is enabled but lists no detection, so it never acts
    ");
}

#[test]
fn lint_tells_what_is_said_twice() {
    let snapshot = snapshot(
        "name: base\negress-policy: block\nallowed-endpoints: [a.test:443, a.test]\ndenied-endpoints: [d.test]\n---\nname: p\nextends: [base]\nallowed-endpoints: [b.test, 'b.test:443', A.test, b.test, 'b.test:80', '*.a.test']\ndenied-endpoints: [d.test, b.test]\n",
    );
    let repeated = |name: &str| {
        let findings = snapshot.lint(name).unwrap().unwrap();
        findings
            .iter()
            .filter(|finding| finding.rule == "duplicate-endpoint")
            .map(|finding| finding.message.clone())
            .collect::<Vec<_>>()
            .join("\n")
    };
    insta::assert_snapshot!(repeated("base"), @"`a.test` is allowed twice: `a.test:443` means the same");
    insta::assert_snapshot!(repeated("p"), @"
    `b.test:443` is allowed twice: `b.test` means the same
    `A.test` is allowed by `base` already, which this extends
    `b.test` is allowed twice
    `d.test` is denied by `base` already, which this extends
    ");
    assert!(snapshot.lint("nobody").is_none());
}
