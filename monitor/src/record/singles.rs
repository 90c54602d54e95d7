//! Events that stand for one act each, such as detections: written one by one, until there are too many of a kind.
//!
//! A job can cause as many as it likes, and each tells something that the one before did not (a process, a time), so they
//! are no repeats of each other. From some number on they are counted, and one event tells from time to time how many
//! there were.

use std::collections::HashMap;
use std::hash::Hash;

/// How many of a kind are written one by one.
pub const MAX_SINGLES: u64 = 64;

/// What has been written of each kind, and what waits.
#[derive(Debug)]
pub struct Singles<K, E> {
    kinds: HashMap<K, Kind<E>>,
}

#[derive(Debug)]
struct Kind<E> {
    written: u64,
    waiting: Option<Waiting<E>>,
}

/// Events of one kind that were not written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting<E> {
    /// How many.
    pub count: u64,
    /// The last of them.
    pub last: E,
}

impl<K, E> Default for Singles<K, E> {
    fn default() -> Self {
        Self { kinds: HashMap::new() }
    }
}

impl<K: Eq + Hash, E> Singles<K, E> {
    /// Takes an event; it comes back when it must be written now.
    pub fn note(&mut self, kind: K, event: E) -> Option<E> {
        let kind = self.kinds.entry(kind).or_insert_with(|| Kind { written: 0, waiting: None });
        if kind.written < MAX_SINGLES {
            kind.written += 1;
            return Some(event);
        }
        let count = kind.waiting.as_ref().map_or(0, |waiting| waiting.count) + 1;
        kind.waiting = Some(Waiting { count, last: event });
        None
    }

    /// Takes out what waits.
    pub fn collect(&mut self) -> Vec<Waiting<E>> {
        self.kinds.values_mut().filter_map(|kind| kind.waiting.take()).collect()
    }

    /// Whether anything waits.
    pub fn is_waiting(&self) -> bool {
        self.kinds.values().any(|kind| kind.waiting.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_SINGLES, Singles, Waiting};

    #[test]
    fn the_first_are_written_and_the_others_are_counted() {
        let mut singles = Singles::default();
        for number in 0..MAX_SINGLES {
            assert_eq!(singles.note("a", number), Some(number));
        }
        assert!(!singles.is_waiting());
        assert_eq!(singles.note("b", 7), Some(7), "each kind has its own number");
        for number in 0..1000 {
            assert_eq!(singles.note("a", number), None);
        }
        assert!(singles.is_waiting());
        assert_eq!(singles.collect(), [Waiting { count: 1000, last: 999 }]);
        assert!(singles.collect().is_empty() && !singles.is_waiting());
        assert_eq!(singles.note("a", 1), None);
        assert_eq!(singles.collect(), [Waiting { count: 1, last: 1 }]);
    }
}
