//! The runner stand-in: `Runner.Listener`, which starts one `Runner.Worker` for each job.
//!
//! It behaves as the sources of `actions/runner` say; each function names the file it follows. What it leaves out:
//! containers, `uses:` from the network (an action is a few scripts in the job file), expressions beyond look-ups,
//! problem matchers, and GitHub's own message format.

mod commands;
mod environment;
mod expression;
mod files;
mod https;
mod listener;
mod message;
mod orphans;
mod process;
mod steps;
mod worker;

pub(crate) use message::{Command, Progress};

use anyhow::{Result, bail};
use std::ffi::OsStr;
use std::process::ExitCode;

/// The name of the Listener's executable.
pub const LISTENER: &str = "Runner.Listener";

/// The name of the Worker's executable.
pub const WORKER: &str = "Runner.Worker";

/// The program of both: which one it is, is told by the name of the executable.
///
/// # Errors
/// When it has another name, or its pipes break.
pub fn main() -> Result<ExitCode> {
    let executable = std::env::current_exe()?;
    match executable.file_name().and_then(OsStr::to_str) {
        Some(LISTENER) => listener::main(),
        Some(WORKER) => worker::main(),
        other => bail!(
            "this program is installed as {LISTENER} and {WORKER} by the test world, not as {other:?}"
        ),
    }
}
