//! The measurements, one function each.

use crate::Found;
use crate::gate::{Gate, PORT, SERVER, addresses, in_turn, processor_seconds, write_policy};
use crate::result::Row;
use crate::statistics::Samples;
use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use portcullis_common::policy::{EffectivePolicy, EgressMode, Rule};
use portcullis_monitor::egress::rule_set;
use portcullis_monitor::egress::target::{EnforcementTarget, OwnerMode, TableName};
use portcullis_monitor::nftables::InstalledTable;
use portcullis_tests::{Job, StepKind, World, wait_until};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Rounds in which gate and no gate take turns, so that a machine that slows down slows both.
const ROUNDS: usize = 11;

/// The same for the main job, whose ratio is near its bound.
const JOB_ROUNDS: usize = 21;

/// `pre-job`, from its execution to its end, with 100 endpoints; and the hook as the runner sees it, with the shell that it
/// starts for it.
pub(crate) fn pre_job(found: Found<'_>) -> Result<()> {
    const RUNS: usize = 200;
    let mut gate = Gate::new(World::builder().build()?, &addresses(100))?;
    let hooks = gate.world.root().join("opt/portcullis/hooks");
    let timed = timed_hook(&gate, &fs::read_to_string(hooks.join("pre-job.sh"))?)?;
    gate.world.runner(0).set_hooks(Some(&timed), Some(&hooks.join("post-job.sh")))?;
    let (mut durations, mut hook, mut applied) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let result = gate.run_prepared(&Job::script("true"))?.result;
        hook.push(result.hook_ms(StepKind::StartedHook).context("no started hook")?);
        let log = &result.step_of_kind(StepKind::StartedHook).context("no started hook")?.log;
        let number = |before: &str, after: &str| {
            let told = log.lines().find_map(|line| line.strip_prefix(before)?.strip_suffix(after));
            told.and_then(|text| text.parse::<f64>().ok())
        };
        let microseconds = number("pre-job took ", " us");
        durations.push(microseconds.context("the hook told no time")? / 1e3);
        applied.extend(number("put in force in ", " ms"));
    }
    let [durations, hook, applied] = [durations, hook, applied].map(Samples::new);
    let detail = format!(
        "{} runs; {:.1} ms of it in the monitor; the whole hook, from the runner's start of its shell, {:.1} ms, p99 {:.1} ms",
        durations.len(),
        applied.median(),
        hook.median(),
        hook.percentile(99)
    );
    for row in [
        Row::at_most(
            "`pre-job`, exec to exit, 100 endpoints, p50",
            durations.median(),
            25.0,
            " ms",
        )
        .with(&detail),
        Row::at_most(
            "`pre-job`, exec to exit, 100 endpoints, p99",
            durations.percentile(99),
            80.0,
            " ms",
        ),
    ] {
        found(row)?;
    }
    Ok(())
}

/// The hook with a shell that tells how long `pre-job` took, fork and wait of its own included.
fn timed_hook(gate: &Gate, hook: &str) -> Result<PathBuf> {
    let command = hook.lines().find_map(|line| line.strip_prefix("exec "));
    let command = command.context("the hook executes nothing")?;
    let script = format!(
        "#!/bin/bash\nbegin=$EPOCHREALTIME\n{command}\ncode=$?\nend=$EPOCHREALTIME\necho \"pre-job took $((${{end/./}} - ${{begin/./}})) us\"\nexit $code\n"
    );
    gate.world.runner(0).write_script("timed-pre-job.sh", &script)
}

