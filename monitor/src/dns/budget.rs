//! Budgets: how much a job may say to the servers of a zone through names, and how fast.

use super::config::Budgets;
use super::observer::BudgetKind;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

/// Wildcards that are counted one by one; names below further ones share a single count. Policies have fewer.
const MAXIMUM_WILDCARDS: usize = 4096;

/// A budget that a query exceeds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exceeded {
    /// Which.
    pub kind: BudgetKind,
    /// The name below which it is counted.
    pub below: Option<Arc<str>>,
    /// Whether this is the first time.
    pub first: bool,
}

/// What a job has used of its budgets.
#[derive(Debug)]
pub struct Usage {
    budgets: Budgets,
    wildcards: HashMap<Arc<str>, WildcardUsage>,
    /// Hashes distinct names with a key of its own, so that a job can't make two names look like one.
    hasher: RandomState,
    /// Queries that may be sent now, in millionths.
    tokens: u64,
    refilled: Instant,
    rate_reported: bool,
}

/// What was asked below one wildcard.
#[derive(Debug, Default)]
struct WildcardUsage {
    /// Hashes of the names asked, 8 bytes each.
    names: HashSet<u64>,
    bytes: usize,
    long_names: usize,
    reported: Vec<BudgetKind>,
}

/// One query's worth of tokens.
const QUERY: u64 = 1_000_000;

impl Usage {
    /// Nothing used yet.
    pub fn new(budgets: Budgets, now: Instant) -> Self {
        Self {
            wildcards: HashMap::new(),
            hasher: RandomState::new(),
            tokens: u64::from(budgets.upstream_query_burst) * QUERY,
            refilled: now,
            rate_reported: false,
            budgets,
        }
    }

    /// Charges a query that is about to go upstream.
    ///
    /// # Errors
    /// When there are too many; nothing is charged then.
    pub fn charge_rate(&mut self, now: Instant) -> Result<(), Exceeded> {
        self.refill(now);
        if self.tokens < QUERY {
            let first = !std::mem::replace(&mut self.rate_reported, true);
            return Err(Exceeded { kind: BudgetKind::Rate, below: None, first });
        }
        self.tokens -= QUERY;
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let micros = now.saturating_duration_since(self.refilled).as_micros();
        let earned = u64::try_from(micros)
            .unwrap_or(u64::MAX)
            .saturating_mul(self.budgets.upstream_queries_per_second.into());
        let most = u64::from(self.budgets.upstream_query_burst) * QUERY;
        self.tokens = self.tokens.saturating_add(earned).min(most);
        self.refilled = now;
    }

    /// Charges `name`, which the job chose freely below `below`. A name that was asked before costs nothing.
    ///
    /// # Errors
    /// When a budget is used up; nothing is charged then.
    pub fn charge_name(&mut self, name: &str, below: &Arc<str>) -> Result<(), Exceeded> {
        let key = if self.wildcards.len() < MAXIMUM_WILDCARDS || self.wildcards.contains_key(below)
        {
            Arc::clone(below)
        } else {
            Arc::from("")
        };
        let hash = self.hasher.hash_one(name);
        let usage = self.wildcards.entry(key).or_default();
        if usage.names.contains(&hash) {
            return Ok(());
        }
        let free = name.strip_suffix(&**below).unwrap_or(name).trim_end_matches('.');
        let is_long = free.split('.').any(|label| label.len() > self.budgets.long_label);
        let kind = if usage.names.len() >= self.budgets.names_per_wildcard {
            BudgetKind::Names
        } else if usage.bytes + free.len() > self.budgets.bytes_per_wildcard {
            BudgetKind::Bytes
        } else if is_long && usage.long_names >= self.budgets.long_names_per_wildcard {
            BudgetKind::LongLabels
        } else {
            usage.names.insert(hash);
            usage.bytes += free.len();
            usage.long_names += usize::from(is_long);
            return Ok(());
        };
        let first = !usage.reported.contains(&kind);
        if first {
            usage.reported.push(kind);
        }
        Err(Exceeded { kind, below: Some(Arc::clone(below)), first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn usage(budgets: Budgets) -> (Usage, Arc<str>, Instant) {
        let now = Instant::now();
        (Usage::new(budgets, now), Arc::from("wild.test"), now)
    }

    #[test]
    fn distinct_names_are_counted_and_repeats_are_free() {
        let (mut usage, below, _) = usage(Budgets { names_per_wildcard: 2, ..Budgets::default() });
        for name in ["a.wild.test", "b.wild.test", "a.wild.test"] {
            assert_eq!(usage.charge_name(name, &below), Ok(()));
        }
        let third = usage.charge_name("c.wild.test", &below).unwrap_err();
        assert_eq!((third.kind, third.first), (BudgetKind::Names, true));
        assert!(!usage.charge_name("d.wild.test", &below).unwrap_err().first);
        assert_eq!(usage.charge_name("b.wild.test", &below), Ok(()));
        assert_eq!(usage.charge_name("c.other.test", &Arc::from("other.test")), Ok(()));
    }

    #[test]
    fn long_labels_are_few() {
        let (mut usage, below, _) =
            usage(Budgets { long_names_per_wildcard: 1, ..Budgets::default() });
        let long = |letter: &str| format!("{}.wild.test", letter.repeat(41));
        assert_eq!(usage.charge_name(&long("a"), &below), Ok(()));
        let exceeded = usage.charge_name(&long("b"), &below).unwrap_err();
        assert_eq!(exceeded.kind, BudgetKind::LongLabels);
        let short = format!("{}.wild.test", "a".repeat(40));
        assert_eq!(usage.charge_name(&short, &below), Ok(()));
    }

    #[test]
    fn bytes_are_counted_without_the_wildcard() {
        let (mut usage, below, _) = usage(Budgets { bytes_per_wildcard: 10, ..Budgets::default() });
        assert_eq!(usage.charge_name("aa.bbbbbbb.wild.test", &below), Ok(()));
        let exceeded = usage.charge_name("c.wild.test", &below).unwrap_err();
        assert_eq!(exceeded.kind, BudgetKind::Bytes);
    }

    #[test]
    fn the_rate_recovers() {
        let budgets = Budgets {
            upstream_queries_per_second: 10,
            upstream_query_burst: 2,
            ..Budgets::default()
        };
        let (mut usage, _, now) = usage(budgets);
        assert!(usage.charge_rate(now).is_ok() && usage.charge_rate(now).is_ok());
        assert_eq!(usage.charge_rate(now).unwrap_err().kind, BudgetKind::Rate);
        let later = now + Duration::from_millis(100);
        assert!(usage.charge_rate(later).is_ok());
        assert!(usage.charge_rate(later).is_err());
    }

    /// A job that uses everything up leaves no more behind than the limits say.
    #[test]
    fn memory_is_bounded() {
        let (mut usage, below, _) = usage(Budgets {
            upstream_query_burst: u32::MAX,
            bytes_per_wildcard: usize::MAX,
            ..Budgets::default()
        });
        for number in 0..10_000 {
            let _ = usage.charge_name(&format!("{number}.wild.test"), &below);
            let _ = usage.charge_name("x", &Arc::from(format!("w{number}.test")));
        }
        assert!(usage.wildcards.len() <= MAXIMUM_WILDCARDS + 1);
        assert!(usage.wildcards.values().all(|usage| usage.names.len() <= 512));
    }
}
