//! `monitor`: the root daemon of a host with GitHub Actions runners, and the commands to look at it.

use clap::{Parser, Subcommand};
use portcullis_monitor::command::explain::{Question, explain};
use portcullis_monitor::command::{check, serve::serve, status::status};
use portcullis_monitor::config::Paths;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

/// Puts the policies of GitHub Actions jobs in force on this host.
///
/// Exit status: 0 done; 1 it failed, or `check` found that no policy could be enforced; 64 usage.
#[derive(Debug, Parser)]
#[command(name = "monitor", version)]
struct Options {
    /// Put all paths below this directory.
    #[arg(long, value_name = "DIR", default_value = "/", global = true)]
    root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the hooks of this host's runners.
    Serve {
        /// Leave the caller's session; for hooks that start the monitor.
        #[arg(long)]
        detach: bool,
    },
    /// Show the jobs that are running.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Try out what this host can do, and say what posture a job would get.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say which policy would apply to a job, and why the others would not.
    Explain {
        /// The repository: octo/hello.
        repository: String,
        /// The workflow's file (.github/workflows/ci.yml), or a whole workflow ref.
        workflow: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).init();
    match run(&options) {
        Ok((text, exit)) => {
            let _ = io::stdout().write_all(text.as_bytes());
            exit
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<(String, ExitCode)> {
    let paths = Paths::below(&options.root);
    let text = match &options.command {
        Command::Serve { detach } => serve(&paths, *detach).map(|()| String::new()),
        Command::Status { json } => status(&paths, *json),
        Command::Check { json } => {
            let result = check::check(&paths);
            let text = if *json {
                serde_json::to_string(&result)? + "\n"
            } else {
                check::for_a_person(&result)
            };
            let exit =
                if check::is_sufficient(&result) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            return Ok((text, exit));
        }
        Command::Explain { repository, workflow, json } => {
            let question = Question { repository: repository.clone(), workflow: workflow.clone() };
            explain(&paths, &question, *json)
        }
    }?;
    Ok((text, ExitCode::SUCCESS))
}
