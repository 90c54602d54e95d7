//! What both hooks' `main` do: options in, text and exit status out.

use portcullis_common::hook::{HookExit, HookOutput};
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs a hook with its options, prints what it has to say and returns its exit status; prints what is wrong with the options,
/// or what was asked for by `--help` and `--version`.
pub fn run_hook<O>(
    options: Result<O, clap::Error>,
    run: impl FnOnce(&O) -> HookOutput,
) -> ExitCode {
    let options = match options {
        Ok(options) => options,
        Err(error) => {
            // A message that can't be printed must not turn into a panic; the exit status still says it all.
            let _ = error.print();
            return if error.use_stderr() { HookExit::Usage } else { HookExit::Done }.into();
        }
    };
    let output = run(&options);
    let mut standard_output = io::stdout().lock();
    let _ = standard_output.write_all(output.text.as_bytes());
    let _ = standard_output.flush();
    output.exit.into()
}
