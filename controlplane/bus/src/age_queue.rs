//! Priority queue of keys by a time that only grows, oldest first, in O(log n) amortised.
//!
//! Entries are not updated when the time of their key grows. An entry holds a lower bound; one that comes up with an
//! obsolete bound is inserted again with the current time, at most once per update of its key.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hyphae_time::Nanos;

use crate::DeliveryKey;

/// Obsolete entries allowed, beyond as many as there are keys.
const STALE_MIN: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct AgeQueue {
    heap: BinaryHeap<Reverse<(Nanos, DeliveryKey)>>,
}

impl AgeQueue {
    /// Adds a key. `live` is the number of keys; `time` returns the time of a live key.
    pub(crate) fn push(
        &mut self,
        at: Nanos,
        key: DeliveryKey,
        live: usize,
        time: impl Fn(&DeliveryKey) -> Option<Nanos>,
    ) {
        self.heap.push(Reverse((at, key)));
        if self.heap.len() > 2 * live + STALE_MIN {
            let entries = std::mem::take(&mut self.heap).into_iter();
            let entries = entries.filter_map(|Reverse((_, key))| Some((time(&key)?, key)));
            let mut entries: Vec<_> = entries.collect();
            // A key that was removed and added again is present twice.
            entries.sort_unstable_by_key(|(_, key)| *key);
            entries.dedup_by_key(|(_, key)| *key);
            self.heap = entries.into_iter().map(Reverse).collect();
        }
    }

    /// Removes the oldest key if its time is not after `until`.
    pub(crate) fn pop(
        &mut self,
        until: Nanos,
        time: impl Fn(&DeliveryKey) -> Option<Nanos>,
    ) -> Option<DeliveryKey> {
        while let Some(Reverse((at, key))) = self.heap.peek().copied()
            && at <= until
        {
            self.heap.pop();
            match time(&key) {
                Some(later) if later > at => self.heap.push(Reverse((later, key))),
                Some(_) => return Some(key),
                None => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::key_of_test;

    fn key(id: u64) -> DeliveryKey {
        key_of_test(1, id)
    }

    proptest! {
        #[test]
        fn pops_the_oldest_live_key(
            steps in prop::collection::vec((0u8..4, 0u64..60), 0..2000),
        ) {
            let (mut queue, mut oracle) = (AgeQueue::default(), BTreeMap::<u64, u64>::new());
            for (now, (what, id)) in (1..).zip(steps) {
                match what {
                    0 => {
                        oracle.insert(id, now);
                        let times = &oracle;
                        let time = |of: &DeliveryKey| {
                            times.get(&u64::from_be_bytes(of.id.0)).map(|at| Nanos(*at))
                        };
                        queue.push(Nanos(now), key(id), times.len(), time);
                        prop_assert!(queue.heap.len() <= 2 * times.len() + STALE_MIN);
                    }
                    1 => { oracle.entry(id).and_modify(|at| *at = now); }
                    2 => { oracle.remove(&id); }
                    _ => {
                        let until = now.saturating_sub(id);
                        let times = &oracle;
                        let time = |of: &DeliveryKey| {
                            times.get(&u64::from_be_bytes(of.id.0)).map(|at| Nanos(*at))
                        };
                        let found = queue.pop(Nanos(until), time);
                        let found = found.map(|of| u64::from_be_bytes(of.id.0));
                        let expected = oracle.iter().min_by_key(|(_, at)| **at);
                        let expected = expected.filter(|(_, at)| **at <= until).map(|(id, _)| *id);
                        prop_assert_eq!(found, expected);
                        found.map(|id| oracle.remove(&id));
                    }
                }
            }
        }
    }
}
