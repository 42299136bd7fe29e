//! The lanes that a worker sends on towards one peer or one session end.

use hyphae_wire::WorkerId;
use hyphae_wire::index::LANES_PER_WORKER_MAX;

/// Lanes of one worker towards one peer.
const LANES_MAX: usize = LANES_PER_WORKER_MAX as usize;

/// The current slot per lane, and the ones in use in a row.
#[derive(Clone, Copy, Default)]
pub(crate) struct LaneSet {
    /// Slot, epoch and the worker at the other end, by lane number divided by workers.
    current: [Option<Current>; LANES_MAX],
    usable: [u32; LANES_MAX],
    count: u8,
}

#[derive(Clone, Copy)]
struct Current {
    slot: u32,
    epoch: u32,
    remote: WorkerId,
}

impl LaneSet {
    /// Uses a slot for sending on its lane if its epoch is newer than what is in use.
    pub(crate) fn offer(&mut self, position: usize, slot: u32, epoch: u32, remote: WorkerId) {
        let Some(place) = self.current.get_mut(position) else {
            return;
        };
        if place.is_none_or(|current| current.epoch < epoch) {
            *place = Some(Current {
                slot,
                epoch,
                remote,
            });
            self.collect();
        }
    }

    /// Stops using a slot.
    pub(crate) fn withdraw(&mut self, slot: u32) {
        for place in &mut self.current {
            if place.is_some_and(|current| current.slot == slot) {
                *place = None;
            }
        }
        self.collect();
    }

    /// A slot for a flow: always the same one while the set does not change.
    pub(crate) fn pick(&self, flow_hash: u16) -> Option<u32> {
        match self.count {
            0 => None,
            1 => Some(self.usable[0]),
            count => Some(self.usable[usize::from(flow_hash) % usize::from(count)]),
        }
    }

    /// A slot for a flow whose other end is preferably this worker.
    pub(crate) fn pick_towards(&self, worker: WorkerId, flow_hash: u16) -> Option<u32> {
        if self.count > 1 {
            let ends_there = |current: &&Current| current.remote == worker;
            if let Some(current) = self.current.iter().flatten().find(ends_there) {
                return Some(current.slot);
            }
        }
        self.pick(flow_hash)
    }

    fn collect(&mut self) {
        self.count = 0;
        for current in self.current.iter().flatten() {
            self.usable[usize::from(self.count)] = current.slot;
            self.count += 1;
        }
    }
}
