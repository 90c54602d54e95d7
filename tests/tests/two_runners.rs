//! Two runners on one host: no call is judged by the other's policy, in whatever order jobs start and end.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    EXFILTRATE, Gate, Puppet, assert_gapless, assert_nothing_left, call, job_groups, network,
    our_tables,
};
use portcullis_common::event::{DetectionType, EnforcementScope, RecordedDetection, Verdict};
use portcullis_common::wire::JobStatus;
use portcullis_tests::{JobOutcome, World};

/// What each runner's job may call, and the other's may not.
const ONE: (&str, &str) = ("octo/one", "ok.test");
const TWO: (&str, &str) = ("octo/two", "other.test");

const POLICIES: [(&str, &str); 2] = [
    (
        "one",
        "name: one\negress-policy: block\nallowed-endpoints: ['ok.test:443', '*.wild.test:443']\nattach: [{repository: octo/one}]\n",
    ),
    (
        "two",
        "name: two\negress-policy: block\nallowed-endpoints: ['other.test:443']\nattach: [{repository: octo/two}]\n",
    ),
];

fn gate(same_user: bool) -> Result<Gate> {
    let builder = World::builder().runners(2);
    let builder = if same_user { builder.same_user() } else { builder };
    Gate::up(builder.build()?, &POLICIES)
}

/// The job reaches what its own policy allows, not what the other's does, by name and by address.
fn check(puppet: &mut Puppet<'_>, own: &str, other: &str) -> Result<()> {
    let allowed = puppet.run(&call(own))?;
    ensure!(allowed.succeeded(), "{own}: {allowed:?}");
    let refused = puppet.run(&call(other))?;
    ensure!(!refused.succeeded(), "{other}: {refused:?}");
    let address = match other {
        "other.test" => "198.51.100.18",
        _ => "198.51.100.10",
    };
    let by_address = puppet.run(&format!(
        "curl -sS --max-time 3 -o /dev/null --resolve {other}:443:{address} https://{other}/"
    ))?;
    ensure!(!by_address.succeeded(), "{other} at {address}: {by_address:?}");
    Ok(())
}

fn job<'a>(jobs: &'a [JobStatus], policy: &str) -> Result<&'a JobStatus> {
    jobs.iter().find(|job| job.policy == policy).with_context(|| format!("no job has {policy}"))
}

/// Both Listeners run before any job starts.
fn every_order(same_user: bool) -> Result<()> {
    let gate = gate(same_user)?;
    for runner in gate.world.runners() {
        runner.start()?;
    }
    for (first_starts, first_ends) in [(true, true), (true, false), (false, true), (false, false)] {
        let jobs = [(0, ONE), (1, TWO)];
        let (early, late) = if first_starts { (jobs[0], jobs[1]) } else { (jobs[1], jobs[0]) };
        let mut a = Puppet::start(&gate, early.0, early.1.0)?;
        check(&mut a, early.1.1, late.1.1)?;
        let mut b = Puppet::start(&gate, late.0, late.1.0)?;
        check(&mut a, early.1.1, late.1.1)?;
        check(&mut b, late.1.1, early.1.1)?;
        let status = gate.monitor.status()?;
        assert_eq!(status.jobs.len(), 2, "{status:?}");
        assert!(status.jobs.iter().all(|job| job.scope == EnforcementScope::Job), "{status:?}");
        let (ending, mut staying, names) =
            if first_ends { (a, b, (late.1.1, early.1.1)) } else { (b, a, (early.1.1, late.1.1)) };
        let attack = staying.run(EXFILTRATE)?;
        let result = ending.finish()?;
        ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
        portcullis_tests::wait_until("one job to be left", || {
            gate.monitor.status().is_ok_and(|status| status.jobs.len() == 1)
        })?;
        check(&mut staying, names.0, names.1)?;
        let result = staying.finish()?;
        ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
        gate.monitor.wait_until_idle()?;
        gate.assert_contained(&result).with_context(|| format!("{attack:?}"))?;
        assert_nothing_left(&gate.world)?;
    }
    // Every event of a job is by its own policy, and every allowed call is to what its own policy allows.
    for id in gate.world.job_ids()? {
        let events = gate.world.events(&id)?;
        assert_gapless(&events);
        // What the monitor does to the packet filter for one job is no tampering to the other.
        let tampering = DetectionType::Recorded(RecordedDetection::FirewallTampering);
        let of_ours = life::detections(&events).find(|found| found.detection == tampering);
        ensure!(of_ours.is_none(), "{of_ours:?}");
        let report = life::read_report(&gate.world, &id)?;
        let own = if report.policy.name == "one" { "ok.test" } else { "other.test" };
        let other = if report.policy.name == "one" { "other.test" } else { "ok.test" };
        for event in network(&events) {
            assert_eq!(event.policy.name, report.policy.name, "{event:?}");
            if event.verdict == Verdict::Allowed {
                assert_ne!(event.name.as_deref(), Some(other), "{event:?}");
            }
        }
        assert!(report.destinations.iter().any(|row| {
            row.endpoint == format!("{own}:443") && row.verdict == Verdict::Allowed
        }));
        assert!(
            report
                .destinations
                .iter()
                .any(|row| { row.endpoint.starts_with(other) && row.verdict == Verdict::Blocked }),
            "{report:#?}"
        );
    }
    Ok(())
}

