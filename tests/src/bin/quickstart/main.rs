//! `quickstart`: one real job behind the gate, in namespaces of its own, and what became of it as one line of JSON.
//! `scripts/quickstart` builds it and starts it.

mod served;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use portcullis_common::event::PostureLevel;
use portcullis_common::report::Report;
use portcullis_tests::job::StepKind;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, World};
use serde::{Serialize, Serializer};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

/// The job: a clone, an installation of packages of which one is hostile, a C build, its tests, an upload.
const JOB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/main.yml");

/// What the job needs, and nothing else.
const ENDPOINTS: &str = "allowed-endpoints:
  - git.test:443
  - pypi.test:443
  - files.pypi.test:443
  - api.ok.test:443
";

/// Where the policy applies, in a file of a directory.
const ATTACHED: &str = "attach:
  - repository: octo/hello
";

/// Runs a real build behind the gate: hooks, monitor, nftables and resolver are those of a host; the runner, the
/// internet and an attacker are stand-ins in network namespaces that are made for it and removed again.
///
/// The last line of the standard output is JSON. Exit status: 0 the job succeeded and the policy was in force as asked;
/// 1 it was not so, or the job could not be run here; 64 usage.
#[derive(Debug, Parser)]
#[command(name = "quickstart")]
struct Options {
    /// Stop what the policy does not allow, or only record it: the attacker then gets the secret.
    #[arg(long, value_enum, default_value_t = Mode::Block)]
    mode: Mode,
    /// Take the policy from a policy server instead of a directory of files, and run a second job while the server is
    /// away.
    #[arg(long, conflicts_with = "keep")]
    server: bool,
    /// Leave the runner host behind to look around; it says how to enter and how to remove it.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Mode {
    Audit,
    Block,
}

/// The last line. What is not known because it did not come to that is `null`.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    #[serde(serialize_with = "success_or_failure")]
    result: bool,
    policy: Option<String>,
    scope: Option<String>,
    posture: Option<PostureLevel>,
    allowed: Option<u64>,
    blocked: Option<u64>,
    leaked: Option<u64>,
    pre_job_ms: Option<f64>,
    post_job_ms: Option<f64>,
    /// With `--server` alone.
    #[serde(flatten)]
    served: Option<served::Served>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn success_or_failure<S: Serializer>(result: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *result { "success" } else { "failure" })
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let mut outcome = Outcome::default();
    let ran = if options.server {
        served::run(&options, &mut outcome)
    } else {
        run(&options, &mut outcome)
    };
    if let Err(error) = ran {
        outcome.result = false;
        let _ = writeln!(io::stderr(), "error: {error:#}");
    }
    match serde_json::to_string(&outcome).map(|line| say(&line)) {
        Ok(Ok(())) if outcome.result => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Fills `outcome` as far as it comes.
fn run(options: &Options, outcome: &mut Outcome) -> Result<()> {
    chapter("a runner host, an internet and an attacker, in namespaces of their own")?;
    let mut world = World::builder().main_job().build()?;
    say(&format!("files: {}", world.directory().display()))?;

    chapter("the policy")?;
    let policy = policy(options)? + ATTACHED;
    say(policy.trim_end())?;
    world.write_policy("hello-build", &policy)?;
    world.install_hooks()?;
    let monitor = world.monitor(MonitorOptions::default())?;
    // As on a host whose monitor runs since it was started.
    monitor.wait_until_ready()?;

    chapter("the job, as its log on GitHub would show it")?;
    let canary = Canary::generate()?;
    let job = Job::from_file(Path::new(JOB))?.secret("DEPLOY_TOKEN", canary.as_str());
    let result = world.runner(0).run(&job)?;
    say(result.log().trim_end())?;
    note_hooks(&result, outcome);

    chapter("the job's summary, as its page on GitHub would show it")?;
    say(result.summary().trim_end())?;

    let leaked = note_leaked(&world, &canary, outcome)?;

    monitor.wait_until_idle().with_context(|| {
        format!("the monitor has not ended the job; its log:\n{}", monitor.log())
    })?;
    let report = report(&world)?;
    let is_in_force = is_in_force(options.mode, report.posture.level, leaked);
    note_report(report, outcome);
    outcome.result = result.outcome == JobOutcome::Success && is_in_force;

    if options.keep {
        chapter("to look around")?;
        say(&world.keep()?)?;
        let spool = world.root().join("var/lib/portcullis/spool");
        say(&format!("events and reports: {}", spool.display()))?;
    }
    if options.mode == Mode::Audit && leaked > 0 {
        chapter(
            "audit mode records and stops nothing: the secret left; with --mode block it stays",
        )?;
    } else if !outcome.result {
        chapter("this is not as it should be")?;
        let _ = writeln!(io::stderr(), "the monitor's log:\n{}", monitor.log());
    }
    say("")
}

/// The policy of the job, attached to nothing.
fn policy(options: &Options) -> Result<String> {
    let mode = options.mode.to_possible_value().context("a mode without a name")?;
    Ok(format!("name: hello-build\negress-policy: {}\n{ENDPOINTS}", mode.get_name()))
}

/// Says what reached the attacker, and returns how many bytes of it hold the secret.
fn note_leaked(world: &World, canary: &Canary, outcome: &mut Outcome) -> Result<u64> {
    chapter("the attacker")?;
    let leaked = world.attacker().leaked_bytes(canary)?;
    let packets = world.attacker().packets()?;
    outcome.leaked = Some(leaked);
    say(&match leaked {
        0 => format!("packets that reached the attacker: {packets}; the secret did not"),
        bytes => format!(
            "packets that reached the attacker: {packets}; the SECRET DID: {bytes} bytes of messages hold it"
        ),
    })?;
    Ok(leaked)
}

/// Whether the policy was in force as asked.
fn is_in_force(mode: Mode, posture: PostureLevel, leaked: u64) -> bool {
    match mode {
        Mode::Audit => posture == PostureLevel::Audit,
        Mode::Block => {
            matches!(posture, PostureLevel::Enforced | PostureLevel::Degraded) && leaked == 0
        }
    }
}

/// The report that the monitor wrote at the end of the first job: unlike the hook's, it has the kernel's last counters.
fn report(world: &World) -> Result<Report> {
    let ids = world.job_ids()?;
    let id = ids.first().context("the monitor has bound no job")?;
    let path = world.root().join("var/lib/portcullis/spool").join(id).join("report.json");
    let text = fs::read(&path)
        .with_context(|| format!("there is no report of the job: {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn note_report(report: Report, outcome: &mut Outcome) {
    outcome.policy = Some(report.policy.name);
    outcome.scope = Some(report.policy.scope.to_string());
    outcome.posture = Some(report.posture.level);
    outcome.allowed = Some(report.allowed);
    outcome.blocked = Some(report.blocked);
}

fn note_hooks(result: &JobResult, outcome: &mut Outcome) {
    let milliseconds =
        |kind| result.hook_ms(kind).map(|milliseconds| (milliseconds * 10.0).round() / 10.0);
    outcome.pre_job_ms = milliseconds(StepKind::StartedHook);
    outcome.post_job_ms = milliseconds(StepKind::CompletedHook);
}

fn chapter(title: &str) -> Result<()> {
    say(&format!("\n==> {title}"))
}

fn say(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    output.flush()?;
    Ok(())
}
