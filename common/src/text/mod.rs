//! Making hostile text safe to show: in a job's log, in GitHub workflow commands, in Markdown.
//!
//! What a job can influence (names, command lines, paths, workflow names) must not forge lines, commands, colours,
//! table cells, links or mentions. Every function here returns one line, bounded in bytes, cut with `…`. Characters that
//! would act instead of being read are shown by their escape: `\n`, `\x1b`, `\u{202e}`.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

/// What ends a text that was cut.
const CUT: &str = "…";

/// One line for a log that the runner reads: control, bidirectional and invisible characters are shown by their
/// escapes, and nothing in it is taken for a workflow command (`::name::` at the start of a line, `##[name]` anywhere).
/// At most `max_bytes` long.
pub fn log_line(text: &str, max_bytes: usize) -> String {
    let mut seen = Seen::default();
    bounded(text, max_bytes, |out, character| {
        match character {
            ':' if seen.only_white_space => out.push_str("\\x3a"),
            '[' if seen.hashes >= 2 => out.push_str("\\x5b"),
            other => visible(out, other),
        }
        seen.note(character);
    })
}

/// The message of a workflow command, behind `::error::`: line breaks arrive as line breaks, nothing else acts.
/// At most `max_bytes` long.
pub fn workflow_command_data(text: &str, max_bytes: usize) -> String {
    bounded(text, max_bytes, command_character)
}

/// A property of a workflow command, as in `::error title=…::`. At most `max_bytes` long.
pub fn workflow_command_property(text: &str, max_bytes: usize) -> String {
    bounded(text, max_bytes, |out, character| match character {
        ':' => out.push_str("%3A"),
        ',' => out.push_str("%2C"),
        other => command_character(out, other),
    })
}

/// Inline code for Markdown, also inside a table cell: no HTML, link, mention, reference or emphasis comes to life there.
/// Backticks and pipes are shown as `\x60` and `\x7c`; empty text becomes `-`. At most `max_bytes` long.
pub fn markdown_code(text: &str, max_bytes: usize) -> String {
    if text.trim().is_empty() {
        return "`-`".to_owned();
    }
    let inner = bounded(text, max_bytes.saturating_sub(2), |out, character| match character {
        '`' => out.push_str("\\x60"),
        '|' => out.push_str("\\x7c"),
        other => visible(out, other),
    });
    format!("`{inner}`")
}

/// One line for people: control, bidirectional and invisible characters are shown by their escapes. What markup the text is
/// put into has to be escaped by its own rules. At most `max_bytes` long.
pub fn shown(text: &str, max_bytes: usize) -> String {
    bounded(text, max_bytes, visible)
}

/// Running text for Markdown, also inside a table cell: markup is shown as it is written, and nothing becomes a link, a
/// mention or a reference to an issue. At most `max_bytes` long.
pub fn markdown_text(text: &str, max_bytes: usize) -> String {
    bounded(text, max_bytes, |out, character| match character {
        // A zero-width space behind these keeps `@team`, `#1`, `https://…` and `www.…` from becoming links.
        '@' | '#' | ':' | '.' => {
            let _ = write!(out, "&#{};&#8203;", u32::from(character));
        }
        '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '<' | '>' | '+' | '-'
        | '!' | '|' | '~' | '&' | '"' | '$' | '=' => {
            let _ = write!(out, "&#{};", u32::from(character));
        }
        other => visible(out, other),
    })
}

/// What came before, as far as the runner's parser of commands cares.
struct Seen {
    only_white_space: bool,
    hashes: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self { only_white_space: true, hashes: 0 }
    }
}

impl Seen {
    fn note(&mut self, character: char) {
        self.only_white_space &= character.is_whitespace();
        self.hashes = if character == '#' { self.hashes + 1 } else { 0 };
    }
}

/// A character of a workflow command's message, by the runner's own escapes.
fn command_character(out: &mut String, character: char) {
    match character {
        '%' => out.push_str("%25"),
        '\r' => out.push_str("%0D"),
        '\n' => out.push_str("%0A"),
        other => visible(out, other),
    }
}

/// The character itself, or its escape when it would act instead of being read.
fn visible(out: &mut String, character: char) {
    match character {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        control if control.is_control() => {
            let _ = write!(out, "\\x{:02x}", u32::from(control));
        }
        hidden if is_hidden(hidden) => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(hidden));
        }
        plain => out.push(plain),
    }
}

/// Characters that are invisible or change the direction or the lines of text (Unicode general categories Cf, Zl, Zp, and
/// the fillers and variation selectors that render as nothing). U+FE0F stays: it only selects the emoji form.
const fn is_hidden(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{115f}' | '\u{1160}'
        | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0e}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes character by character and never cuts inside an escape; the result has at most `max_bytes` bytes.
fn bounded(text: &str, max_bytes: usize, mut escape: impl FnMut(&mut String, char)) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    // The last length at which the text can be cut and still be marked as cut.
    let mut cut_at = None;
    for character in text.chars() {
        if out.len() + CUT.len() <= max_bytes {
            cut_at = Some(out.len());
        }
        escape(&mut out, character);
        if out.len() > max_bytes {
            out.truncate(cut_at.unwrap_or(0));
            if cut_at.is_some() {
                out.push_str(CUT);
            }
            break;
        }
    }
    out
}
