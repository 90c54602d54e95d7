//! `soak`: the main job behind the gate many times over. `scripts/soak` builds it and starts it.

use anyhow::{Context, Result};
use clap::Parser;
use portcullis_common::event::{PostureLevel, Verdict};
use portcullis_common::report::{Destination, Report};
use portcullis_tests::job::Step;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, World};
use serde::Serialize;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

/// The job: a clone, an installation of packages of which one is hostile, a C build, its tests, an upload.
const JOB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/main.yml");

/// What the job needs, and nothing else.
const POLICY: &str = "name: hello-build
egress-policy: block
allowed-endpoints:
  - git.test:443
  - pypi.test:443
  - files.pypi.test:443
  - api.ok.test:443
attach:
  - repository: octo/hello
";

/// What a row of the report names when it is the hostile package's doing: the attacker's zone and its addresses.
const ATTACKER: [&str; 3] = ["evil.test", "203.0.113.66", "2001:db8::66"];

/// Runs the main job behind the gate again and again, in one world with one monitor.
///
/// The last line of the standard output is JSON. Exit status: 0 every run succeeded, nothing leaked and nothing was
/// blocked that the policy allows; 1 it was not so; 64 usage.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Options {
    /// How many times.
    #[arg(default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

/// The last line.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    result: &'static str,
    runs: u32,
    succeeded: u32,
    enforced: u32,
    /// Runs in which the hostile package was stopped at something.
    attacked: u32,
    /// Bytes of messages that held a run's secret and reached the attacker.
    leaked_bytes: u64,
    /// Packets of any kind that reached the attacker.
    attacker_packets: u64,
    /// Calls that the policy allows and that were blocked.
    false_blocks: u64,
    /// Calls that were blocked rightly.
    blocked: u64,
    allowed: u64,
    /// What the monitor took at the first and at the last run, in KiB.
    monitor_kib: [u64; 2],
    seconds: f64,
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let mut outcome = Outcome { result: "failure", ..Outcome::default() };
    let is_good = match run(&options, &mut outcome) {
        Ok(()) => {
            outcome.succeeded == options.runs
                && outcome.enforced == options.runs
                && outcome.leaked_bytes == 0
                && outcome.attacker_packets == 0
                && outcome.false_blocks == 0
                // A hostile package that does nothing proves nothing.
                && outcome.attacked == options.runs
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            false
        }
    };
    if is_good {
        outcome.result = "success";
    }
    match serde_json::to_string(&outcome).map(|line| say(&line)) {
        Ok(Ok(())) if is_good => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn run(options: &Options, outcome: &mut Outcome) -> Result<()> {
    let world = World::builder().main_job().build()?;
    world.write_policy("hello-build", POLICY)?;
    world.install_hooks()?;
    let monitor = world.monitor(MonitorOptions::default())?;
    let started = Instant::now();
    for number in 1..=options.runs {
        let canary = Canary::generate()?;
        let mut job = Job::from_file(Path::new(JOB))?
            .secret("DEPLOY_TOKEN", canary.as_str())
            // Else pip builds the hostile package in the first run only.
            .env("PIP_NO_CACHE_DIR", "1");
        // The workspace of a runner outlives its jobs; actions/checkout empties it in the same way.
        job.steps.insert(0, Step { run: "rm -rf source".to_owned(), ..Step::default() });
        let result = world.runner(0).run(&job)?;
        monitor.wait_until_idle()?;
        outcome.runs = number;
        let has_succeeded = result.outcome == JobOutcome::Success;
        outcome.succeeded += u32::from(has_succeeded);
        let leaked = world.attacker().leaked_bytes(&canary)?;
        outcome.leaked_bytes += leaked;
        let report = report(&world)?;
        let level = report.posture.level;
        let is_enforced = matches!(level, PostureLevel::Enforced | PostureLevel::Degraded);
        outcome.enforced += u32::from(is_enforced);
        outcome.allowed += report.allowed;
        let (rightly, falsely): (Vec<_>, Vec<_>) = report
            .destinations
            .iter()
            .filter(|row| row.verdict == Verdict::Blocked)
            .partition(|row| is_attack(row));
        outcome.attacked += u32::from(!rightly.is_empty());
        outcome.blocked += rightly.iter().map(|row| row.count).sum::<u64>();
        outcome.false_blocks += falsely.iter().map(|row| row.count).sum::<u64>();
        say(&format!(
            "run {number} of {}: {}, {leaked} bytes leaked, {} allowed, {} blocked, {:.0} s so far",
            options.runs,
            if has_succeeded { "success" } else { "FAILURE" },
            report.allowed,
            report.blocked,
            started.elapsed().as_secs_f64(),
        ))?;
        if !has_succeeded || !falsely.is_empty() || leaked > 0 || !is_enforced {
            say(&format!("{}\n{falsely:#?}\n{:#?}", result.log(), report.posture))?;
        }
        let resident = resident_kib(monitor.pid())?;
        if number == 1 {
            outcome.monitor_kib[0] = resident;
        }
        outcome.monitor_kib[1] = resident;
    }
    outcome.attacker_packets = world.attacker().packets()?;
    outcome.seconds = started.elapsed().as_secs_f64().round();
    Ok(())
}

fn is_attack(row: &Destination) -> bool {
    ATTACKER.iter().any(|attacker| row.endpoint.contains(attacker))
}

/// The report of the job that was run last. Ids sort by time.
fn report(world: &World) -> Result<Report> {
    let id = world.job_ids()?.pop().context("the monitor has bound no job")?;
    let path = world.root().join("var/lib/portcullis/spool").join(id).join("report.json");
    let text = fs::read(&path)
        .with_context(|| format!("there is no report of the job: {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// `VmRSS` of `/proc/PID/status`.
fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(number.parse()?)
}

fn say(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    output.flush()?;
    Ok(())
}
