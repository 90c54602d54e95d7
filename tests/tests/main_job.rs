//! The main job: a real build whose one dependency sends the environment away, by curl, by raw socket and by DNS.

use anyhow::{Context, Result};
use portcullis_common::event::{Event, EventKind, JobStage, NetworkEvent, Verdict};
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, StepKind, World};
use std::path::Path;

/// What the build needs, and nothing else.
const ENDPOINTS: &str = "
allowed-endpoints:
  - git.test:443
  - pypi.test:443
  - files.pypi.test:443
  - api.ok.test:443
attach:
  - repository: octo/hello
";

struct Run {
    world: World,
    canary: Canary,
    result: JobResult,
    events: Vec<Event>,
}

/// Runs the main job behind the gate, to the end of everything.
fn run(mode: &str) -> Result<Run> {
    let world = World::builder().main_job().build()?;
    world
        .write_policy("hello", &format!("name: hello-build\negress-policy: {mode}\n{ENDPOINTS}"))?;
    world.install_hooks()?;
    let monitor = world.monitor(MonitorOptions::default())?;
    let canary = Canary::generate()?;
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/main.yml"));
    let job = Job::from_file(file)?.secret("DEPLOY_TOKEN", canary.as_str());
    let result = world.runner(0).run(&job)?;
    monitor.wait_until_idle()?;
    // Shown when the test fails.
    let told = format!("{}\n{}\n{}\n", result.log(), result.summary(), monitor.log());
    std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes())?;
    let ids = world.job_ids()?;
    let events = world.events(ids.first().context("no job was recorded")?)?;
    Ok(Run { world, canary, result, events })
}

impl Run {
    fn network(&self) -> impl Iterator<Item = &NetworkEvent> {
        self.events.iter().filter_map(|event| match &event.kind {
            EventKind::Network(network) => Some(network),
            _ => None,
        })
    }
}

#[test]
fn in_block_mode_the_build_succeeds_and_nothing_leaks() -> Result<()> {
    let run = run("block")?;
    assert_eq!(run.result.outcome, JobOutcome::Success);
    run.world.attacker().assert_untouched(&run.canary)?;

    let hook = run.result.step_of_kind(StepKind::StartedHook).context("no started hook")?;
    let first =
        hook.log.lines().find(|line| line.starts_with("Portcullis: ")).context("no line")?;
    assert!(first.contains("policy hello-build version "), "{first}");
    assert!(
        first.ends_with(
            "from repository octo/hello, mode block, 4 endpoints allowed, posture enforced"
        ),
        "{first}"
    );

    // Who called what, from which step, by which rule.
    let blocked: Vec<_> = run.network().filter(|event| event.verdict == Verdict::Blocked).collect();
    let by_raw_socket = blocked
        .iter()
        .find(|event| event.protocol == "tcp" && event.port == Some(4444))
        .context("the raw socket's call is not recorded")?;
    let process = by_raw_socket.process.as_ref().context("nobody is named")?;
    assert!(process.exe.as_deref().is_some_and(|exe| exe.contains("python")), "{process:?}");
    assert_eq!(process.step.as_deref(), Some("install"));
    assert!(process.ancestors.last().is_some_and(|last| last.exe.ends_with("Runner.Worker")));
    assert_eq!(by_raw_socket.rule, "no endpoint allows it");
    assert_eq!(by_raw_socket.policy.name, "hello-build");
    let asked_for_evil = run.events.iter().any(|event| {
        matches!(&event.kind, EventKind::Dns(dns)
            if dns.verdict == Verdict::Blocked && dns.name.ends_with("evil.test") && dns.response_code == "NXDOMAIN")
    });
    assert!(asked_for_evil, "the name that carried the secret is not recorded");
    assert!(run.network().any(|event| {
        event.verdict == Verdict::Allowed && event.name.as_deref() == Some("files.pypi.test")
    }));

    // The record has no gaps and fits the kernel's counters.
    let numbers: Vec<u64> = run.events.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let ended = run.events.iter().find_map(|event| match &event.kind {
        EventKind::Job(job) if job.stage == JobStage::Ended => Some(job),
        _ => None,
    });
    let counters = &ended.context("the job's end is not recorded")?.counters;
    assert!(counters.iter().any(|counter| counter.rule == "blocked" && counter.packets > 0));
    for counter in counters {
        assert_eq!(counter.packets, counter.recorded, "{counter:?}");
    }

    let summary = run.result.summary();
    assert!(summary.contains("Blocked") && summary.contains("evil.test"), "{summary}");
    assert!(summary.contains("allowed-endpoints"), "no snippet to paste: {summary}");
    Ok(())
}

#[test]
fn in_audit_mode_everything_goes_through_and_is_recorded() -> Result<()> {
    let run = run("audit")?;
    assert_eq!(run.result.outcome, JobOutcome::Success);
    assert!(run.world.attacker().saw(&run.canary)?, "audit does not block, so the secret is out");
    assert!(run.network().any(|event| {
        let exe = event.process.as_ref().and_then(|process| process.exe.as_deref());
        event.verdict == Verdict::WouldBlock
            && event.name.as_deref().is_some_and(|name| name.ends_with("evil.test"))
            && exe.is_some_and(|exe| exe.ends_with("curl"))
    }));
    assert!(!run.network().any(|event| event.verdict == Verdict::Blocked));
    assert!(run.result.summary().contains("Would be blocked"));
    Ok(())
}
