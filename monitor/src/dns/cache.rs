//! What upstreams answered, for as long as it may be used.

use super::config::CacheLimits;
use super::message::Body;
use super::observer::DnsOutcome;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a map entry costs beside what it points to: key, value, hash slot, place in the queue.
const ENTRY_OVERHEAD: usize = 256;

/// A remembered answer.
#[derive(Clone, Debug)]
pub struct CachedAnswer {
    /// The answer.
    pub body: Arc<Body>,
    /// What to record for those that it is given to.
    pub outcome: Arc<DnsOutcome>,
    /// When it was stored and when it expires, in milliseconds since the cache was made: there are thousands of answers, and
    /// an [`Instant`] takes twice as much.
    stored: u64,
    expires: u64,
    generation: u32,
    size: u32,
}

/// The cache: bounded in entries and bytes; the oldest answers go first.
///
/// An entry never outlives the grants that were opened with it: those live for at least its lifetime and the grace period.
#[derive(Debug)]
pub struct Cache {
    limits: CacheLimits,
    entries: HashMap<Arc<[u8]>, CachedAnswer>,
    /// Keys in the order of their insertion; one whose generation is not the entry's is of an entry that was replaced.
    queue: VecDeque<(Arc<[u8]>, u32)>,
    generation: u32,
    bytes: usize,
    /// What times are counted from.
    epoch: Instant,
}

impl Cache {
    /// An empty cache.
    pub fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            queue: VecDeque::new(),
            generation: 0,
            bytes: 0,
            epoch: Instant::now(),
        }
    }

    /// The answer to `key`, when there is one that is still good at `now`, and the whole seconds since it was stored, to take
    /// off its TTLs.
    pub fn get(&self, key: &[u8], now: Instant) -> Option<(&CachedAnswer, u32)> {
        let now = self.milliseconds(now);
        let entry = self.entries.get(key).filter(|entry| now < entry.expires)?;
        let age = u32::try_from(now.saturating_sub(entry.stored) / 1000).unwrap_or(u32::MAX);
        Some((entry, age))
    }

    fn milliseconds(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.epoch).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    /// Remembers an answer for `lifetime`. Answers that don't fit, and those with no lifetime, are left out.
    pub fn insert(
        &mut self,
        key: &[u8],
        body: Arc<Body>,
        outcome: Arc<DnsOutcome>,
        lifetime: Duration,
        now: Instant,
    ) {
        let size = ENTRY_OVERHEAD
            + 2 * key.len()
            + body.heap_size()
            + outcome.name.len()
            + outcome.cname_chain.iter().map(|name| name.len() + 24).sum::<usize>()
            + (outcome.granted.len() + outcome.answered.len()) * size_of::<std::net::IpAddr>();
        if lifetime.is_zero() || size > self.limits.bytes || self.limits.entries == 0 {
            return;
        }
        self.remove(key);
        while self.entries.len() >= self.limits.entries || self.bytes + size > self.limits.bytes {
            let Some((oldest, generation)) = self.queue.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.generation == generation) {
                self.remove(&oldest);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let key: Arc<[u8]> = key.into();
        self.queue.push_back((Arc::clone(&key), generation));
        let (stored, expires) = (self.milliseconds(now), self.milliseconds(now + lifetime));
        let entry = CachedAnswer {
            body,
            outcome,
            stored,
            expires,
            generation,
            size: u32::try_from(size).unwrap_or(u32::MAX),
        };
        self.bytes += size;
        self.entries.insert(key, entry);
        self.trim_queue();
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= usize::try_from(entry.size).unwrap_or(usize::MAX);
        }
    }

    /// Keeps the queue from growing with entries that are replaced again and again.
    fn trim_queue(&mut self) {
        if self.queue.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.queue.retain(|(key, generation)| {
                entries.get(key).is_some_and(|entry| entry.generation == *generation)
            });
        }
    }

    /// Answers kept, expired ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes in use, as estimated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::ResponseCode;
    use super::super::observer::Reason;
    use super::*;
    use portcullis_common::event::Verdict;

    fn outcome(name: &str) -> Arc<DnsOutcome> {
        Arc::new(DnsOutcome {
            verdict: Verdict::Allowed,
            name: name.into(),
            query_type: "A".into(),
            granted: Arc::default(),
            answered: Arc::default(),
            cname_chain: Vec::new(),
            reason: Reason::Local,
            response_code: "NOERROR",
        })
    }

    fn insert(cache: &mut Cache, key: &str, seconds: u64, now: Instant) {
        let body = Arc::new(Body::empty(ResponseCode::NoError, None));
        let lifetime = Duration::from_secs(seconds);
        cache.insert(key.as_bytes(), body, outcome(key), lifetime, now);
    }

    #[test]
    fn an_answer_is_good_until_its_lifetime_is_over() {
        let mut cache = Cache::new(CacheLimits::default());
        let now = Instant::now();
        insert(&mut cache, "a", 10, now);
        insert(&mut cache, "never", 0, now);
        let later = now + Duration::from_millis(9_999);
        assert_eq!(cache.get(b"a", later).map(|(_, age)| age), Some(9));
        assert!(cache.get(b"a", now + Duration::from_secs(10)).is_none());
        assert!(cache.get(b"never", now).is_none());
    }

    #[test]
    fn the_oldest_goes_first_and_bounds_hold() {
        let limits = CacheLimits { entries: 3, bytes: 10_000 };
        let mut cache = Cache::new(limits);
        let now = Instant::now();
        for key in ["a", "b", "c"] {
            insert(&mut cache, key, 10, now);
        }
        insert(&mut cache, "a", 10, now);
        insert(&mut cache, "d", 10, now);
        assert!(cache.get(b"b", now).is_none());
        assert!(["a", "c", "d"].iter().all(|key| cache.get(key.as_bytes(), now).is_some()));
        let mut small = Cache::new(CacheLimits { entries: 1000, bytes: 1000 });
        for number in 0..100 {
            insert(&mut small, &format!("name{number}"), 10, now);
            assert!(small.bytes() <= 1000);
        }
        assert!(!small.is_empty() && small.len() < 5);
    }

    #[test]
    fn replacing_one_answer_for_ever_does_not_grow() {
        let mut cache = Cache::new(CacheLimits::default());
        let now = Instant::now();
        for _ in 0..10_000 {
            insert(&mut cache, "a", 10, now);
        }
        assert_eq!(cache.len(), 1);
        assert!(cache.queue.len() <= 70);
    }
}
