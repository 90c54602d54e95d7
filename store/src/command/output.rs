//! What people and programs are shown.

use clap::ValueEnum;
use portcullis_common::hook::with_causes;
use portcullis_common::text::log_line;
use portcullis_store_client::StoreError;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;

/// The widest cell of a table in bytes.
const MAX_CELL_BYTES: usize = 160;

/// How answers are shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Rows under headings. What stands in the cells can come from a hostile job, and is made visible.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(
        headings: [&'static str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Self {
        let visible = |cell: String| log_line(&cell, MAX_CELL_BYTES);
        let rows = rows.into_iter().map(|row| row.into_iter().map(visible).collect()).collect();
        Self { headings: headings.to_vec(), rows }
    }

    /// The table as text.
    pub(super) fn text(&self) -> String {
        let width = |column: usize| {
            let cells =
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain(self.headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut text = String::new();
        let headings = self.headings.iter().map(|heading| (*heading).to_owned()).collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String can't fail.
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Shows an answer: as it is for programs, as a table for people.
pub(super) fn show<T: Serialize>(
    output: Output,
    answer: &T,
    table: impl FnOnce(&T) -> Table,
) -> anyhow::Result<()> {
    match output {
        Output::Table => print(&table(answer).text()),
        Output::Json => print(&(serde_json::to_string_pretty(answer)? + "\n")),
        Output::Yaml => print(&serde_saphyr::to_string(answer)?),
    }
}

/// Shows what was done: a sentence for people, what the store answered for programs.
pub(super) fn done<T: Serialize>(output: Output, answer: &T, sentence: &str) -> anyhow::Result<()> {
    match output {
        Output::Table => print(&format!("{sentence}\n")),
        _ => show(output, answer, |_| Table::new([""], [])),
    }
}

/// Shows text.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()?;
    Ok(())
}

/// What went wrong, for a person: `error: …`, an empty line, `hint: …`.
fn error_text(error: &anyhow::Error) -> String {
    if let Some(StoreError::Refused(problem)) = error.downcast_ref() {
        let told: Vec<String> = problem.diagnostics().iter().map(ToString::to_string).collect();
        return told.join("\n\n");
    }
    let text = format!("error: {}", with_causes(error.as_ref()));
    match error.downcast_ref() {
        Some(StoreError::Unreachable { .. } | StoreError::TimedOut(_)) => {
            format!(
                "{text}\n\nhint: `portcullis doctor` looks at everything between here and the store"
            )
        }
        _ => text,
    }
}

/// A value that serializes as one word, as that word.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// A check that was asked for found something: no failure of the command, and its own exit status.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Found(pub(super) String);

/// Options that make no sense together, which only the command can tell.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) &'static str);

/// Refuses `--output` where what is printed is a document of its own, as other programs read it.
pub(super) fn text_only(output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => Ok(()),
        _ => Err(Usage("this command prints a document as it is; leave --output out").into()),
    }
}

/// The exit status of [`Usage`], as that of options that are not known.
const USAGE: u8 = 64;

/// The exit status of [`Found`].
const FOUND: u8 = 3;

/// The exit status for an error, and what to tell.
pub fn exit_code(error: &anyhow::Error) -> (u8, String) {
    let is_unreachable = matches!(
        error.downcast_ref(),
        Some(StoreError::Unreachable { .. } | StoreError::TimedOut(_))
    );
    let status = match () {
        () if is_unreachable => 2,
        () if error.is::<Found>() => FOUND,
        () if error.is::<Usage>() => USAGE,
        () => 1,
    };
    (status, error_text(error))
}
