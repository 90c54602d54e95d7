//! A world with the real monitor and hooks, and jobs with and without the gate in turn.

use crate::statistics::Samples;
use anyhow::{Context, Result, ensure};
use portcullis_tests::world::{Monitor, MonitorOptions};
use portcullis_tests::{Job, JobOutcome, JobResult, StepKind, World};
use std::fmt::Write;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Where the measured server is: an address of the world's internet that nothing else uses.
pub(crate) const SERVER: &str = "203.0.113.200";

/// Its port.
pub(crate) const PORT: u16 = 9000;

/// A world in which jobs can be measured.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) world: World,
    pub(crate) monitor: Monitor,
    pub(crate) client: PathBuf,
}

/// A job that ran.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) result: JobResult,
    /// From the start of its Listener to the Listener's end: what somebody who waits for the job waits.
    pub(crate) wall: Duration,
}

/// Processor time, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// Of runner, job and hooks.
    pub(crate) job: f64,
    /// Of the monitor.
    pub(crate) monitor: f64,
}

impl Used {
    /// What was used since `before`: of all, and of the monitor alone.
    pub(crate) fn since(self, before: Self) -> [f64; 2] {
        let monitor = self.monitor - before.monitor;
        [self.job - before.job + monitor, monitor]
    }
}

impl Gate {
    /// Builds the world and starts the monitor. `endpoints` are allowed beside the measured server.
    pub(crate) fn new(world: World, endpoints: &[String]) -> Result<Self> {
        world.add_address(SERVER.parse()?)?;
        let client = compile_client(world.directory())?;
        write_policy(&world, endpoints)?;
        world.install_hooks()?;
        let monitor = world.monitor(MonitorOptions::default())?;
        Ok(Self { world, monitor, client })
    }

    /// Runs a script as a job behind the gate, or as the same job without any gate.
    pub(crate) fn run(&mut self, script: &str, is_gated: bool) -> Result<JobResult> {
        let script = script.replace("$CLIENT", &self.client.display().to_string());
        Ok(self.run_job(&Job::script(&script), is_gated)?.result)
    }

    /// Runs a job behind the gate, or the same job without any gate.
    pub(crate) fn run_job(&mut self, job: &Job, is_gated: bool) -> Result<Run> {
        self.prepare(is_gated)?;
        self.run_prepared(job)
    }

    /// Sets the hooks and starts the monitor, or ends both: programs at tracepoints see everything on a machine, so that one
    /// without a gate has no monitor.
    pub(crate) fn prepare(&mut self, is_gated: bool) -> Result<()> {
        match (is_gated, self.monitor.is_running()) {
            (true, false) => self.monitor.restart()?,
            (false, true) => drop(self.monitor.stop()?),
            _ => {}
        }
        if is_gated {
            self.monitor.wait_until_ready()?;
            self.world.install_hooks()
        } else {
            self.world.runner(0).set_hooks(None, None)
        }
    }

    /// Runs a job with the hooks that are set.
    pub(crate) fn run_prepared(&mut self, job: &Job) -> Result<Run> {
        let started = Instant::now();
        let result = self.world.runner(0).run(job)?;
        let wall = started.elapsed();
        ensure!(
            result.outcome == JobOutcome::Success,
            "the measured job failed:\n{}\n{}",
            result.log(),
            self.monitor.log()
        );
        if self.monitor.is_running() {
            // The monitor cleans up once the job is over for its runner, which does not wait for it.
            self.monitor.wait_until_idle()?;
        }
        Ok(Run { result, wall })
    }

    /// The numbers that a script printed, one a line.
    pub(crate) fn numbers(&mut self, script: &str, is_gated: bool) -> Result<Vec<f64>> {
        let result = self.run(script, is_gated)?;
        let main = result.step_of_kind(StepKind::Main).context("the job has no step")?;
        Ok(main.log.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Processor time in seconds: of everything in the runner's cgroup, and of the monitor, where there is one.
    pub(crate) fn used(&mut self) -> Result<Used> {
        let stat = fs::read_to_string(self.world.runner(0).cgroup().path().join("cpu.stat"))?;
        let job = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let job = job.context("no usage_usec")?.parse::<f64>()? / 1e6;
        let is_running = self.monitor.is_running();
        let monitor = if is_running { processor_seconds(self.monitor.pid())? } else { 0.0 };
        Ok(Used { job, monitor })
    }

    /// Starts a server that takes connections and reads them to their end.
    pub(crate) fn serve(&self) -> Result<()> {
        let listener = self.world.internet().run(|| TcpListener::bind((SERVER, PORT)))??;
        thread::Builder::new().name("server".to_owned()).spawn(move || {
            let mut block = vec![0; 1 << 18];
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                // A client that resets ends the same way.
                while matches!(std::io::Read::read(&mut stream, &mut block), Ok(1..)) {}
            }
        })?;
        Ok(())
    }
}

/// Measures some figures `rounds` times without the gate and with it: the medians of each figure, without and with it. Each is
/// first every second time, so that neither always finds what the other has just warmed up. The first of each comes with cold
/// caches and does not count.
pub(crate) fn in_turn<const FIGURES: usize>(
    rounds: usize,
    mut measure: impl FnMut(bool) -> Result<[f64; FIGURES]>,
) -> Result<[[f64; 2]; FIGURES]> {
    let mut samples = [const { [const { Vec::new() }; 2] }; FIGURES];
    for round in 0..=rounds {
        for is_gated in if round % 2 == 0 { [false, true] } else { [true, false] } {
            let figures = measure(is_gated)?;
            if round == 0 {
                continue;
            }
            for ([without, with], figure) in samples.iter_mut().zip(figures) {
                if is_gated { &mut *with } else { &mut *without }.push(figure);
            }
        }
    }
    Ok(samples.map(|sides| sides.map(|samples| Samples::new(samples).median())))
}

/// User and system time of a process (fields 14 and 15 of `/proc/PID/stat`, in ticks of 10 ms).
pub(crate) fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no process name")?;
    let ticks: f64 =
        fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

/// Endpoints that one policy file of a measured world holds; a file has a largest size.
const ENDPOINTS_PER_FILE: usize = 20_000;

/// Replaces the policy of the world's repository. Many endpoints are spread over policies that it extends.
pub(crate) fn write_policy(world: &World, endpoints: &[String]) -> Result<()> {
    let mut parts = Vec::new();
    for (number, part) in endpoints.chunks(ENDPOINTS_PER_FILE).enumerate() {
        let name = format!("part-{number}");
        let mut document = format!("name: {name}\nallowed-endpoints:\n");
        for endpoint in part {
            let _ = writeln!(document, "  - \"{endpoint}\"");
        }
        world.write_policy(&name, &document)?;
        parts.push(name);
    }
    let document = format!(
        "name: measured\negress-policy: block\nattach:\n  - repository: octo/hello\nextends: [{}]\nallowed-endpoints:\n  - {SERVER}:{PORT}\n",
        parts.join(", ")
    );
    world.write_policy("measured", &document)
}

/// So many exact addresses of a private network, as endpoints.
pub(crate) fn addresses(count: u32) -> Vec<String> {
    (0..count)
        .map(|number| {
            let [_, b, c, d] = (0x0a00_0000 + number).to_be_bytes();
            format!("10.{b}.{c}.{d}:443")
        })
        .collect()
}

fn compile_client(directory: &Path) -> Result<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/client.c");
    let client = directory.join("client");
    let status =
        Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&client).arg(source).status()?;
    ensure!(status.success(), "client.c does not compile");
    Ok(client)
}
