//! What a step writes: masked, shown, searched for workflow commands.

use super::Worker;
use crate::job::Annotation;
use crate::stand_in::commands::{self, Line};
use crate::stand_in::message::Progress;
use anyhow::Result;

/// The longest log of a step that is kept, in bytes; what comes after is counted.
const MAX_LOG: usize = 8 * 1024 * 1024;

/// The log of one step.
#[derive(Debug, Default)]
pub(super) struct Log {
    text: String,
    cut_lines: u64,
    /// The token of `::stop-commands::`, while commands are stopped.
    resume: Option<String>,
}

impl Log {
    pub(super) fn finish(mut self) -> String {
        if self.cut_lines > 0 {
            let number = self.cut_lines.to_string();
            self.text.extend(["... and ", &number, " more lines\n"]);
        }
        self.text
    }
}

impl Worker {
    /// Takes a line of a step's output.
    pub(super) fn take_line(&mut self, log: &mut Log, line: &str) -> Result<()> {
        if log.resume.as_deref().is_some_and(|token| line.trim() == format!("::{token}::")) {
            log.resume = None;
            return Ok(());
        }
        match commands::understand(line, log.resume.as_deref()) {
            Line::Text(text) => self.show(log, &text),
            Line::Annotation { level, message } => self.annotate(log, &level, &message),
            Line::Mask(value) => {
                if !value.is_empty() {
                    self.masks.push(value);
                }
                Ok(())
            }
            Line::StopCommands(token) => {
                log.resume = Some(token);
                Ok(())
            }
            Line::Hidden => Ok(()),
        }
    }

    /// Adds an annotation, and a line that shows it.
    pub(super) fn annotate(&mut self, log: &mut Log, level: &str, message: &str) -> Result<()> {
        let message = self.masked(message);
        self.show(log, &format!("##[{level}]{message}"))?;
        self.annotations.push(Annotation { level: level.to_owned(), message });
        Ok(())
    }

    pub(super) fn masked(&self, text: &str) -> String {
        self.masks.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    pub(super) fn show(&mut self, log: &mut Log, line: &str) -> Result<()> {
        let line = self.masked(line);
        if log.text.len() + line.len() > MAX_LOG {
            log.cut_lines += 1;
            return Ok(());
        }
        log.text.push_str(&line);
        log.text.push('\n');
        self.tell(&Progress::Line { text: line })
    }
}
