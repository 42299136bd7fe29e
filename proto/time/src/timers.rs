//! Deadlines by name, in order of time: what every sans-I/O engine keeps for its `poll_timeout`.
//!
//! A heap of all that was set, and a table that says what still holds. What does not is passed over
//! when its turn comes, and thrown out when there is more of it than of the rest: changing a
//! deadline, which is what mostly happens to one, costs a push.
//!
//! Invariant: the top of the heap holds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

use ahash::RandomState;

use crate::Nanos;

/// Entries of the heap that may not hold, beside as many as hold.
const STALE_MIN: usize = 64;

/// One deadline per name; [`Nanos::NEVER`] is none.
#[derive(Debug)]
pub struct Timers<K> {
    by_name: HashMap<K, Nanos, RandomState>,
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
            by_name: HashMap::default(),
            by_time: BinaryHeap::new(),
        }
    }

    /// Sets the deadline of a name, or takes it away.
    pub fn set(&mut self, name: K, at: Nanos) {
        let before = if at == Nanos::NEVER {
            self.by_name.remove(&name)
        } else {
            self.by_name.insert(name, at)
        };
        if before == Some(at) {
            return;
        }
        if at != Nanos::NEVER {
            self.by_time.push(Reverse((at, name)));
        }
        if self.by_time.len() > 2 * self.by_name.len() + STALE_MIN {
            let mut entries = std::mem::take(&mut self.by_time).into_vec();
            entries.retain(|Reverse((at, name))| self.by_name.get(name) == Some(at));
            // A deadline that is set again after another one was set has two entries that hold.
            entries.sort_unstable();
            entries.dedup();
            self.by_time = entries.into();
        }
        self.pass_over();
    }

    /// Makes the invariant true.
    fn pass_over(&mut self) {
        while let Some(Reverse((at, name))) = self.by_time.peek()
            && self.by_name.get(name) != Some(at)
        {
            self.by_time.pop();
        }
    }

    /// The deadline of a name.
    pub fn get(&self, name: &K) -> Option<Nanos> {
        self.by_name.get(name).copied()
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Nanos> {
        self.first().map(|(at, _)| at)
    }

    /// The earliest deadline and its name.
    pub fn first(&self) -> Option<(Nanos, K)> {
        self.by_time.peek().map(|Reverse(first)| *first)
    }

    /// Takes what is due at `now`: each name at most once, so a deadline that its owner sets to the
    /// past cannot hold the caller.
    pub fn take_due(&mut self, now: Nanos) -> Vec<K> {
        let mut due = Vec::new();
        while let Some((at, name)) = self.first()
            && at <= now
        {
            self.set(name, Nanos::NEVER);
            due.push(name);
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
        fn what_is_due_is_what_a_plain_table_says(
            steps in prop::collection::vec((0u8..20, prop::option::of(0u64..1000), any::<bool>()), 0..600),
        ) {
            let (mut timers, mut oracle) = (Timers::new(), BTreeMap::new());
            for (name, at, take) in steps {
                let at = at.map_or(Nanos::NEVER, Nanos);
                timers.set(name, at);
                if at == Nanos::NEVER {
                    oracle.remove(&name);
                } else {
                    oracle.insert(name, at);
                }
                let order = |oracle: &BTreeMap<u8, Nanos>| {
                    let mut order: Vec<_> = oracle.iter().map(|(name, at)| (*at, *name)).collect();
                    order.sort_unstable();
                    order
                };
                prop_assert_eq!(timers.first(), order(&oracle).first().copied());
                prop_assert_eq!(timers.get(&name), oracle.get(&name).copied());
                if take {
                    let now = Nanos(500);
                    let due: Vec<u8> = order(&oracle).iter().filter(|(at, _)| *at <= now).map(|(_, n)| *n).collect();
                    oracle.retain(|_, at| *at > now);
                    prop_assert_eq!(timers.take_due(now), due);
                }
                prop_assert!(timers.by_time.len() <= 2 * timers.by_name.len() + STALE_MIN);
            }
        }
    }

    #[test]
    fn a_deadline_that_is_set_again_and_again_takes_no_room() {
        let mut timers = Timers::new();
        for name in 0..100u32 {
            for at in 0..100 {
                timers.set(name, Nanos(1000));
                timers.set(name, Nanos(at));
            }
            timers.set(name, Nanos(1000));
            assert!(timers.by_time.len() <= 2 * timers.by_name.len() + STALE_MIN);
        }
        assert_eq!(timers.take_due(Nanos(1000)).len(), 100);
    }
}
