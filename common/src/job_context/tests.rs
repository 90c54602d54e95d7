use super::JobContext;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

fn environment() -> BTreeMap<&'static str, OsString> {
    [
        ("GITHUB_REPOSITORY", "octo/hello"),
        ("GITHUB_REPOSITORY_OWNER", "octo"),
        ("GITHUB_WORKFLOW_REF", "octo/hello/.github/workflows/ci.yml@refs/heads/main"),
        ("GITHUB_WORKFLOW", "CI ✅ \"quoted\""),
        ("GITHUB_JOB", "build_1-a"),
        ("GITHUB_RUN_ID", "7123456789"),
        ("GITHUB_RUN_ATTEMPT", "2"),
        ("GITHUB_REF", "refs/pull/7/merge"),
        ("GITHUB_SHA", "0123456789abcdef0123456789abcdef01234567"),
        ("GITHUB_EVENT_NAME", "pull_request"),
        ("GITHUB_ACTOR", "dependabot[bot]"),
        ("GITHUB_SERVER_URL", "https://github.com"),
        ("RUNNER_NAME", "runner 1"),
        ("GITHUB_WORKSPACE", "/home/runner/_work/hello/hello"),
    ]
    .map(|(name, value)| (name, OsString::from(value)))
    .into()
}

fn read(environment: &BTreeMap<&str, OsString>) -> Result<JobContext, String> {
    JobContext::from_environment(|name| environment.get(name).cloned())
        .map_err(|error| error.to_string())
}

fn with(name: &'static str, value: impl Into<OsString>) -> Result<JobContext, String> {
    let mut environment = environment();
    environment.insert(name, value.into());
    read(&environment)
}

#[test]
fn reads_the_environment_of_a_hook() {
    let context = read(&environment()).unwrap();
    assert_eq!(context.run_id, 7_123_456_789);
    assert_eq!(context.run_attempt, 2);
    assert_eq!(context.workflow_path(), "octo/hello/.github/workflows/ci.yml");
    assert_eq!(context.workspace.as_deref(), Some("/home/runner/_work/hello/hello"));
    assert!(context.validate().is_ok());
}

#[test]
fn optional_variables_may_be_absent() {
    let mut environment = environment();
    for name in [
        "GITHUB_WORKFLOW",
        "GITHUB_REF",
        "GITHUB_SHA",
        "GITHUB_EVENT_NAME",
        "GITHUB_ACTOR",
        "GITHUB_WORKSPACE",
    ] {
        environment.remove(name);
    }
    let context = read(&environment).unwrap();
    assert_eq!((context.sha.as_str(), context.workspace), ("", None));
}

