//! A world with the real monitor and hooks, and jobs with and without the gate in turn.

use anyhow::{Context, Result, ensure};
use portcullis_tests::world::{Monitor, MonitorOptions};
use portcullis_tests::{Job, JobOutcome, JobResult, World};
use std::fmt::Write;
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

    /// Runs a script as a job behind the gate, or as the same job without hooks.
    pub(crate) fn run(&self, script: &str, is_gated: bool) -> Result<JobResult> {
        let script = script.replace("$CLIENT", &self.client.display().to_string());
        Ok(self.run_job(&Job::script(&script), is_gated)?.result)
    }

    /// Runs a job behind the gate, or the same job without hooks.
    pub(crate) fn run_job(&self, job: &Job, is_gated: bool) -> Result<Run> {
        if is_gated {
            self.world.install_hooks()?;
        } else {
            self.world.runner(0).set_hooks(None, None)?;
        }
        self.run_prepared(job)
    }

    /// Runs a job with the hooks that are set.
    pub(crate) fn run_prepared(&self, job: &Job) -> Result<Run> {
        let started = Instant::now();
        let result = self.world.runner(0).run(job)?;
        let wall = started.elapsed();
        ensure!(
            result.outcome == JobOutcome::Success,
            "the measured job failed:\n{}\n{}",
            result.log(),
            self.monitor.log()
        );
        // The monitor cleans up once the job is over for its runner, which does not wait for it.
        self.monitor.wait_until_idle()?;
        Ok(Run { result, wall })
    }

    /// The numbers that a script printed, one a line.
    pub(crate) fn numbers(&self, script: &str, is_gated: bool) -> Result<Vec<f64>> {
        let result = self.run(script, is_gated)?;
        let main = result.steps.iter().find(|step| step.kind == portcullis_tests::StepKind::Main);
        let log = &main.context("the job has no step")?.log;
        Ok(log.lines().filter_map(|line| line.trim().parse().ok()).collect())
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
