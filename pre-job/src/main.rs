//! `pre-job`: the job-started hook of a GitHub Actions runner.
//!
//! It gathers the job's context from its environment, asks the monitor to put the job's policy in force, prints what
//! it was told, and exits. It is a trigger, never the boundary: nothing that is enforced depends on this process.

mod output;
mod start_monitor;

use clap::Parser;
use portcullis_common::hook::HookOutput;
use portcullis_common::job_context::JobContext;
use portcullis_common::wire::{Answer, Call, IdTokenRequest, SOCKET_PATH};
use portcullis_monitor_client::{ClientError, Patience, exchange, run_hook};
use start_monitor::StartMonitor;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long the hook waits. A monitor that systemd restarts is back well within `connect`; `total` bounds what a
/// person waits at worst, whatever the monitor does.
const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(3), total: Duration::from_secs(30) };

/// Puts the policy of a GitHub Actions job in force, before its first step runs.
///
/// Everything comes from the environment that actions/runner gives a job hook; the options are for operators and tests.
///
/// Exit status: 0 done; 1 the policy says that this job does not run; 2 enforcement could not be put in force and the
/// failure mode is `closed`; 64 usage, or not called by a runner.
#[derive(Debug, Parser)]
#[command(name = "pre-job", version)]
struct Options {
    /// The monitor's socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_PATH)]
    socket: PathBuf,
    /// Print the monitor's answer as one line of JSON instead of workflow commands.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run_hook(Options::try_parse(), run)
}

fn run(options: &Options) -> HookOutput {
    let context = match JobContext::from_environment(|name| std::env::var_os(name)) {
        Ok(context) => context,
        Err(error) => return output::not_a_job(&error, options.json),
    };
    let call = Call::StartJob { context, id_token: None, id_token_request: id_token_request() };
    match ask(options, call) {
        Ok(answer) => output::answer(&answer, options.json),
        Err(failure) => output::no_answer(&failure, options.json),
    }
}

/// How to ask for an OIDC token, when the job has `id-token: write`. The monitor asks, and only where it has a store that
/// verifies the token; what it can't use it leaves alone.
fn id_token_request() -> Option<IdTokenRequest> {
    let read = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(IdTokenRequest {
        url: read("ACTIONS_ID_TOKEN_REQUEST_URL")?,
        token: read("ACTIONS_ID_TOKEN_REQUEST_TOKEN")?,
    })
}

/// What kept the hook from getting an answer.
#[derive(Debug)]
struct Failure {
    error: ClientError,
    /// What became of the attempt to start a monitor, when there was one.
    start: Option<start_monitor::StartError>,
}

fn ask(options: &Options, call: Call) -> Result<Answer, Failure> {
    let plan = StartMonitor::plan(&options.socket);
    // Where this hook may start a monitor itself, waiting for somebody else to do it would only cost time.
    let first =
        if plan.is_some() { Patience { connect: Duration::ZERO, ..PATIENCE } } else { PATIENCE };
    match (exchange(&options.socket, call.clone(), first), plan) {
        (Err(ClientError::NotListening { .. }), Some(plan)) => {
            let start = plan.start().err();
            let patience = if start.is_some() { first } else { PATIENCE };
            exchange(&options.socket, call, patience).map_err(|error| Failure { error, start })
        }
        (result, _) => result.map_err(|error| Failure { error, start: None }),
    }
}
