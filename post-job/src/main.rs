//! `post-job`: the job-completed hook of a GitHub Actions runner.
//!
//! It asks the monitor for the report of the job, prints it, writes it to the job's summary, and says by its exit
//! status whether the policy lets the job pass. It changes nothing: a job may call it at any time, as often as it likes.

mod output;
mod summary;

use clap::Parser;
use portcullis_common::hook::HookOutput;
use portcullis_common::wire::{Call, SOCKET_PATH};
use portcullis_monitor_client::{Patience, exchange, run_hook};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long the hook waits. A monitor that systemd restarts is back well within `connect`; `total` bounds what a
/// person waits at worst, whatever the monitor does.
const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(5), total: Duration::from_secs(30) };

/// Reports what a GitHub Actions job did, after its last step.
///
/// Everything comes from the environment that actions/runner gives a job hook; the options are for operators and tests.
///
/// Exit status: 0 done; 1 the policy says that this job fails (a blocked call with `fail-on-block`, a lockdown);
/// 2 nobody can say what was in force; 64 usage.
#[derive(Debug, Parser)]
#[command(name = "post-job", version)]
struct Options {
    /// The monitor's socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_PATH)]
    socket: PathBuf,
    /// Print the monitor's answer as one line of JSON instead of workflow commands; the summary is written all the same.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run_hook(Options::try_parse(), run)
}

fn run(options: &Options) -> HookOutput {
    match exchange(&options.socket, Call::FinishJob {}, PATIENCE) {
        Ok(answer) => {
            let written = output::markdown(&answer)
                .map(|markdown| summary::append(std::env::var_os("GITHUB_STEP_SUMMARY"), markdown));
            output::answer(&answer, written.and_then(Result::err).as_ref(), options.json)
        }
        Err(error) => output::no_answer(&error, options.json),
    }
}
