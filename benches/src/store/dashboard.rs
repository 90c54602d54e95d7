//! The dashboard's pages, as a browser on the same machine sees them.

use super::server::{Backend, Server, TOKEN};
use crate::Found;
use crate::result::Row;
use crate::statistics::Samples;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

/// How the tests of the store install the browser's scripts; it is not part of a library.
#[path = "../../../store/tests/server/support/browser.rs"]
#[expect(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "written for tests, which fail by panicking"
)]
mod browser;

/// How often each page is loaded.
const TIMES: usize = 30;

/// How long a page's answer takes, and until its largest part is painted: each page on its own, and the slowest.
pub(crate) fn pages(found: Found<'_>) -> Result<()> {
    let (jobs, calls) = super::stored();
    let server = Server::start_with_events(Backend::Sqlite, jobs, calls)?;
    let events = jobs * calls;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let place = browser::installed(target.as_ref());
    let mut measured = Command::new("node")
        .args(["measure.mjs", &server.url(), TOKEN, &TIMES.to_string()])
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("node is needed")?;
    let output = BufReader::new(measured.stdout.take().context("no output")?);
    for line in output.lines() {
        let page: Value = serde_json::from_str(&line?)?;
        let name = page["page"].as_str().context("no name")?;
        let times = |what: &str| -> Result<Samples> {
            let list = page[what].as_array().context("no times")?;
            Ok(Samples::new(list.iter().filter_map(Value::as_f64).collect()))
        };
        for (what, key, limit) in
            [("answer", "server", 100.0), ("largest contentful paint", "paint", 500.0)]
        {
            let times = times(key)?;
            ensure!(times.len() == TIMES, "{} times of {name}", times.len());
            let detail = format!("p50 {:.0} ms", times.median());
            let what = format!("page {name}, {what}, {events} events stored, p95");
            found(Row::at_most(what, times.percentile(95), limit, " ms").with(&detail))?;
        }
    }
    ensure!(measured.wait()?.success(), "the browser's measurement failed");
    Ok(())
}
