//! Benchmarks that produce the numbers of `docs/performance.md`: ratios in one run, against no gate at all.

mod gate;
mod measure;
mod result;
mod sensors;
mod statistics;
mod store;

use anyhow::Result;
use clap::Parser;
use result::Row;
use std::io::{self, Write};

/// Measures what the gate costs. Run it by `scripts/bench`, which builds everything in release mode first.
#[derive(Debug, Parser)]
#[command(name = "portcullis-benches")]
struct Options {
    /// Which ones: pre-job, rules, connections, throughput, names, monitor, main-job, sensors (or one of sensors-processes,
    /// sensors-calls, sensors-shells, sensors-kill, sensors-kill-many), store-resolve, store-intake, store-pages, dashboard. All when
    /// none is named.
    only: Vec<String>,
}

/// Tells each row as it is found.
type Found<'a> = &'a mut dyn FnMut(Row) -> Result<()>;

type Measurement = (&'static str, fn(Found<'_>) -> Result<()>);

const MEASUREMENTS: [Measurement; 16] = [
    ("pre-job", measure::pre_job),
    ("rules", measure::rules),
    ("connections", measure::connections),
    ("throughput", measure::throughput),
    ("names", measure::names),
    ("monitor", measure::monitor),
    ("main-job", measure::main_job),
    ("sensors-processes", sensors::processes),
    ("sensors-calls", sensors::calls),
    ("sensors-shells", sensors::stopped_shells),
    ("sensors-kill", sensors::deaths),
    ("sensors-kill-many", sensors::many),
    ("store-resolve", store::resolve),
    ("store-intake", store::intake),
    ("store-pages", store::pages),
    ("dashboard", store::dashboard::pages),
];

/// `sensors` are all whose names begin so.
fn is_asked(only: &str, name: &str) -> bool {
    name.strip_prefix(only).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        && (only == name || only == "sensors")
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut rows = Vec::new();
    let mut out = io::stdout().lock();
    for (name, measurement) in MEASUREMENTS {
        if options.only.is_empty() || options.only.iter().any(|only| is_asked(only, name)) {
            measurement(&mut |row| {
                writeln!(out, "{}", result::line(&row))?;
                out.flush()?;
                rows.push(row);
                Ok(())
            })?;
        }
    }
    writeln!(out, "\n{}", result::table(&rows))?;
    Ok(())
}
