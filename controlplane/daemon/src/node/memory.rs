//! Memory that a burst of routes or long messages have left behind goes back to the kernel.

use std::time::Duration;

use hyphae_time::Nanos;

use super::Node;

/// How often it is looked for.
const AGAIN: Duration = Duration::from_secs(20);
/// Routes told and heard since the last time that make it worth while.
const UPDATES: u64 = 5000;

/// When memory was given back, and what had happened by then.
pub(super) struct Memory {
    at: Nanos,
    updates: u64,
}

impl Memory {
    pub(super) fn new(now: Nanos) -> Self {
        let at = now + AGAIN;
        Self { at, updates: 0 }
    }

    /// When [`Node::give_back_memory`] wants to be called.
    pub(super) fn at(&self) -> Nanos {
        self.at
    }
}

impl Node {
    pub(super) fn give_back_memory(&mut self, now: Nanos) {
        if now < self.memory.at {
            return;
        }
        self.memory.at = now + AGAIN;
        self.bus.give_back_memory();
        let counters = self.routing.as_ref().map(|r| *r.speaker.counters());
        let updates = counters.map_or(0, |c| c.updates_sent + c.updates_received);
        if updates - self.memory.updates >= UPDATES {
            self.memory.updates = updates;
            hyphae_shm::give_back_free_memory();
        }
    }
}
