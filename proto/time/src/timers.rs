//! Deadlines by key, ordered by time: the base of `poll_timeout` in every sans-I/O engine.
//!
//! A heap with lazy deletion. The table holds the current deadline of each key; heap entries that differ from it are
//! stale. They are skipped at the top and removed when they outnumber the current ones, so changing a deadline, the
//! most frequent operation, costs one push.
//!
//! Invariant: the top of the heap is current.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

use ahash::RandomState;

use crate::Nanos;

/// Stale entries that the heap may hold in addition to one per current entry.
const STALE_MIN: usize = 64;

/// One deadline per key; [`Nanos::NEVER`] is none.
///
/// ```
/// use hyphae_time::{Nanos, Timers};
///
/// let mut timers = Timers::new();
/// timers.set("keepalive", Nanos(20));
/// timers.set("rekey", Nanos(30));
/// timers.set("keepalive", Nanos(10));
/// assert_eq!(timers.next(), Some(Nanos(10)));
/// assert_eq!(timers.take_due(Nanos(10)), ["keepalive"]);
/// timers.set("rekey", Nanos::NEVER);
/// assert_eq!(timers.next(), None);
/// ```
#[derive(Debug)]
pub struct Timers<K> {
    by_key: HashMap<K, Nanos, RandomState>,
    by_time: BinaryHeap<Reverse<(Nanos, K)>>,
}

impl<K: Ord + Hash + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Hash + Copy> Timers<K> {
    /// No deadlines.
    pub fn new() -> Self {
        Self {
            by_key: HashMap::default(),
            by_time: BinaryHeap::new(),
        }
    }

    /// Sets or, with [`Nanos::NEVER`], removes the deadline of a key.
    pub fn set(&mut self, key: K, at: Nanos) {
        let before = if at == Nanos::NEVER {
            self.by_key.remove(&key)
        } else {
            self.by_key.insert(key, at)
        };
        if before == Some(at) {
            return;
        }
        if at != Nanos::NEVER {
            self.by_time.push(Reverse((at, key)));
        }
        if self.by_time.len() > 2 * self.by_key.len() + STALE_MIN {
            let mut entries = std::mem::take(&mut self.by_time).into_vec();
            entries.retain(|Reverse((at, key))| self.by_key.get(key) == Some(at));
            // A deadline that was changed and changed again has two equal entries.
            entries.sort_unstable();
            entries.dedup();
            self.by_time = entries.into();
        }
        self.pop_stale();
    }

    /// Pops stale entries: restores the invariant.
    fn pop_stale(&mut self) {
        while let Some(Reverse((at, key))) = self.by_time.peek()
            && self.by_key.get(key) != Some(at)
        {
            self.by_time.pop();
        }
    }

    /// The deadline of a key.
    pub fn get(&self, key: &K) -> Option<Nanos> {
        self.by_key.get(key).copied()
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Nanos> {
        self.first().map(|(at, _)| at)
    }

    /// The earliest deadline and its key.
    pub fn first(&self) -> Option<(Nanos, K)> {
        self.by_time.peek().map(|Reverse(first)| *first)
    }

    /// Removes the keys that are due at `now`. Each key is returned at most once, so a deadline that its owner sets to
    /// the past again does not loop.
    pub fn take_due(&mut self, now: Nanos) -> Vec<K> {
        let mut due = Vec::new();
        while let Some((at, key)) = self.first()
            && at <= now
        {
            self.set(key, Nanos::NEVER);
            due.push(key);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn due_keys_equal_those_of_a_plain_table(
            steps in prop::collection::vec((0u8..20, prop::option::of(0u64..1000), any::<bool>()), 0..600),
        ) {
            let (mut timers, mut oracle) = (Timers::new(), BTreeMap::new());
            for (key, at, take) in steps {
                let at = at.map_or(Nanos::NEVER, Nanos);
                timers.set(key, at);
                if at == Nanos::NEVER {
                    oracle.remove(&key);
                } else {
                    oracle.insert(key, at);
                }
                let order = |oracle: &BTreeMap<u8, Nanos>| {
                    let mut order: Vec<_> = oracle.iter().map(|(key, at)| (*at, *key)).collect();
                    order.sort_unstable();
                    order
                };
                prop_assert_eq!(timers.first(), order(&oracle).first().copied());
                prop_assert_eq!(timers.get(&key), oracle.get(&key).copied());
                if take {
                    let now = Nanos(500);
                    let due: Vec<u8> = order(&oracle).iter().filter(|(at, _)| *at <= now).map(|(_, n)| *n).collect();
                    oracle.retain(|_, at| *at > now);
                    prop_assert_eq!(timers.take_due(now), due);
                }
                prop_assert!(timers.by_time.len() <= 2 * timers.by_key.len() + STALE_MIN);
            }
        }
    }

    #[test]
    fn changing_a_deadline_repeatedly_does_not_grow_the_heap() {
        let mut timers = Timers::new();
        for key in 0..100u32 {
            for at in 0..100 {
                timers.set(key, Nanos(1000));
                timers.set(key, Nanos(at));
            }
            timers.set(key, Nanos(1000));
            assert!(timers.by_time.len() <= 2 * timers.by_key.len() + STALE_MIN);
        }
        assert_eq!(timers.take_due(Nanos(1000)).len(), 100);
    }
}
