//! Receiver indices: which slots of the workers' session tables are taken.
//!
//! A slot that was used is not used again while the other end may still send to it; then it gets
//! another salt. Indices of handshakes that never finished were never usable by anybody and
//! return at once.

use std::collections::BTreeSet;

use hyphae_wire::index::SLOTS_MAX;
use hyphae_wire::{Lane, Nanos, SessionIndex};

use crate::rng::Rng;

const SALTS: u64 = 1 << 10;

/// Slots of all workers for one kind of session.
pub(crate) struct Indices {
    workers: Vec<Slots>,
}

/// Slots of one worker. Every slot below `fresh` is either taken or in `free`.
struct Slots {
    max: u32,
    fresh: u32,
    /// Usable from when, slot, last salt (0 when it is not known).
    free: BTreeSet<(Nanos, u16, u16)>,
}

impl Indices {
    pub(crate) fn new(workers: u16, slots: u32) -> Self {
        let slots = || Slots {
            max: slots.min(SLOTS_MAX),
            fresh: 0,
            free: BTreeSet::new(),
        };
        Self {
            workers: (0..workers).map(|_| slots()).collect(),
        }
    }

    /// Has another number of slots from now on. Those beyond it that are taken stay so.
    pub(crate) fn set_max(&mut self, slots: u32) {
        for worker in &mut self.workers {
            worker.max = slots.min(SLOTS_MAX);
        }
    }

    /// An index for each of `lanes` lanes; `None`, and nothing taken, when a worker has no room.
    pub(crate) fn allocate(
        &mut self,
        now: Nanos,
        lanes: u16,
        rng: &mut Rng,
    ) -> Option<Vec<SessionIndex>> {
        let workers = u16::try_from(self.workers.len()).unwrap_or(1);
        let mut indices = Vec::with_capacity(usize::from(lanes));
        for lane in (0..lanes).map(Lane) {
            let worker = lane.worker(workers);
            match self.workers[worker.as_usize()].take(now) {
                Some((slot, salt_before)) => {
                    // Salt 0 is never used, so index 0 is never issued.
                    let salt = rng.number(|n| {
                        let salt = salt(n);
                        salt == 0 || salt == salt_before
                    });
                    indices.push(SessionIndex::new(worker, self::salt(salt), slot));
                }
                None => {
                    indices
                        .into_iter()
                        .for_each(|index| self.release(index, now));
                    return None;
                }
            }
        }
        Some(indices)
    }

    /// Gives an index back; its slot is used again from `usable_at` on.
    pub(crate) fn release(&mut self, index: SessionIndex, usable_at: Nanos) {
        if let Some(slots) = self.workers.get_mut(index.worker().as_usize()) {
            slots
                .free
                .insert((usable_at, slot(index), salt(index.0 >> 16)));
        }
    }

    /// Takes an index that a worker has already. Slots that it skips have an unknown past, so they
    /// rest until `rested`.
    pub(crate) fn adopt(&mut self, index: SessionIndex, rested: Nanos) -> bool {
        let Some(slots) = self.workers.get_mut(index.worker().as_usize()) else {
            return false;
        };
        let wanted = slot(index);
        if u32::from(wanted) >= slots.max {
            return false;
        }
        while slots.fresh <= u32::from(wanted) {
            slots
                .free
                .insert((rested, u16::try_from(slots.fresh).unwrap_or(wanted), 0));
            slots.fresh += 1;
        }
        // Skipped by an adoption of the same takeover, as nearly all are: found without a search.
        if slots.free.remove(&(rested, wanted, 0)) {
            return true;
        }
        let before = slots.free.len();
        slots.free.retain(|(_, slot, _)| *slot != wanted);
        slots.free.len() != before
    }
}

impl Slots {
    fn take(&mut self, now: Nanos) -> Option<(u16, u16)> {
        if let Some(first) = self.free.first().copied()
            && first.0 <= now
        {
            self.free.remove(&first);
            return Some((first.1, first.2));
        }
        let slot = u16::try_from(self.fresh)
            .ok()
            .filter(|_| self.fresh < self.max)?;
        self.fresh += 1;
        Some((slot, 0))
    }
}

fn salt(bits: u32) -> u16 {
    u16::try_from(u64::from(bits) % SALTS).unwrap_or(0)
}

fn slot(index: SessionIndex) -> u16 {
    u16::try_from(index.slot()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use hyphae_wire::WorkerId;

    use super::*;

    #[test]
    fn a_limit_that_is_raised_holds_at_once_and_a_lowered_one_takes_nothing_away() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(1, 1);
        let now = Nanos(10);
        let first = indices.allocate(now, 1, &mut rng).unwrap()[0];
        assert!(indices.allocate(now, 1, &mut rng).is_none());
        indices.set_max(3);
        assert!(indices.allocate(now, 2, &mut rng).is_some());
        indices.set_max(1);
        indices.release(first, now);
        assert!(indices.allocate(now, 1, &mut rng).is_some());
        assert!(indices.allocate(now, 1, &mut rng).is_none());
    }

    #[test]
    fn lanes_go_to_their_workers_and_slots_rest() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(2, 2);
        let now = Nanos(10);
        let first = indices.allocate(now, 4, &mut rng).unwrap();
        for (lane, index) in (0..).zip(&first) {
            assert_eq!(index.worker(), WorkerId(lane % 2));
            assert_ne!(index.0, 0);
        }
        assert!(indices.allocate(now, 1, &mut rng).is_none());
        indices.release(first[0], Nanos(20));
        assert!(indices.allocate(now, 1, &mut rng).is_none());
        let again = indices.allocate(Nanos(20), 1, &mut rng).unwrap()[0];
        assert_eq!(again.slot(), first[0].slot());
        assert_ne!(again, first[0]);
        // What could not be completed leaves nothing taken.
        indices.release(first[1], Nanos(20));
        assert!(indices.allocate(Nanos(20), 2, &mut rng).is_none());
        assert!(indices.allocate(Nanos(20), 1, &mut rng).is_none());
        indices.release(again, Nanos(20));
        assert!(indices.allocate(Nanos(20), 2, &mut rng).is_some());
    }

    #[test]
    fn adopted_indices_are_taken_and_their_neighbours_rest() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(1, 4);
        let adopted = SessionIndex::new(WorkerId(0), 9, 2);
        assert!(indices.adopt(adopted, Nanos(50)));
        assert!(!indices.adopt(adopted, Nanos(50)));
        assert!(!indices.adopt(SessionIndex::new(WorkerId(0), 9, 4), Nanos(50)));
        assert!(!indices.adopt(SessionIndex::new(WorkerId(1), 9, 0), Nanos(50)));
        assert_eq!(
            indices.allocate(Nanos(0), 1, &mut rng).unwrap()[0].slot(),
            3
        );
        assert!(indices.allocate(Nanos(49), 1, &mut rng).is_none());
        assert!(indices.allocate(Nanos(50), 2, &mut rng).is_some());
    }
}
