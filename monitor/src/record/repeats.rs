//! Repeats of the same call or query are counted, not written again.
//!
//! The first of its kind is an event at once; the ones after it wait here and become one event with their number when
//! they are collected. Nothing is lost by that: an event's `packets` or `count` says how many it stands for.

use std::collections::HashMap;
use std::hash::Hash;

/// How many different calls are remembered. Beyond that the oldest knowledge is given up, and a repeat is written again.
pub const MAX_KEYS: usize = 8_192;

/// What has been seen, and how often since it was last written.
#[derive(Debug)]
pub struct Repeats<K, E> {
    seen: HashMap<K, Waiting<E>>,
    max_keys: usize,
}

#[derive(Debug)]
struct Waiting<E> {
    event: E,
    count: u64,
}

impl<K: Eq + Hash, E: Clone> Repeats<K, E> {
    /// An empty memory for at most `max_keys` different calls.
    pub fn new(max_keys: usize) -> Self {
        Self { seen: HashMap::new(), max_keys }
    }

    /// Counts `count` more of `key`. The event comes back when it is the first of its kind and must be written now.
    ///
    /// When the memory is full everything that waits is handed to `overflow` first, with its number.
    pub fn note(
        &mut self,
        key: K,
        event: E,
        count: u64,
        mut overflow: impl FnMut(E, u64),
    ) -> Option<E> {
        if let Some(waiting) = self.seen.get_mut(&key) {
            waiting.count += count;
            return None;
        }
        if self.seen.len() >= self.max_keys {
            self.collect(&mut overflow);
            self.seen.clear();
        }
        self.seen.insert(key, Waiting { event: event.clone(), count: 0 });
        Some(event)
    }

    /// Hands everything that waits to `write`, with its number.
    pub fn collect(&mut self, mut write: impl FnMut(E, u64)) {
        for waiting in self.seen.values_mut().filter(|waiting| waiting.count > 0) {
            write(waiting.event.clone(), waiting.count);
            waiting.count = 0;
        }
    }

    /// Whether anything waits.
    pub fn is_waiting(&self) -> bool {
        self.seen.values().any(|waiting| waiting.count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::Repeats;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_call_is_written_exactly_once(
            calls in prop::collection::vec((0_u8..20, 1_u64..5), 0..200),
            max_keys in 1_usize..12,
        ) {
            let mut repeats = Repeats::new(max_keys);
            let mut written = std::collections::BTreeMap::<u8, u64>::new();
            for (key, count) in &calls {
                let mut late = Vec::new();
                if let Some(event) = repeats.note(*key, *key, *count, |event, count| late.push((event, count))) {
                    late.push((event, *count));
                }
                for (event, count) in late {
                    *written.entry(event).or_default() += count;
                }
            }
            repeats.collect(|event, count| *written.entry(event).or_default() += count);
            let mut expected = std::collections::BTreeMap::<u8, u64>::new();
            for (key, count) in calls {
                *expected.entry(key).or_default() += count;
            }
            prop_assert_eq!(written, expected);
            prop_assert!(!repeats.is_waiting());
        }
    }
}
