//! `portcullis`: the policy store's server, and the operator's command line.

use clap::Parser as _;
use portcullis_store::command::{Options, exit_code};
use std::io::Write as _;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// A request is some hundreds of small allocations, many of them freed by another thread than asked for them: the C library's
/// allocator took a fifth of the server's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Called wrongly (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // A message that can't be printed must not turn into a panic; the exit status still says it all.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    start_logging(options.is_server());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error)),
    };
    match runtime.block_on(options.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// A server logs one line of JSON an event to standard error; commands log only what went wrong.
fn start_logging(is_server: bool) {
    let level = if is_server { LevelFilter::INFO } else { LevelFilter::WARN };
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .with_env_var("PORTCULLIS_LOG")
        .from_env_lossy();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if is_server { lines.json().init() } else { lines.without_time().init() }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let (status, text) = exit_code(error);
    // Standard error may be closed; the exit status still says it.
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(status)
}
