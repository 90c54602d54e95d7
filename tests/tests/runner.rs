//! The runner stand-in: each fact about `actions/runner` that tests rely upon.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use portcullis_tests::{Job, JobOutcome, JobResult, StepKind, StepOutcome, World, wait_until};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn succeed(world: &World, job: &Job) -> Result<JobResult> {
    let result = world.runner(0).run(job)?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    Ok(result)
}

/// The lines `NAME=value` of a step's log.
fn variables(log: &str) -> BTreeMap<&str, &str> {
    log.lines().filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn hooks_get_the_jobs_context_and_none_of_its_environment() -> Result<()> {
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let script =
        "env; pwd; tr '\\0' ' ' < /proc/$$/cmdline; echo; cat \"$GITHUB_EVENT_PATH\"; echo\n";
    let hook = runner.write_script("hook.sh", script)?;
    runner.set_hooks(Some(&hook), Some(&hook))?;
    let mut job = Job::script("echo FROM_STEP=1 >> $GITHUB_ENV; env").env("FROM_JOB", "1");
    job.context.repository = "octo/world".to_owned();
    job.context.run_id = 42;
    job.context.id_token_request_url = Some("https://token.test/?a=b".to_owned());
    job.context.id_token_request_token = Some("t0ken".to_owned());
    let result = succeed(&world, &job)?;
    for kind in [StepKind::StartedHook, StepKind::CompletedHook] {
        let log = &result.step_of_kind(kind).context("no hook ran")?.log;
        let found = variables(log);
        let directory = runner.directory().display().to_string();
        let workspace = format!("{directory}/_work/world/world");
        for (name, value) in [
            ("GITHUB_REPOSITORY", "octo/world"),
            ("GITHUB_REPOSITORY_OWNER", "octo"),
            ("GITHUB_RUN_ID", "42"),
            ("GITHUB_RUN_ATTEMPT", "1"),
            ("GITHUB_WORKFLOW_REF", "octo/world/.github/workflows/ci.yml@refs/heads/main"),
            ("GITHUB_JOB", "build"),
            ("GITHUB_ACTIONS", "true"),
            ("CI", "true"),
            ("GITHUB_WORKSPACE", workspace.as_str()),
            ("RUNNER_NAME", "runner-1"),
            ("RUNNER_OS", "Linux"),
            ("RUNNER_ENVIRONMENT", "self-hosted"),
            ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://token.test/?a=b"),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t0ken"),
        ] {
            assert_eq!(found.get(name), Some(&value), "{kind:?} {name}\n{log}");
        }
        for file in ["ENV", "PATH", "OUTPUT", "STATE", "STEP_SUMMARY"] {
            let path = found.get(format!("GITHUB_{file}").as_str()).context(file)?;
            assert!(path.contains("/_work/_temp/_runner_file_commands/"), "{path}");
        }
        assert!(
            found.get("RUNNER_TRACKING_ID").is_some_and(|id| id.starts_with("github_")),
            "{log}"
        );
        assert!(found.contains_key("ACTIONS_RUNNER_HOOK_JOB_STARTED"), "from .env\n{log}");
        for absent in
            ["GITHUB_ACTION", "GITHUB_TOKEN", "FROM_JOB", "FROM_STEP", "ACTIONS_RUNTIME_TOKEN"]
        {
            assert!(!found.contains_key(absent), "{kind:?} {absent}\n{log}");
        }
        assert!(log.contains(&format!("\n{workspace}\n")), "{log}");
        assert!(log.contains(&format!("bash -e {directory}/hook.sh")), "{log}");
        assert!(log.contains("\"full_name\":\"octo/world\""), "{log}");
    }
    let step = variables(&result.step("__run").context("no step")?.log);
    assert_eq!(step.get("FROM_JOB"), Some(&"1"));
    assert_eq!(step.get("GITHUB_ACTION"), Some(&"__run"));
    Ok(())
}

#[test]
fn a_context_can_be_hostile_or_incomplete() -> Result<()> {
    let world = World::builder().build()?;
    let mut job = Job::script("printf '%s|' \"$GITHUB_ACTOR\" \"${GITHUB_SHA-unset}\"");
    job.context.variables.insert("GITHUB_ACTOR".to_owned(), "a\n::error::b".to_owned());
    job.context.without.push("GITHUB_SHA".to_owned());
    let result = succeed(&world, &job)?;
    assert_eq!(result.annotations.len(), 1, "the text arrived as it is: {}", result.log());
    assert!(result.annotations[0].message.starts_with("b|unset|"), "{:?}", result.annotations);
    Ok(())
}

#[test]
fn steps_run_in_the_shell_they_name() -> Result<()> {
    let world = World::builder().build()?;
    let job = Job::from_yaml(
        r#"
steps:
- {id: default, run: "tr '\\0' ' ' < /proc/$$/cmdline; false | true"}
- {id: bash, shell: bash, run: "tr '\\0' ' ' < /proc/$$/cmdline; false | true; echo not reached"}
- {id: sh, if: always(), shell: sh, run: "tr '\\0' ' ' < /proc/$$/cmdline"}
- {id: python, if: always(), shell: python, run: "print('snake')"}
- {id: custom, if: always(), shell: "env bash -x {0}", run: "echo $-"}
- {id: broken, if: always(), shell: ruby, run: "x"}
"#,
    )?;
    let result = world.runner(0).run(&job)?;
    let log = |id: &str| result.step(id).map_or("", |step| step.log.as_str());
    assert!(log("default").contains("/bash -e /"), "{}", result.log());
    assert!(log("bash").contains("/bash --noprofile --norc -e -o pipefail /"), "{}", result.log());
    assert!(!log("bash").contains("not reached"), "{}", result.log());
    assert!(log("sh").contains("/sh -e /"), "{}", result.log());
    assert_eq!(log("python"), "snake\n");
    assert!(log("custom").contains('x'), "{}", result.log());
    assert!(log("broken").contains("Invalid shell option"), "{}", result.log());
    assert_eq!(result.outcome, JobOutcome::Failure);
    Ok(())
}

#[test]
fn steps_run_in_the_runners_order() -> Result<()> {
    use StepKind::{CompletedHook, Main, Post, Pre, StartedHook};
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let hook = runner.write_script("hook.sh", "echo hook\n")?;
    runner.set_hooks(Some(&hook), Some(&hook))?;
    let job = Job::from_yaml(
        "steps:\n\
         - {name: a, uses: o/a@v1, pre: echo pre, run: echo K=1 >> $GITHUB_STATE, post: echo state $STATE_K}\n\
         - {name: b, run: echo b}\n\
         - {name: c, uses: o/c@v1, pre: echo pre, run: echo c, post: echo post}\n",
    )?;
    let result = succeed(&world, &job)?;
    let success = StepOutcome::Success;
    assert_eq!(
        result.course(),
        [
            (StartedHook, "Set up runner", success),
            (Pre, "Pre a", success),
            (Pre, "Pre c", success),
            (Main, "a", success),
            (Main, "b", success),
            (Main, "c", success),
            (Post, "Post c", success),
            (Post, "Post a", success),
            (CompletedHook, "Complete runner", success),
        ]
    );
    assert_eq!(result.steps[7].log, "state 1\n");
    assert!(result.hook_ms(StartedHook).is_some_and(|duration| duration > 0.0));
    Ok(())
}

#[test]
fn a_failed_started_hook_does_not_stop_the_job_from_running() -> Result<()> {
    use StepKind::{CompletedHook, Main, Post, Pre, StartedHook};
    use StepOutcome::{Failure, Skipped, Success};
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let failing = runner.write_script("failing.sh", "exit 2\n")?;
    let hook = runner.write_script("hook.sh", "echo hook\n")?;
    let job = Job::from_yaml(
        "steps:\n\
         - {name: a, uses: o/a@v1, pre: echo pre, run: echo a, post: echo post}\n\
         - {name: b, run: echo b}\n\
         - {name: c, if: always(), run: echo c, post: echo post}\n\
         - {name: d, if: failure(), run: echo d}\n",
    )?;
    let expected = [
        (StartedHook, "Set up runner", Failure),
        (Pre, "Pre a", Success),
        (Main, "a", Skipped),
        (Main, "b", Skipped),
        (Main, "c", Success),
        (Main, "d", Success),
        (Post, "Post c", Success),
        (Post, "Post a", Success),
        (CompletedHook, "Complete runner", Success),
    ];
    for (started, message) in [
        (failing.as_path(), "Process completed with exit code 2."),
        (Path::new("/nowhere/hook.sh"), "File doesn't exist"),
    ] {
        runner.set_hooks(Some(started), Some(&hook))?;
        let result = runner.run(&job)?;
        assert_eq!(result.outcome, JobOutcome::Failure);
        assert_eq!(result.course(), expected, "{message}");
        assert_eq!(result.annotations[0].message, message);
    }
    Ok(())
}

#[test]
fn file_commands_work_for_steps_and_hooks() -> Result<()> {
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let hook = runner.write_script("hook.sh", "echo FROM_HOOK=yes >> $GITHUB_ENV\n")?;
    runner.set_hooks(Some(&hook), None)?;
    let job = Job::from_yaml(
        r#"
steps:
- id: one
  run: |
    echo "hook: $FROM_HOOK"
    printf 'LINES<<E\na\nb\nE\nNODE_OPTIONS=--require x\n' >> $GITHUB_ENV
    echo "answer=42" >> $GITHUB_OUTPUT
    mkdir -p tools && printf '#!/bin/sh\necho mine\n' > tools/tool && chmod +x tools/tool
    echo "$PWD/tools" >> $GITHUB_PATH
    echo '**summary**' >> $GITHUB_STEP_SUMMARY
- id: two
  env: {A: "${{ steps.one.outputs.answer }}"}
  run: |
    echo "lines: $LINES"; echo "answer: $A ${{ github.run_id }}"; tool; echo "node: ${NODE_OPTIONS-unset}"
- id: three
  run: head -c 1100000 /dev/zero >> $GITHUB_STEP_SUMMARY
"#,
    )?;
    let result = runner.run(&job)?;
    let log = |id: &str| result.step(id).map_or("", |step| step.log.as_str());
    assert!(log("one").contains("hook: yes"), "{}", result.log());
    assert!(log("one").contains("Can't store NODE_OPTIONS"), "{}", result.log());
    assert_eq!(log("two"), "lines: a\nb\nanswer: 42 1658821493\nmine\nnode: unset\n");
    assert!(log("three").contains("upload aborted"), "{}", result.log());
    assert_eq!(result.summary(), "**summary**\n");
    Ok(())
}

#[test]
fn github_path_replaces_the_completed_hooks_interpreter() -> Result<()> {
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let hook = runner.write_script("hook.sh", "echo the true hook\n")?;
    runner.set_hooks(Some(&hook), Some(&hook))?;
    let hijack = "mkdir fake; printf '#!/bin/sh\\necho hijacked $2\\n' > fake/bash; chmod +x fake/bash; \
                  echo \"$PWD/fake\" >> $GITHUB_PATH";
    let result = succeed(&world, &Job::script(hijack))?;
    let log = |kind| result.step_of_kind(kind).map_or("", |step| step.log.as_str());
    assert!(log(StepKind::StartedHook).contains("the true hook"), "{}", result.log());
    let expected = format!("hijacked {}", hook.display());
    assert!(log(StepKind::CompletedHook).contains(&expected), "{}", result.log());
    // The next job of the same runner begins clean.
    let result = succeed(&world, &Job::script("true"))?;
    assert!(!result.log().contains("hijacked"), "{}", result.log());
    Ok(())
}

#[test]
fn conditions_forgiveness_and_time_limits() -> Result<()> {
    use StepOutcome::{Failure, Skipped, Success};
    let world = World::builder().build()?;
    let job = Job::from_yaml(
        "steps:\n\
         - {id: forgiven, continue-on-error: true, run: exit 1}\n\
         - {id: after, run: echo after}\n\
         - {id: late, timeout-minutes: 0.002, run: exec sleep 1000}\n\
         - {id: skipped, run: echo skipped}\n\
         - {id: never, if: cancelled(), run: echo never}\n\
         - {id: yes, if: '!cancelled()', run: echo yes}\n",
    )?;
    let result = world.runner(0).run(&job)?;
    let outcomes: Vec<StepOutcome> = result.steps.iter().map(|step| step.outcome).collect();
    assert_eq!(
        outcomes,
        [Failure, Success, Failure, Skipped, Skipped, Success],
        "{}",
        result.log()
    );
    assert!(result.annotations.iter().any(|annotation| annotation.message.contains("timed out")));
    assert_eq!(result.outcome, JobOutcome::Failure);
    assert_eq!(result.worker_exit_code, 102);
    Ok(())
}

#[test]
fn logs_are_masked_and_commands_are_understood() -> Result<()> {
    let world = World::builder().build()?;
    let job = Job::script(
        "echo \"token: $TOKEN\"; echo ::add-mask::hunter2; echo hunter2; echo '::error::one%0Atwo'; \
         echo ::stop-commands::xyz; echo ::error::no; echo ::xyz::; echo ::notice::yes; echo ::set-env name=A::1",
    )
    .secret("TOKEN", "s3cr3t");
    let result = succeed(&world, &job)?;
    let log = &result.steps[0].log;
    assert!(
        log.starts_with("token: ***\n***\n##[error]one\ntwo\n::error::no\n##[notice]yes\n"),
        "{log}"
    );
    let annotations: Vec<(&str, &str)> = result
        .annotations
        .iter()
        .map(|annotation| (annotation.level.as_str(), annotation.message.as_str()))
        .collect();
    assert_eq!(
        annotations,
        [("error", "one\ntwo"), ("notice", "yes"), ("error", "The `set-env` command is disabled.")]
    );
    Ok(())
}

#[test]
fn processes_have_the_names_users_and_cgroups_of_a_runner() -> Result<()> {
    let world = World::builder().runners(2).build()?;
    let jobs = [0, 1].map(|number| {
        world
            .runner(number)
            .begin(&Job::script("id -u; echo $$; cat /proc/self/cgroup; echo here; sleep 1000"))
    });
    for (number, job) in jobs.into_iter().enumerate() {
        let (job, runner) = (job?, world.runner(number));
        job.wait_for_line("here")?;
        let worker = job.worker_pid()?;
        let listener = runner.listener_pid()?;
        let exe = |pid: u32| fs::read_link(format!("/proc/{pid}/exe"));
        assert_eq!(exe(worker)?, runner.directory().join("bin/Runner.Worker"));
        assert_eq!(exe(listener)?, runner.directory().join("bin/Runner.Listener"));
        let status = fs::read_to_string(format!("/proc/{worker}/status"))?;
        assert!(status.contains(&format!("\nPPid:\t{listener}\n")), "{status}");
        assert!(
            status.contains(&format!("\nUid:\t{0}\t{0}\t{0}\t{0}\n", runner.uid())),
            "{status}"
        );
        let arguments = fs::read_to_string(format!("/proc/{worker}/cmdline"))?;
        assert!(arguments.contains("\0spawnclient\0"), "{arguments}");
        let lines = job.lines();
        assert_eq!(lines[0], runner.uid().to_string());
        // The runner sets it when the process runs already.
        let score = format!("/proc/{}/oom_score_adj", lines[1]);
        wait_until("the step's score to be set", || {
            fs::read_to_string(&score).is_ok_and(|score| score == "500\n")
        })?;
        let cgroup = format!("/{}/actions.runner.{}.service", world.id(), runner.name());
        assert!(lines.iter().any(|line| line.ends_with(&cgroup)), "{lines:?}");
        assert!(runner.cgroup().processes()?.contains(&worker));
        job.signal_worker(Signal::SIGKILL)?;
    }
    Ok(())
}

#[test]
fn root_steps_and_sudo() -> Result<()> {
    let world = World::builder().build()?;
    let job = Job::default()
        .step("id -u; sudo id -u; sudo -n -u nobody -- id -un; sudo -E env | grep ^MINE=")
        .root_step("id -u; echo $MINE; echo ROOT=yes >> $GITHUB_ENV")
        .step("echo $ROOT")
        .env("MINE", "kept");
    let result = succeed(&world, &job)?;
    let uid = world.runner(0).uid();
    assert_eq!(result.steps[0].log, format!("{uid}\n0\nnobody\nMINE=kept\n"));
    assert_eq!(result.steps[1].log, "0\nkept\n");
    assert_eq!(result.steps[2].log, "yes\n");
    let sudo = world.directory().join("bin/sudo");
    let output = world.command(sudo).args(["id", "-u"]).user(54_321).output()?;
    assert!(!output.status.success(), "anybody may use the world's sudo");
    // As with the real one, no new privileges means no sudo.
    let result = world.runner(0).run(&Job::script("setpriv --no-new-privs sudo id -u"))?;
    assert_eq!(result.outcome, JobOutcome::Failure, "{}", result.log());
    Ok(())
}

#[test]
fn github_is_called_by_listener_and_worker() -> Result<()> {
    let world = World::builder().build()?;
    let runner = world.runner(0);
    runner.start()?;
    let before = world.github().long_poll(runner.name())?;
    let running = runner.begin(&Job::script("echo here; echo TEXT; sleep 0.01"))?;
    running.wait_for_line("here")?;
    assert_eq!(world.github().long_poll_round_trip(runner.name())?, before);
    let result = running.wait()?;
    assert_eq!(result.failed_uploads, 0);
    let uploads = world.github().uploads();
    assert_eq!(uploads.len(), 1);
    assert!(String::from_utf8_lossy(&uploads[0].body).contains("TEXT"));
    assert_eq!(world.github().long_poll_round_trip(runner.name())?, before);
    // Without GitHub the uploads fail and the job goes on.
    world.dns().remove("results-receiver.actions.githubusercontent.com");
    let result = succeed(&world, &Job::script("echo hello"))?;
    assert_eq!(result.failed_uploads, 1);
    Ok(())
}
