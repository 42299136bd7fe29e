//! Keys by a time that only grows, the oldest first, in O(log n).
//!
//! The time of a key is not followed: an entry holds a lower bound, and one that is found to be too low goes back
//! with the time of now. Each such step follows something that made the key younger, so what a caller pays is
//! amortised over the packets that came.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hyphae_time::Nanos;

use crate::DeliveryKey;

/// Entries that do not hold any more, beside as many as do.
const STALE_MIN: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Oldest {
    heap: BinaryHeap<Reverse<(Nanos, DeliveryKey)>>,
}

impl Oldest {
    /// Adds a key. `live` is how many hold, and `time` tells the time of one that does.
    pub(crate) fn push(
        &mut self,
        at: Nanos,
        key: DeliveryKey,
        live: usize,
        time: impl Fn(&DeliveryKey) -> Option<Nanos>,
    ) {
        self.heap.push(Reverse((at, key)));
        if self.heap.len() > 2 * live + STALE_MIN {
            let held = std::mem::take(&mut self.heap).into_iter();
            let held = held.filter_map(|Reverse((_, key))| Some((time(&key)?, key)));
            let mut held: Vec<_> = held.collect();
            // One that was dropped and began again is in here twice.
            held.sort_unstable_by_key(|(_, key)| *key);
            held.dedup_by_key(|(_, key)| *key);
            self.heap = held.into_iter().map(Reverse).collect();
        }
    }

    /// Takes the oldest key if its time is not after `until`.
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

    use hyphae_wire::PublicKey;
    use proptest::prelude::*;

    use super::*;
    use crate::MessageId;

    fn key(id: u64) -> DeliveryKey {
        DeliveryKey {
            peer: PublicKey([1; 32]),
            id: MessageId(id.to_be_bytes()),
            reply: false,
        }
    }

    proptest! {
        #[test]
        fn the_oldest_that_holds_comes_first(
            steps in prop::collection::vec((0u8..4, 0u64..60), 0..2000),
        ) {
            let (mut oldest, mut oracle) = (Oldest::default(), BTreeMap::<u64, u64>::new());
            for (now, (what, id)) in (1..).zip(steps) {
                match what {
                    0 => {
                        oracle.insert(id, now);
                        let times = &oracle;
                        let time = |of: &DeliveryKey| {
                            times.get(&u64::from_be_bytes(of.id.0)).map(|at| Nanos(*at))
                        };
                        oldest.push(Nanos(now), key(id), times.len(), time);
                        prop_assert!(oldest.heap.len() <= 2 * times.len() + STALE_MIN);
                    }
                    1 => { oracle.entry(id).and_modify(|at| *at = now); }
                    2 => { oracle.remove(&id); }
                    _ => {
                        let until = now.saturating_sub(id);
                        let times = &oracle;
                        let time = |of: &DeliveryKey| {
                            times.get(&u64::from_be_bytes(of.id.0)).map(|at| Nanos(*at))
                        };
                        let found = oldest.pop(Nanos(until), time);
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
