//! What can be wrong with policies: always with the place, the key and the remedy.

use crate::diagnostic::Diagnostic;
use crate::text::log_line;
use std::fmt;

/// The longest piece of a document that a message repeats, in bytes.
const QUOTED_BYTES: usize = 120;

/// A place in a policy file.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The file as its reader was told to call it.
    pub file: String,
    /// Line from 1; 0 when the whole file is meant.
    pub line: usize,
    /// Column from 1, in characters; 0 when the whole line or file is meant.
    pub column: usize,
}

impl Place {
    /// The whole file.
    pub fn file(file: impl Into<String>) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&log_line(&self.file, 512))?;
        if self.line > 0 {
            write!(formatter, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// One mistake in a policy file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct PolicyError {
    /// Where it is.
    pub place: Place,
    /// The key it concerns, as a path: `lockdown-mode.detections`; absent when it concerns no key.
    pub key: Option<String>,
    /// What is wrong; one line, safe to print.
    pub message: String,
    /// What to do about it; one line, safe to print.
    pub hint: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(formatter, "{}: `{key}`: {}", self.place, self.message),
            None => write!(formatter, "{}: {}", self.place, self.message),
        }
    }
}

impl PolicyError {
    /// The error for a person.
    pub fn diagnostic(&self) -> Diagnostic {
        Diagnostic::new(self.to_string(), self.hint.clone())
    }
}

/// Everything that is wrong with a set of policy files; never empty. Its text is each error with its hint.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct PolicyErrors {
    /// The errors, by file and place.
    errors: Vec<PolicyError>,
}

/// The most errors that are kept: a person mends the first few, and a hostile file must not fill the memory.
const MAX_ERRORS: usize = 100;

impl PolicyErrors {
    /// The errors, by file and place.
    pub fn errors(&self) -> &[PolicyError] {
        &self.errors
    }

    /// Whether so many errors were found that the search for more was given up.
    pub const fn is_truncated(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// Each error for a person.
    pub fn diagnostics(&self) -> impl Iterator<Item = Diagnostic> + '_ {
        self.errors.iter().map(PolicyError::diagnostic)
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics().enumerate() {
            if index > 0 {
                formatter.write_str("\n\n")?;
            }
            diagnostic.fmt(formatter)?;
        }
        if self.is_truncated() {
            write!(formatter, "\n\nerror: there may be more errors than these {MAX_ERRORS}")?;
        }
        Ok(())
    }
}

impl From<PolicyError> for PolicyErrors {
    fn from(error: PolicyError) -> Self {
        Self { errors: vec![error] }
    }
}

/// Collects errors while a run goes on.
#[derive(Debug, Default)]
pub(crate) struct ErrorList {
    errors: Vec<PolicyError>,
}

impl ErrorList {
    /// Adds an error.
    pub(crate) fn push(&mut self, error: PolicyError) {
        if !self.is_full() {
            self.errors.push(error);
        }
    }

    /// Whether an error about this key at this place is there already.
    pub(crate) fn has_place(&self, error: &PolicyError) -> bool {
        self.errors.iter().any(|known| known.place == error.place && known.key == error.key)
    }

    /// Whether no further error is kept, so that looking for more is in vain.
    pub(crate) const fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// Adds the errors of another run.
    pub(crate) fn extend(&mut self, other: PolicyErrors) {
        other.errors.into_iter().for_each(|error| self.push(error));
    }

    /// `value` when nothing was wrong.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, PolicyErrors> {
        if self.errors.is_empty() {
            return Ok(value);
        }
        self.errors.sort_by(|a, b| a.place.cmp(&b.place));
        Err(PolicyErrors { errors: self.errors })
    }

    /// How many errors are kept.
    pub(crate) const fn len(&self) -> usize {
        self.errors.len()
    }
}

/// A piece of a document, safe to repeat in a message.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", log_line(text, QUOTED_BYTES))
}

/// The hint for a word that is not among `known`: the nearest one, if it is near, and all of them.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    let all = known.clone().into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let listed = match all.split_last() {
        None => return "there is none to choose from".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) if rest.len() < 20 => format!("{} or {last}", rest.join(", ")),
        Some(_) => format!("{} and {} more", all[..20].join(", "), all.len() - 20),
    };
    let short = word.chars().take(64).collect::<String>().to_ascii_lowercase();
    let nearest = known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&short, &name.to_ascii_lowercase()), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.8);
    match nearest {
        Some((_, name)) => format!("did you mean `{name}`? It can be {listed}"),
        None => format!("it can be {listed}"),
    }
}
