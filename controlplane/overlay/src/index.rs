//! Receiver indices: allocation of slots in the workers' session tables.
//!
//! ```text
//! slots of a worker:  half open 1/4 | live 1/2 | renewals of live ones 1/8 | resting 1/8
//! ```
//!
//! Each class has a quota, so unauthenticated sources never take the slots of sessions, and renewals find some
//! when the rest is full. Classes are quotas, not regions: a finished handshake retains its slots.
//!
//! A used slot gets the next salt, so an index repeats only after all 1023 salts of its slot. The slot
//! therefore rests just long enough for this to exceed the time in which frames to the old index may arrive
//! ([`rest`]). Indices of handshakes that never finished were never usable and return at once.

use std::collections::BTreeSet;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::index::SLOTS_MAX;

use hyphae_wire::{Lane, SessionIndex};

use hyphae_random::Rng;

const SALTS: u16 = 1 << 10;

/// Rest of a slot when frames to its last index may arrive for `old`: all salts later that time has passed.
pub(crate) fn rest(old: Duration) -> Duration {
    // Salt 0 is never used, so index 0 is never issued.
    old / u32::from(SALTS - 1) + Duration::from_millis(1)
}

/// What slots are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A half-open handshake initiated by another node.
    HalfOpen,
    /// A session.
    Live,
    /// A session that renews one; may use the reserve.
    Renewal,
}

/// Slots of all workers for one kind of session.
pub(crate) struct Indices {
    workers: Vec<Slots>,
}

/// Slots of one worker. Every slot below `fresh` is either taken or in `free`.
struct Slots {
    max: u32,
    fresh: u32,
    /// Usable from, slot, last salt (0 when unknown).
    free: BTreeSet<(Nanos, u16, u16)>,
    half_open: u32,
    live: u32,
}

/// Quota of half-open handshakes at a worker with `max` slots.
pub(crate) fn half_open_max(max: u32) -> u32 {
    (max / 4).max(1)
}

impl Indices {
    pub(crate) fn new(workers: u16, slots: u32) -> Self {
        let slots = || Slots {
            max: slots.min(SLOTS_MAX),
            fresh: 0,
            free: BTreeSet::new(),
            half_open: 0,
            live: 0,
        };
        Self {
            workers: (0..workers).map(|_| slots()).collect(),
        }
    }

    /// Changes the number of slots. Taken slots beyond it stay taken.
    pub(crate) fn set_max(&mut self, slots: u32) {
        for worker in &mut self.workers {
            worker.max = slots.min(SLOTS_MAX);
        }
    }

    /// Whether a class has room for another `lanes` lanes.
    pub(crate) fn fits(&self, lanes: u16, class: Class) -> bool {
        let workers = u16::try_from(self.workers.len()).unwrap_or(1).max(1);
        let each = u32::from(lanes.div_ceil(workers));
        let busy = self.workers.iter().take(usize::from(lanes));
        busy.into_iter().all(|worker| worker.fits(each, class))
    }

    /// An index for each of `lanes` lanes; `None`, and nothing taken, when a worker has no room.
    pub(crate) fn allocate(
        &mut self,
        now: Nanos,
        lanes: u16,
        class: Class,
        rng: &mut Rng,
    ) -> Option<Vec<SessionIndex>> {
        let workers = u16::try_from(self.workers.len()).unwrap_or(1);
        let mut indices = Vec::with_capacity(usize::from(lanes));
        for lane in (0..lanes).map(Lane) {
            let worker = lane.worker(workers);
            let slots = &mut self.workers[worker.as_usize()];
            let taken = Some(()).filter(|()| slots.fits(1, class));
            match taken.and_then(|()| slots.take(now)) {
                Some((slot, salt_before)) => {
                    *slots.used(class) += 1;
                    // A slot with an unknown past starts at a random salt.
                    let salt = match salt_before {
                        0 => salt(rng.number(|n| salt(n) == 0)),
                        before => before % (SALTS - 1) + 1,
                    };
                    indices.push(SessionIndex::new(worker, salt, slot));
                }
                None => {
                    indices
                        .into_iter()
                        .for_each(|index| self.release(index, class, now));
                    return None;
                }
            }
        }
        Some(indices)
    }

    /// Turns slots of a half-open handshake into those of a session.
    pub(crate) fn promote(&mut self, indices: &[SessionIndex]) {
        for index in indices {
            if let Some(slots) = self.workers.get_mut(index.worker().as_usize()) {
                slots.half_open = slots.half_open.saturating_sub(1);
                slots.live += 1;
            }
        }
    }

    /// Releases an index; its slot is usable again from `usable_at` on.
    pub(crate) fn release(&mut self, index: SessionIndex, class: Class, usable_at: Nanos) {
        if let Some(slots) = self.workers.get_mut(index.worker().as_usize()) {
            let used = slots.used(class);
            *used = used.saturating_sub(1);
            slots
                .free
                .insert((usable_at, slot(index), salt(index.0 >> 16)));
        }
    }

    /// Marks an index that a worker already uses as live. Skipped slots have an unknown past and rest until
    /// `rested`.
    pub(crate) fn adopt(&mut self, index: SessionIndex, rested: Nanos) -> bool {
        let Some(slots) = self.workers.get_mut(index.worker().as_usize()) else {
            return false;
        };
        let taken = slots.adopt(index, rested);
        slots.live += u32::from(taken);
        taken
    }
}

