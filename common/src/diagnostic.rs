//! How an error is told to a person: what happened, and what to do next.

use std::fmt;

/// An error for a person. Its text is `error: …`, a blank line, `hint: …`; the message is one line and safe to print.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnostic {
    /// What happened and where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Makes a diagnostic with a remedy.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(formatter, "\n\nhint: {hint}"),
            None => Ok(()),
        }
    }
}
