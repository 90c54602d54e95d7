//! `Runner.Listener` and `Runner.Worker` of the test world.

use anyhow::Result;
use std::process::ExitCode;

fn main() -> Result<ExitCode> {
    portcullis_tests::stand_in::main()
}
