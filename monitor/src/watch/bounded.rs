//! A cache that can't grow: what a job does must not cost the monitor unbounded memory.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// A map of at most `2 × generation` entries. Entries that were not used while a whole generation of others came are
/// forgotten: nearly least-recently-used order at the price of a plain map.
#[derive(Debug)]
pub(crate) struct BoundedCache<K, V> {
    /// How many entries make a generation.
    generation: usize,
    /// Entries inserted or used lately.
    young: HashMap<K, V>,
    /// The generation before.
    old: HashMap<K, V>,
}

impl<K: Eq + Hash, V> BoundedCache<K, V> {
    /// A cache of at most `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { generation: (capacity / 2).max(1), young: HashMap::new(), old: HashMap::new() }
    }

    /// Inserts or replaces an entry.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.generation && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Looks an entry up and keeps it young.
    pub(crate) fn get<Q>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if !self.young.contains_key(key)
            && let Some((key, value)) = self.old.remove_entry(key)
        {
            self.insert(key, value);
        }
        self.young.get(key)
    }

    /// Looks an entry up and leaves it as old as it is.
    pub(crate) fn peek<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// How many entries there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keeps_what_is_used() {
        let mut cache = BoundedCache::new(4);
        cache.insert(0, "kept");
        for key in 1..100 {
            cache.insert(key, "passing");
            assert_eq!(cache.get(&0), Some(&"kept"));
        }
        assert_eq!(cache.get(&1), None);
    }

    proptest! {
        #[test]
        fn never_grows_and_never_lies(capacity in 2_usize..20, keys in prop::collection::vec((0_u8..40, any::<u16>()), 0..200)) {
            let mut cache = BoundedCache::new(capacity);
            let mut truth = HashMap::new();
            for (key, value) in keys {
                cache.insert(key, value);
                truth.insert(key, value);
                prop_assert!(cache.len() <= capacity);
                prop_assert_eq!(cache.get(&key), Some(&value));
            }
            for (key, value) in &truth {
                if let Some(found) = cache.get(key) {
                    prop_assert_eq!(found, value);
                }
            }
        }
    }
}