impl Slots {
    fn used(&mut self, class: Class) -> &mut u32 {
        match class {
            Class::HalfOpen => &mut self.half_open,
            Class::Live | Class::Renewal => &mut self.live,
        }
    }

    fn fits(&self, more: u32, class: Class) -> bool {
        let live = (self.max / 2).max(1);
        match class {
            Class::HalfOpen => self.half_open + more <= half_open_max(self.max),
            Class::Live => self.live + more <= live,
            Class::Renewal => self.live + more <= live + self.max / 8,
        }
    }

    fn adopt(&mut self, index: SessionIndex, rested: Nanos) -> bool {
        let wanted = slot(index);
        if u32::from(wanted) >= self.max {
            return false;
        }
        while self.fresh <= u32::from(wanted) {
            self.free
                .insert((rested, u16::try_from(self.fresh).unwrap_or(wanted), 0));
            self.fresh += 1;
        }
        // Fast path: skipped by this adoption, as nearly all are.
        if self.free.remove(&(rested, wanted, 0)) {
            return true;
        }
        let before = self.free.len();
        self.free.retain(|(_, slot, _)| *slot != wanted);
        self.free.len() != before
    }

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
    u16::try_from(bits % u32::from(SALTS)).unwrap_or(0)
}

fn slot(index: SessionIndex) -> u16 {
    u16::try_from(index.slot()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use hyphae_wire::WorkerId;

    use super::*;

    #[test]
    fn a_raised_limit_applies_at_once_and_a_lowered_one_ends_nothing() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(1, 2);
        let now = Nanos(10);
        let first = indices.allocate(now, 1, Class::Live, &mut rng).unwrap()[0];
        assert!(indices.allocate(now, 1, Class::Live, &mut rng).is_none());
        indices.set_max(6);
        assert!(indices.allocate(now, 2, Class::Live, &mut rng).is_some());
        indices.set_max(2);
        indices.release(first, Class::Live, now);
        assert!(indices.allocate(now, 1, Class::Live, &mut rng).is_none());
    }

    #[test]
    fn lanes_go_to_their_workers_and_slots_rest() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(2, 4);
        let now = Nanos(10);
        let live = Class::Live;
        let first = indices.allocate(now, 4, live, &mut rng).unwrap();
        for (lane, index) in (0..).zip(&first) {
            assert_eq!(index.worker(), WorkerId(lane % 2));
            assert_ne!(index.0, 0);
        }
        assert!(indices.allocate(now, 1, live, &mut rng).is_none());
        // Unused slots come before one that rests, and it itself when it has.
        indices.release(first[0], live, Nanos(20));
        let other = indices.allocate(now, 1, live, &mut rng).unwrap()[0];
        assert_ne!(other.slot(), first[0].slot());
        indices.release(other, live, Nanos(30));
        let again = indices.allocate(Nanos(20), 1, live, &mut rng).unwrap()[0];
        assert_eq!(again.slot(), first[0].slot());
        assert_ne!(again, first[0]);
        // What could not be completed leaves nothing taken.
        indices.release(first[1], live, Nanos(20));
        assert!(indices.allocate(Nanos(20), 2, live, &mut rng).is_none());
        indices.release(again, live, Nanos(20));
        assert!(indices.allocate(Nanos(20), 2, live, &mut rng).is_some());
    }

    #[test]
    fn no_class_takes_the_room_of_another() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(1, 16);
        let mut fill = |class| {
            let taken = std::iter::from_fn(|| indices.allocate(Nanos(0), 1, class, &mut rng));
            taken.count()
        };
        assert_eq!(fill(Class::HalfOpen), 4);
        assert_eq!(fill(Class::Live), 8);
        assert_eq!(fill(Class::Renewal), 2);
        assert_eq!(fill(Class::Live), 0);
        assert!(!indices.fits(1, Class::Renewal));
    }

    #[test]
    fn an_index_comes_back_after_all_others_of_its_slot_and_not_before_old_frames_have_ended() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(1, 2);
        let old = Duration::from_secs(200);
        let (mut now, mut seen) = (Nanos(0), std::collections::BTreeMap::new());
        for _ in 0..5000 {
            let index = indices.allocate(now, 1, Class::HalfOpen, &mut rng).unwrap()[0];
            if let Some(before) = seen.insert(index, now) {
                assert!(now.since(before) >= old);
            }
            indices.promote(&[index]);
            indices.release(index, Class::Live, now + rest(old));
            now = now + rest(old);
        }
        assert_eq!(seen.len(), 1023);
    }

    #[test]
    fn adopted_indices_are_taken_and_their_neighbours_rest() {
        let mut rng = Rng::new([7; 32]);
        let mut indices = Indices::new(1, 8);
        let live = Class::Live;
        let adopted = SessionIndex::new(WorkerId(0), 9, 6);
        assert!(indices.adopt(adopted, Nanos(50)));
        assert!(!indices.adopt(adopted, Nanos(50)));
        assert!(!indices.adopt(SessionIndex::new(WorkerId(0), 9, 8), Nanos(50)));
        assert!(!indices.adopt(SessionIndex::new(WorkerId(1), 9, 0), Nanos(50)));
        let next = indices.allocate(Nanos(0), 1, live, &mut rng).unwrap()[0];
        assert_eq!(next.slot(), 7);
        assert!(indices.allocate(Nanos(49), 1, live, &mut rng).is_none());
        assert!(indices.allocate(Nanos(50), 2, live, &mut rng).is_some());
        assert!(!indices.fits(1, live), "the adopted one counts");
    }
}