#[test]
fn jobs_of_two_users_start_and_end_in_every_order() -> Result<()> {
    every_order(false)
}

#[test]
fn jobs_of_one_user_start_and_end_in_every_order() -> Result<()> {
    every_order(true)
}

/// The first job starts alone and judges the whole host, until a second runner comes and starts a job.
fn narrowed(same_user: bool) -> Result<()> {
    let gate = gate(same_user)?;
    let mut a = Puppet::start(&gate, 0, ONE.0)?;
    assert_eq!(gate.monitor.status()?.jobs[0].scope, EnforcementScope::Host);
    check(&mut a, ONE.1, TWO.1)?;
    let mut b = Puppet::start(&gate, 1, TWO.0)?;
    let status = gate.monitor.status()?;
    assert_eq!(job(&status.jobs, "one")?.scope, EnforcementScope::Job, "{status:?}");
    assert_eq!(job(&status.jobs, "two")?.scope, EnforcementScope::Job, "{status:?}");
    if same_user {
        for job in &status.jobs {
            let told = job.posture.warnings.iter().any(|text| text.contains("same user"));
            assert!(told, "{job:#?}");
        }
    }
    check(&mut a, ONE.1, TWO.1)?;
    check(&mut b, TWO.1, ONE.1)?;
    let attack = (a.run(EXFILTRATE)?, b.run(EXFILTRATE)?);

    // One job can't ask the other's resolver, whatever port it is on.
    let ask_all = r#"
python3 - <<'END'
import os, socket, struct
name = "stolen.wild.test"
query = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0)
query += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0" + struct.pack(">HH", 1, 1)
ports = set()
for line in list(open("/proc/net/udp"))[1:] + list(open("/proc/net/tcp"))[1:]:
    local = line.split()[1]
    address, port = local.split(":")
    if address == "0100007F":
        ports.add(int(port, 16))
answered = []
for port in sorted(ports):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        s = socket.socket(socket.AF_INET, kind); s.settimeout(0.5)
        try:
            s.connect(("127.0.0.1", port))
            s.send(query if kind == socket.SOCK_DGRAM else struct.pack(">H", len(query)) + query)
            answer = s.recv(4096)
            if kind == socket.SOCK_STREAM:
                answer = answer[2:]
            if answer and struct.unpack(">H", answer[6:8])[0] > 0:
                answered.append(port)
        except OSError:
            pass
print("listening", len(ports), "answered", answered)
END
"#;
    let own = a.run(ask_all)?;
    ensure!(!own.output.contains("answered []"), "the test finds no resolver: {own:?}");
    let stolen = b.run(ask_all)?;
    ensure!(stolen.output.contains("answered []"), "the other job's resolver answered: {stolen:?}");
    assert_eq!(our_tables(&gate.world)?.len(), 4);

    let first = a.finish()?;
    check(&mut b, TWO.1, ONE.1)?;
    let second = b.finish()?;
    gate.monitor.wait_until_idle()?;
    for result in [&first, &second] {
        assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
        gate.assert_contained(result).with_context(|| format!("{attack:?}"))?;
    }
    assert_nothing_left(&gate.world)
}

#[test]
fn a_job_that_was_alone_is_narrowed_when_another_users_runner_comes() -> Result<()> {
    narrowed(false)
}

#[test]
fn a_job_that_was_alone_is_narrowed_when_the_same_users_runner_comes() -> Result<()> {
    narrowed(true)
}

/// A second runner whose job nobody governs, while the first one's job runs; and a job that ends takes nothing of the
/// other with it: its daemons go on.
#[test]
fn the_end_of_one_job_leaves_the_others_processes_alone() -> Result<()> {
    let gate = gate(true)?;
    for runner in gate.world.runners() {
        runner.start()?;
    }
    let mut a = Puppet::start(&gate, 0, ONE.0)?;
    let daemon = a.run("setsid --fork sleep 1000 </dev/null >/dev/null 2>&1; until pgrep -u $(id -u) -x sleep -a | grep -q 1000; do sleep 0.02; done")?;
    ensure!(daemon.succeeded(), "{daemon:?}");
    let b = Puppet::start(&gate, 1, TWO.0)?;
    b.finish()?;
    let alive = a.run("pgrep -u $(id -u) -f 'sleep 1000'")?;
    ensure!(alive.succeeded(), "the other job's daemon was killed: {}", gate.monitor.log());
    assert_eq!(job_groups(gate.world.runner(0)).len(), 1);
    a.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_nothing_left(&gate.world)
}