/// A rule set of 10 000 endpoints, installed, read back and verified.
pub(crate) fn rules(found: Found<'_>) -> Result<()> {
    const RUNS: usize = 30;
    let rules: Vec<Arc<Rule>> = addresses(10_000)
        .into_iter()
        .map(|text| {
            let (endpoint, policy) = (text.parse()?, "measured".into());
            Ok(Arc::new(Rule { endpoint, text: text.into(), policy }))
        })
        .collect::<Result<_>>()?;
    let policy = EffectivePolicy { allowed: rules, ..EffectivePolicy::built_in(EgressMode::Block) };
    let namespace = thread::spawn(|| -> Result<File> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    let namespace = namespace.join().map_err(|_| anyhow::anyhow!("no network namespace"))??;
    let mut durations = Vec::new();
    for run in 0..RUNS {
        let table = TableName::for_job(&format!("{run}")).context("no table name")?;
        let mut target =
            EnforcementTarget::new(table, portcullis_common::event::EnforcementScope::Job);
        target.runner_uid = Some(12_345);
        target.owner = OwnerMode::OwnerPersist;
        let started = Instant::now();
        let plan = rule_set(&policy, &target)?;
        let installed = InstalledTable::install(namespace.as_fd(), &plan)?;
        durations.push(started.elapsed().as_secs_f64() * 1e3);
        installed.remove()?;
    }
    let durations = Samples::new(durations);
    let detail = format!(
        "{} runs, planned, installed, read back and compared; p99 {:.1} ms",
        durations.len(),
        durations.percentile(99)
    );
    found(
        Row::at_most("10 000 endpoints applied and verified, p50", durations.median(), 60.0, " ms")
            .with(&detail),
    )?;
    Ok(())
}

/// New TCP connections, with policies of growing size.
pub(crate) fn connections(found: Found<'_>) -> Result<()> {
    let mut gate = Gate::new(World::builder().build()?, &[])?;
    gate.serve()?;
    let script = format!("$CLIENT connect {SERVER} {PORT} 2000");
    for count in [10, 1_000, 10_000, 100_000] {
        write_policy(&gate.world, &addresses(count))?;
        let [[plain, gated]] = in_turn(ROUNDS, |is_gated| {
            Ok([Samples::new(gate.numbers(&script, is_gated)?).median()])
        })?;
        let detail = format!(
            "{:.1} µs against {:.1} µs, medians of {ROUNDS} rounds of 2 000",
            gated / 1e3,
            plain / 1e3
        );
        let what = format!("new TCP connection, {count} endpoints");
        found(Row::at_most(what, gated / plain, 1.15, "×").with(&detail))?;
    }
    Ok(())
}

/// One TCP stream.
pub(crate) fn throughput(found: Found<'_>) -> Result<()> {
    const MEBIBYTES: f64 = 4096.0;
    let mut gate = Gate::new(World::builder().build()?, &addresses(100))?;
    gate.serve()?;
    let script = format!("$CLIENT send {SERVER} {PORT} {MEBIBYTES}");
    let [durations] = in_turn(ROUNDS, |is_gated| {
        let numbers = gate.numbers(&script, is_gated)?;
        Ok([*numbers.first().context("the client printed no time")?])
    })?;
    let rate = |nanoseconds: f64| MEBIBYTES * 8.0 * 1.048_576e6 / nanoseconds;
    let [plain, gated] = durations.map(rate);
    let detail =
        format!("{gated:.1} against {plain:.1} Gbit/s, medians of {ROUNDS} rounds of 4 GiB");
    found(Row::at_least("TCP throughput", gated / plain, 0.95, "×").with(&detail))
}

/// Look-ups: the same name again and again, and a thousand different ones.
pub(crate) fn names(found: Found<'_>) -> Result<()> {
    const NAMES: usize = 1_000;
    let endpoints: Vec<String> =
        (0..NAMES).map(|number| format!("n{number}.bench.test:443")).collect();
    let mut gate = Gate::new(World::builder().build()?, &endpoints)?;
    for number in 0..NAMES {
        gate.world.dns().addresses(&format!("n{number}.bench.test"), &["198.51.100.77"])?;
    }
    let server = portcullis_tests::world::network::DNS_V4;
    let cached = format!("$CLIENT dns {server} 4000 n0.bench.test");
    let uncached = format!("$CLIENT names {server} {NAMES} bench.test");
    let [[plain_cached, gated_cached], [plain_uncached, gated_uncached]] =
        in_turn(ROUNDS, |is_gated| {
            let mut median =
                |script| anyhow::Ok(Samples::new(gate.numbers(script, is_gated)?).median() / 1e3);
            Ok([median(&cached)?, median(&uncached)?])
        })?;
    for row in [
        Row::at_most("DNS, cached look-up", gated_cached / plain_cached, 1.0, "×")
            .with(&format!("{gated_cached:.1} µs against {plain_cached:.1} µs at the upstream")),
        Row::at_most(
            "DNS, uncached look-up, p50, added",
            gated_uncached - plain_uncached,
            100.0,
            " µs",
        )
        .with(&format!("{gated_uncached:.1} µs against {plain_uncached:.1} µs at the upstream")),
    ] {
        found(row)?;
    }
    Ok(())
}

/// The monitor's memory and idle processor time after 10 000 grants and 100 000 events.
pub(crate) fn monitor(found: Found<'_>) -> Result<()> {
    const NAMES: usize = 10_000;
    const IDLE: Duration = Duration::from_secs(20);
    let endpoints: Vec<String> =
        (0..NAMES).map(|number| format!("n{number}.bench.test:443")).collect();
    let gate = Gate::new(World::builder().build()?, &endpoints)?;
    for number in 0..NAMES {
        let address = format!("198.51.{}.{}", number / 250, number % 250 + 1);
        gate.world.dns().addresses(&format!("n{number}.bench.test"), &[&address])?;
    }
    let server = portcullis_tests::world::network::DNS_V4;
    // A job that waits for a byte starts no programs, which the sensors would follow.
    let wait = gate.world.directory().join("go-on");
    mkfifo(&wait, Mode::from_bits_truncate(0o644))?;
    let script = format!(
        "$CLIENT names {server} {NAMES} bench.test > /dev/null; $CLIENT scatter 198.18.0.1 100000; echo filled; read -r line < {}",
        wait.display()
    );
    let job = Job::script(&script.replace("$CLIENT", &gate.client.display().to_string()));
    let running = gate.world.runner(0).begin(&job)?;
    running.wait_for_line("filled")?;
    let events = || gate.monitor.status().ok().and_then(|status| Some(status.jobs.first()?.events));
    wait_until("100 000 events to be recorded", || {
        events().is_some_and(|events| events >= 100_000)
    })?;
    let status = gate.monitor.status()?;
    let job = status.jobs.first().context("no job")?;
    let resident = resident_mebibytes(gate.monitor.pid())?;
    let before = processor_seconds(gate.monitor.pid())?;
    thread::sleep(IDLE);
    let idle = (processor_seconds(gate.monitor.pid())? - before) / IDLE.as_secs_f64();
    let later = resident_mebibytes(gate.monitor.pid())?;
    fs::write(&wait, "go on\n")?;
    let detail = format!("{} grants, {} events; {later:.1} MiB 20 s later", job.grants, job.events);
    running.wait()?;
    for row in [
        Row::at_most("monitor, resident memory", resident, 25.0, " MiB").with(&detail),
        Row::at_most(
            "monitor, idle with that job, share of one processor",
            idle * 100.0,
            0.1,
            " %",
        )
        .with("20 s"),
    ] {
        found(row)?;
    }
    Ok(())
}

/// The main job.
pub(crate) fn main_job(found: Found<'_>) -> Result<()> {
    let endpoints: Vec<String> =
        ["git.test:443", "pypi.test:443", "files.pypi.test:443", "api.ok.test:443"]
            .map(str::to_owned)
            .into();
    let mut gate = Gate::new(World::builder().main_job().build()?, &endpoints)?;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/jobs/main.yml");
    let job = Job::from_file(Path::new(file))?.secret("DEPLOY_TOKEN", "measured");
    let mut hooks = [Vec::new(), Vec::new()];
    let [[plain_wall, gated_wall], [plain_cpu, gated_cpu], [_, monitor]] =
        in_turn(JOB_ROUNDS, |is_gated| {
            clean_workspace(&gate)?;
            gate.prepare(is_gated)?;
            let before = gate.used()?;
            let run = gate.run_job(&job, is_gated)?;
            for (times, kind) in
                hooks.iter_mut().zip([StepKind::StartedHook, StepKind::CompletedHook])
            {
                times.extend(run.result.hook_ms(kind));
            }
            let [all, monitor] = gate.used()?.since(before);
            Ok([run.wall.as_secs_f64(), all, monitor])
        })?;
    let [started, completed] = hooks.map(|samples| Samples::new(samples).median());
    for row in [
        Row::at_most("the main job, wall clock", gated_wall / plain_wall, 1.02, "×").with(&format!(
            "{gated_wall:.3} s against {plain_wall:.3} s, medians of {JOB_ROUNDS}; the hooks took {started:.1} and {completed:.1} ms"
        )),
        Row::at_most(
            "the main job, processor time of job and monitor",
            gated_cpu / plain_cpu,
            1.02,
            "×",
        )
        .with(&format!("{gated_cpu:.3} s, {:.0} ms of it the monitor's, against {plain_cpu:.3} s, medians of {JOB_ROUNDS}", monitor * 1e3)),
    ] {
        found(row)?;
    }
    Ok(())
}

/// The main job clones into its workspace, as on a runner that is made anew for each job.
fn clean_workspace(gate: &Gate) -> Result<()> {
    let source = gate.world.runner(0).directory().join("_work/hello/hello/source");
    match fs::remove_dir_all(&source) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", source.display()))
        }
        _ => Ok(()),
    }
}

fn resident_mebibytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}
