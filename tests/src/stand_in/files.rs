//! File commands: `$GITHUB_ENV`, `$GITHUB_PATH`, `$GITHUB_OUTPUT`, `$GITHUB_STATE`, `$GITHUB_STEP_SUMMARY`
//! (Runner.Worker/FileCommandManager.cs).

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The directory below `RUNNER_TEMP`.
const FOLDER: &str = "_runner_file_commands";

/// The largest step summary, in bytes.
const MAX_SUMMARY: u64 = 1024 * 1024;

/// Variables that `$GITHUB_ENV` can't set.
const REFUSED: [&str; 1] = ["NODE_OPTIONS"];

/// The files of one step.
#[derive(Debug)]
pub(super) struct CommandFiles {
    folder: PathBuf,
    suffix: String,
}

/// What a step wrote into its files.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) environment: Vec<(String, String)>,
    pub(super) path: Vec<String>,
    pub(super) outputs: Vec<(String, String)>,
    pub(super) state: Vec<(String, String)>,
    pub(super) summary: String,
    pub(super) errors: Vec<String>,
}

impl CommandFiles {
    /// Makes the empty files.
    pub(super) fn create(temp: &Path) -> Result<Self> {
        let files = Self { folder: temp.join(FOLDER), suffix: Uuid::now_v7().to_string() };
        fs::create_dir_all(&files.folder)?;
        for (_, prefix) in FILES {
            let path = files.path(prefix);
            fs::write(&path, "").with_context(|| format!("can't make {}", path.display()))?;
        }
        Ok(files)
    }

    /// The variables that name the files.
    pub(super) fn variables(&self) -> BTreeMap<String, String> {
        FILES
            .iter()
            .map(|(name, prefix)| ((*name).to_owned(), self.path(prefix).display().to_string()))
            .collect()
    }

    /// Reads the files; a file that can't be read as it should is an error of the step, the others count all the same.
    pub(super) fn process(&self) -> Written {
        let mut written = Written::default();
        match fs::read_to_string(self.path("add_path_")) {
            Ok(text) => {
                let lines = text.lines().filter(|line| !line.is_empty());
                written.path = lines.map(str::to_owned).collect();
            }
            Err(error) => written.complain("path", &error.into()),
        }
        match self.pairs("set_env_") {
            Ok(pairs) => {
                for (name, value) in pairs {
                    if REFUSED.iter().any(|refused| refused.eq_ignore_ascii_case(&name)) {
                        written.errors.push(format!(
                            "Can't store {name} output parameter using '$GITHUB_ENV' command."
                        ));
                    } else {
                        written.environment.push((name, value));
                    }
                }
            }
            Err(error) => written.complain("env", &error),
        }
        match self.pairs("set_output_") {
            Ok(pairs) => written.outputs = pairs,
            Err(error) => written.complain("output", &error),
        }
        match self.pairs("save_state_") {
            Ok(pairs) => written.state = pairs,
            Err(error) => written.complain("state", &error),
        }
        let summary = self.path("step_summary_");
        let size = fs::metadata(&summary).map_or(0, |metadata| metadata.len());
        if size > MAX_SUMMARY {
            written.errors.push(format!(
                "$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of {}k, got {}k.",
                MAX_SUMMARY / 1024,
                size / 1024
            ));
        } else if size > 0 {
            match fs::read(&summary) {
                Ok(bytes) => written.summary = String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) => written.complain("step_summary", &error.into()),
            }
        }
        written
    }

    fn path(&self, prefix: &str) -> PathBuf {
        self.folder.join(format!("{prefix}{}", self.suffix))
    }

    fn pairs(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let path = self.path(prefix);
        if !path.exists() {
            return Ok(Vec::new());
        }
        parse_pairs(&fs::read_to_string(path)?)
    }
}

impl Written {
    fn complain(&mut self, name: &str, error: &anyhow::Error) {
        self.errors
            .push(format!("Unable to process file command '{name}' successfully. {error:#}"));
    }
}

/// The variables of the files and the beginnings of their names.
const FILES: [(&str, &str); 5] = [
    ("GITHUB_ENV", "set_env_"),
    ("GITHUB_PATH", "add_path_"),
    ("GITHUB_OUTPUT", "set_output_"),
    ("GITHUB_STATE", "save_state_"),
    ("GITHUB_STEP_SUMMARY", "step_summary_"),
];

/// `NAME=value`, or `NAME<<END`, lines, `END`.
fn parse_pairs(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let equals = line.find('=');
        let heredoc = line.find("<<");
        match (equals, heredoc) {
            (Some(at), other) if other.is_none_or(|other| at < other) && at > 0 => {
                pairs.push((line[..at].to_owned(), line[at + 1..].to_owned()));
            }
            (_, Some(at)) if at > 0 && at + 2 < line.len() => {
                let delimiter = &line[at + 2..];
                let mut value = Vec::new();
                loop {
                    match lines.next() {
                        Some(line) if line == delimiter => break,
                        Some(line) => value.push(line),
                        None => bail!("Invalid value. Matching delimiter not found '{delimiter}'"),
                    }
                }
                pairs.push((line[..at].to_owned(), value.join("\n")));
            }
            _ => bail!("Invalid format '{line}'"),
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_single_lines_and_heredocs() {
        fn check(text: &str, expected: Option<&[(&str, &str)]>) {
            let expected = expected.map(|pairs| {
                pairs
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect()
            });
            assert_eq!(parse_pairs(text).ok(), expected, "{text}");
        }
        check("A=1\n\nB=2=3\n", Some(&[("A", "1"), ("B", "2=3")]));
        check("A<<END\none\ntwo\nEND\nB=<<x\n", Some(&[("A", "one\ntwo"), ("B", "<<x")]));
        check("A<<END\none\n", None);
        check("nonsense\n", None);
        check("=1\n", None);
    }
}
