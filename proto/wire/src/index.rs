//! Identifiers of workers, lanes and receiver indices.

use std::fmt;

/// Most workers of a node: the width of the worker field of a [`SessionIndex`].
pub const WORKERS_MAX: u16 = 64;
/// Most lanes of one link or end-to-end session.
pub const LANES_MAX: u16 = WORKERS_MAX;
/// Most lanes of a session per worker of the node that has fewer workers.
pub const LANES_PER_WORKER_MAX: u16 = 8;
/// Session slots of one worker, per kind of session.
pub const SLOTS_MAX: u32 = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 16;
const SALT_BITS: u32 = 10;

/// A worker of the dataplane: its position in the list of cores, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// Position as an array index.
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }
}

/// A lane of a session. Lane `k` joins worker `k mod W_a` with worker `k mod W_b`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u16);

impl Lane {
    /// Number of lanes between nodes with `a` and `b` workers (at least one each): one for each
    /// worker of the larger node, at most [`LANES_PER_WORKER_MAX`] for each worker of the smaller
    /// one. Both ends compute it, so it is symmetric.
    ///
    /// The bound keeps a worker count that a peer claims from multiplying what its handshake
    /// allocates. Where it applies, the result is a multiple of [`LANES_PER_WORKER_MAX`].
    pub fn count(a: u16, b: u16) -> u16 {
        let bound = LANES_PER_WORKER_MAX.saturating_mul(a.min(b));
        a.max(b).min(bound)
    }

    /// The worker that owns this lane on a node with `workers` workers (at least one).
    pub fn worker(self, workers: u16) -> WorkerId {
        WorkerId(self.0 % workers.max(1))
    }
}

/// Receiver index of a lane: selects the keys at the receiver of a frame.
///
/// ```text
///  31    26 25        16 15             0
/// +--------+------------+----------------+
/// | worker |    salt    |      slot      |
/// +--------+------------+----------------+
/// ```
///
/// The salt changes whenever a slot is used again, so a frame for the previous session of a slot has an unknown
/// index instead of failing authentication. Index 0 is never issued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionIndex(pub u32);

impl SessionIndex {
    /// Composes an index; the salt is truncated to its field.
    pub fn new(worker: WorkerId, salt: u16, slot: u16) -> Self {
        let worker = u32::from(worker.0 % WORKERS_MAX);
        let salt = u32::from(salt) & ((1 << SALT_BITS) - 1);
        Self(worker << (SALT_BITS + SLOT_BITS) | salt << SLOT_BITS | u32::from(slot))
    }

    /// The worker that owns the session lane.
    pub fn worker(self) -> WorkerId {
        WorkerId((self.0 >> (SALT_BITS + SLOT_BITS)) as u16)
    }

    /// Position in that worker's session table.
    pub fn slot(self) -> usize {
        (self.0 & (SLOTS_MAX - 1)) as usize
    }
}

impl fmt::Display for SessionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_keeps_worker_and_slot() {
        let index = SessionIndex::new(WorkerId(63), 0x3ff, 0xffff);
        assert_eq!(
            (index.worker(), index.slot(), index.0),
            (WorkerId(63), 0xffff, u32::MAX)
        );
        let index = SessionIndex::new(WorkerId(1), 0xffff, 2);
        assert_eq!((index.worker(), index.slot()), (WorkerId(1), 2));
    }

    #[test]
    fn lanes_go_round_the_workers() {
        assert_eq!(Lane(5).worker(4), WorkerId(1));
        assert_eq!(Lane(5).worker(0), WorkerId(0));
    }

    #[test]
    fn lanes_are_counted_alike_at_both_ends_and_bounded_by_the_smaller_node() {
        for (a, b, lanes) in [
            (1, 1, 1),
            (4, 3, 4),
            (8, 1, 8),
            (9, 1, 8),
            (64, 1, 8),
            (64, 3, 24),
            (64, 8, 64),
        ] {
            assert_eq!((Lane::count(a, b), Lane::count(b, a)), (lanes, lanes));
        }
        for (a, b) in (1..=WORKERS_MAX).flat_map(|a| (1..=WORKERS_MAX).map(move |b| (a, b))) {
            let lanes = Lane::count(a, b);
            assert!(lanes >= a.min(b) && lanes <= LANES_MAX);
            // Workers without a lane hand off to one below LANES_PER_WORKER_MAX, which has one.
            assert!(lanes == a.max(b) || lanes.is_multiple_of(LANES_PER_WORKER_MAX));
        }
    }
}
