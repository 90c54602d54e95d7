//! Repeats of the same call or query are counted, not written again.
//!
//! The first of its kind is an event at once; the ones after it wait here and become one event with their number when
//! they are collected. Nothing is lost by that: an event's `packets` or `count` says how many it stands for.

use std::collections::HashMap;
use std::hash::Hash;

/// How many different calls are remembered: as many as a hash table of 4 096 places takes. Beyond that the knowledge so far
/// is given up, and a repeat is written again.
pub const MAX_KEYS: usize = 3_584;

/// What has been seen, and how often since it was last written. Of a call that was not repeated only the key is kept, for
/// its event is written already.
#[derive(Debug)]
pub struct Repeats<K, E> {
    seen: HashMap<K, Option<Box<Waiting<E>>>>,
    max_keys: usize,
}

#[derive(Debug)]
struct Waiting<E> {
    event: E,
    count: u64,
}

/// What a call was to the memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Noted {
    /// The first of its kind: it must be written now.
    First,
    /// It is counted, and written later.
    Repeat,
    /// The memory is full of other calls. It was not taken: [`Repeats::empty`] makes room.
    Full,
}

impl<K: Eq + Hash, E> Repeats<K, E> {
    /// An empty memory for at most `max_keys` different calls.
    pub fn new(max_keys: usize) -> Self {
        Self { seen: HashMap::new(), max_keys }
    }

    /// Notes `count` more of `key`; `event` is called for the first repeat, and is what stands for all of them.
    pub fn note(&mut self, key: K, count: u64, event: impl FnOnce() -> E) -> Noted {
        if let Some(waiting) = self.seen.get_mut(&key) {
            waiting.get_or_insert_with(|| Box::new(Waiting { event: event(), count: 0 })).count +=
                count;
            return Noted::Repeat;
        }
        if self.seen.len() >= self.max_keys {
            return Noted::Full;
        }
        self.seen.insert(key, None);
        Noted::First
    }

    /// Takes everything that waits, with its number.
    pub fn take(&mut self) -> Vec<(E, u64)> {
        let waiting = self.seen.values_mut().filter_map(Option::take);
        waiting.map(|waiting| (waiting.event, waiting.count)).collect()
    }

    /// Takes everything that waits and forgets all calls.
    pub fn empty(&mut self) -> Vec<(E, u64)> {
        let waiting = self.take();
        self.seen.clear();
        waiting
    }

    /// Whether anything waits.
    pub fn is_waiting(&self) -> bool {
        self.seen.values().any(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::{Noted, Repeats};
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
                let mut events = Vec::new();
                let mut noted = repeats.note(*key, *count, || *key);
                if noted == Noted::Full {
                    events = repeats.empty();
                    noted = repeats.note(*key, *count, || *key);
                }
                prop_assert_ne!(noted, Noted::Full);
                if noted == Noted::First {
                    events.push((*key, *count));
                }
                for (event, count) in events {
                    *written.entry(event).or_default() += count;
                }
            }
            for (event, count) in repeats.take() {
                *written.entry(event).or_default() += count;
            }
            let mut expected = std::collections::BTreeMap::<u8, u64>::new();
            for (key, count) in calls {
                *expected.entry(key).or_default() += count;
            }
            prop_assert_eq!(written, expected);
            prop_assert!(!repeats.is_waiting());
        }
    }
}
