//! Virtual time: the event queue, and the clocks of nodes, which differ.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use hyphae_time::Nanos;

/// Events in order of time; equal times in order of insertion.
#[derive(Debug)]
pub struct EventQueue<T> {
    heap: BinaryHeap<Reverse<Due<T>>>,
    inserted: u64,
}

#[derive(Debug)]
struct Due<T> {
    at: Nanos,
    order: u64,
    what: T,
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl<T> Default for EventQueue<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            inserted: 0,
        }
    }
}

impl<T> EventQueue<T> {
    /// Schedules an event.
    pub fn add(&mut self, at: Nanos, what: T) {
        self.inserted += 1;
        self.heap.push(Reverse(Due {
            at,
            order: self.inserted,
            what,
        }));
    }

    /// Removes the first event at or before `until`.
    pub fn next(&mut self, until: Nanos) -> Option<(Nanos, T)> {
        self.heap.peek().filter(|first| first.0.at <= until)?;
        self.heap.pop().map(|first| (first.0.at, first.0.what))
    }
}

/// A node's clock, with an offset and a skew.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Reading at virtual time 0.
    pub offset: Duration,
    /// Skew in millionths; negative for a slow clock.
    pub skew_ppm: i32,
}

impl Clock {
    /// Reading at a virtual time.
    pub fn local(&self, world: Nanos) -> Nanos {
        let offset = u64::try_from(self.offset.as_nanos()).unwrap_or(u64::MAX);
        let drift = i128::from(world.0) * i128::from(self.skew_ppm) / 1_000_000;
        let shown = i128::from(offset) + i128::from(world.0) + drift;
        Nanos(u64::try_from(shown.max(0)).unwrap_or(u64::MAX))
    }

    /// The first virtual time at which the clock shows `local` or later.
    pub fn world(&self, local: Nanos) -> Nanos {
        if local == Nanos::NEVER {
            return Nanos::NEVER;
        }
        let offset = i128::try_from(self.offset.as_nanos()).unwrap_or(i128::MAX);
        let elapsed = (i128::from(local.0) - offset).max(0);
        let world = elapsed * 1_000_000 / (1_000_000 + i128::from(self.skew_ppm));
        let mut world = Nanos(u64::try_from(world).unwrap_or(u64::MAX));
        // The two divisions round differently.
        while world.0 > 0 && self.local(Nanos(world.0 - 1)) >= local {
            world.0 -= 1;
        }
        while self.local(world) < local {
            world.0 += 1;
        }
        world
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_in_order_of_time_then_of_insertion() {
        let mut queue = EventQueue::default();
        for (at, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b'), (9, 'e')] {
            queue.add(Nanos(at), what);
        }
        let until = |queue: &mut EventQueue<char>, t| {
            std::iter::from_fn(|| queue.next(Nanos(t)).map(|(_, what)| what)).collect::<String>()
        };
        assert_eq!(until(&mut queue, 8), "abcd");
        assert_eq!(until(&mut queue, 9), "e");
    }

    #[test]
    fn a_timer_never_fires_before_the_clock_shows_its_time() {
        for skew_ppm in [-200, -1, 0, 1, 200] {
            let clock = Clock {
                offset: Duration::from_secs(12_345),
                skew_ppm,
            };
            for world in [0, 1, 999_999, 1_000_000_007, 86_400_000_000_000] {
                let local = clock.local(Nanos(world));
                let back = clock.world(local);
                assert!(clock.local(back) >= local && back.0 <= world);
                assert!(back.0 == 0 || clock.local(Nanos(back.0 - 1)) < local);
            }
        }
    }
}
