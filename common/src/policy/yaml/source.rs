//! A policy file's text, and places in it.

use crate::policy::error::{Place, PolicyError};

/// How far [`Source::find`] looks, in bytes: white space and quotes between two words, not the whole file each time.
const FIND_WINDOW: usize = 1024;

/// The text of a file with the starts of its lines.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a str,
    pub(super) text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        let starts =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { file, text, lines: std::iter::once(0).chain(starts).collect() }
    }

    /// The place of a byte offset; one behind the end means the end.
    pub(super) fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let column = self.text[start..offset].chars().count() + 1;
        Place { file: self.file.to_owned(), line, column }
    }

    /// An error at a byte offset.
    pub(super) fn error(
        &self,
        offset: usize,
        key: Option<&str>,
        message: String,
        hint: impl Into<String>,
    ) -> PolicyError {
        PolicyError {
            place: self.place(offset),
            key: key.map(str::to_owned),
            message,
            hint: hint.into(),
        }
    }

    /// Where `word` stands at or after `offset`; `offset` when it is written with escapes and can't be found.
    pub(super) fn find(&self, word: &str, offset: usize) -> usize {
        let mut end = (offset + FIND_WINDOW + word.len()).min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        self.text.get(offset..end).and_then(|rest| rest.find(word)).map_or(offset, |at| offset + at)
    }
}
