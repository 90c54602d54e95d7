//! What a benchmark found, beside what was promised.

use serde_json::json;
use std::fmt::Write;

/// One row of `docs/performance.md`.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// What is promised, in words.
    pub(crate) target: String,
    /// What was found, in words.
    pub(crate) found: String,
    /// Whether the promise holds in this run.
    pub(crate) holds: bool,
}

impl Row {
    /// A row whose promise is that `value` does not exceed `limit`.
    pub(crate) fn at_most(what: impl Into<String>, value: f64, limit: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            target: format!("≤ {limit}{unit}"),
            found: format!("{value:.3}{unit}"),
            holds: value <= limit,
        }
    }

    /// A row whose promise is that `value` reaches `limit`.
    pub(crate) fn at_least(what: impl Into<String>, value: f64, limit: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            target: format!("≥ {limit}{unit}"),
            found: format!("{value:.3}{unit}"),
            holds: value >= limit,
        }
    }

    /// Adds how it was measured.
    pub(crate) fn with(mut self, detail: &str) -> Self {
        let _ = write!(self.found, " ({detail})");
        self
    }
}

/// The rows as a Markdown table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::from("| what | target | found | |\n|---|---|---|---|\n");
    for row in rows {
        let mark = if row.holds { "holds" } else { "**missed**" };
        let _ = writeln!(out, "| {} | {} | {} | {mark} |", row.what, row.target, row.found);
    }
    out
}

/// A row as one line of JSON.
pub(crate) fn line(row: &Row) -> String {
    json!({"what": row.what, "target": row.target, "found": row.found, "holds": row.holds})
        .to_string()
}