#[test]
fn everything_that_is_missing_is_named() {
    let error = JobContext::from_environment(|_| None).unwrap_err();
    insta::assert_snapshot!(error.diagnostic(), @"
    error: this is not the environment of a GitHub Actions job hook: `GITHUB_RUN_ID` is missing; `GITHUB_RUN_ATTEMPT` is missing; `GITHUB_REPOSITORY` is missing; `GITHUB_REPOSITORY_OWNER` is missing; `GITHUB_WORKFLOW_REF` is missing; `GITHUB_JOB` is missing; `GITHUB_SERVER_URL` is missing; `RUNNER_NAME` is missing

    hint: hooks are started by the runner: name the hook script in ACTIONS_RUNNER_HOOK_JOB_STARTED and ACTIONS_RUNNER_HOOK_JOB_COMPLETED, in the file .env of the runner's directory
    ");
}

#[test]
fn malformed_values_are_refused_in_one_visible_line() {
    let cases: [(&'static str, OsString); 18] = [
        ("GITHUB_REPOSITORY", "octo".into()),
        ("GITHUB_REPOSITORY", "octo/../x".into()),
        ("GITHUB_REPOSITORY", "evil/hello".into()),
        ("GITHUB_WORKFLOW_REF", "octo/hello/.github/workflows/ci.yml".into()),
        ("GITHUB_WORKFLOW_REF", "octo/hello@refs/heads/main".into()),
        ("GITHUB_WORKFLOW_REF", "octo/hello/../../x.yml@refs/heads/main".into()),
        ("GITHUB_WORKFLOW", "a\n::error::b".into()),
        ("GITHUB_WORKFLOW", "\u{1b}[31mred".into()),
        ("GITHUB_JOB", "a b".into()),
        ("GITHUB_RUN_ID", "+7".into()),
        ("GITHUB_RUN_ID", "0".into()),
        ("GITHUB_RUN_ID", "99999999999999999999999".into()),
        ("GITHUB_RUN_ATTEMPT", "x".into()),
        ("GITHUB_SHA", "HEAD".into()),
        ("GITHUB_SERVER_URL", "file:///etc".into()),
        ("GITHUB_WORKSPACE", "../x".into()),
        ("RUNNER_NAME", "a\0b".into()),
        ("GITHUB_ACTOR", OsString::from_vec(vec![b'a', 0xff])),
    ];
    let shown: Vec<String> = cases
        .into_iter()
        .map(|(name, value)| {
            with(name, value)
                .expect_err(name)
                .replace("this is not the environment of a GitHub Actions job hook: ", "")
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    `GITHUB_REPOSITORY` is not `owner/name`: `octo`
    `GITHUB_REPOSITORY` is not `owner/name`: `octo/../x`
    `GITHUB_REPOSITORY_OWNER` is not the owner that `GITHUB_REPOSITORY` names
    `GITHUB_WORKFLOW_REF` is not `owner/name/path@ref`: `octo/hello/.github/workflows/ci.yml`
    `GITHUB_WORKFLOW_REF` is not of the form `owner/name/path@ref`
    `GITHUB_WORKFLOW_REF` is not of the form `owner/name/path@ref`
    `GITHUB_WORKFLOW` has a line break or control character: `a\n::error::b`
    `GITHUB_WORKFLOW` has a line break or control character: `\x1b[31mred`
    `GITHUB_JOB` is not a job's key: `a b`
    `GITHUB_RUN_ID` is not a number: `+7`
    `GITHUB_RUN_ID` is not a number from 1
    `GITHUB_RUN_ID` is not a number: `99999999999999999999999`
    `GITHUB_RUN_ATTEMPT` is not a number: `x`
    `GITHUB_SHA` is not a commit's 40 or 64 hexadecimal digits: `HEAD`
    `GITHUB_SERVER_URL` is not a URL such as `https://github.com`: `file:///etc`
    `GITHUB_WORKSPACE` is not an absolute path: `../x`
    `RUNNER_NAME` has a line break or control character: `a\x00b`
    `GITHUB_ACTOR` is not UTF-8
    ");
    let long = with("RUNNER_NAME", "x".repeat(1024 * 1024)).unwrap_err();
    assert!(long.len() < 300 && long.contains("has 1048576 bytes, more than 1024"), "{long}");
}

#[test]
fn a_workflow_of_another_repository_is_accepted() {
    for reference in [
        "octo/required/.github/workflows/scan.yml@refs/heads/main",
        "octo/hello/dynamic/github-code-scanning/codeql@refs/heads/main",
        "octo/hello/.github/workflows/ci.yml@0123456789abcdef0123456789abcdef01234567",
    ] {
        with("GITHUB_WORKFLOW_REF", reference).unwrap();
    }
}

#[test]
fn a_branch_can_not_forge_the_path() {
    for (reference, path) in [
        (
            "o/r/.github/workflows/ci.yml@refs/heads/renovate/@types/node",
            "o/r/.github/workflows/ci.yml",
        ),
        ("o/r/.github/workflows/ci.yml@refs/heads/x@refs/heads/y", "o/r/.github/workflows/ci.yml"),
        ("o/r/.github/workflows/ci@v2.yml@refs/heads/main", "o/r/.github/workflows/ci@v2.yml"),
        ("o/r/.github/workflows/ci.yml@0123abc", "o/r/.github/workflows/ci.yml"),
    ] {
        let context = JobContext { workflow_ref: reference.to_owned(), ..JobContext::default() };
        assert_eq!(context.workflow_path(), path);
    }
}

proptest! {
    #[test]
    fn no_branch_name_changes_the_workflow(branch in "[a-zA-Z0-9@/._-]{1,60}") {
        let context = JobContext {
            workflow_ref: format!("o/r/.github/workflows/ci.yml@refs/heads/{branch}"),
            ..JobContext::default()
        };
        prop_assert_eq!(context.workflow_path(), "o/r/.github/workflows/ci.yml");
    }

    #[test]
    fn any_value_is_answered_in_one_line(value in any::<String>(), index in 0_usize..14) {
        let mut environment = environment();
        let name = environment.keys().copied().nth(index).unwrap();
        environment.insert(name, value.into());
        if let Err(message) = read(&environment) {
            prop_assert!(!message.chars().any(char::is_control), "{message:?}");
            prop_assert!(message.len() < 2_000);
        }
    }
}
