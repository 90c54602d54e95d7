//! Texts that stand in thousands of records, kept once.

use std::collections::HashMap;

/// Gives equal texts the same small number. It grows with every new text: its user bounds how many there can be, and
/// [clears](Self::clear) it.
#[derive(Debug, Default)]
pub(super) struct Interner(HashMap<Box<str>, u32>);

impl Interner {
    /// The number of `text`.
    pub(super) fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.0.get(text) {
            return *number;
        }
        let number = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.insert(text.into(), number);
        number
    }

    /// Forgets all texts; their numbers mean nothing any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::Interner;

    #[test]
    fn equal_texts_and_no_others_have_the_same_number() {
        let mut interner = Interner::default();
        let numbers: Vec<u32> = ["a", "b", "a", "", "b"].map(|text| interner.number(text)).into();
        assert_eq!(numbers, [0, 1, 0, 2, 1]);
    }
}
