//! Returns free memory to the kernel after a burst of routes or long messages.

use std::time::Duration;

use hyphae_time::Nanos;

use super::Node;

/// Interval of checks.
const INTERVAL: Duration = Duration::from_secs(20);
/// Route updates sent and received since the last trim that cause one.
const UPDATES: u64 = 5000;

/// When memory is trimmed next, and the route updates at the last trim.
pub(super) struct Memory {
    at: Nanos,
    updates: u64,
}

impl Memory {
    pub(super) fn new(now: Nanos) -> Self {
        let at = now + INTERVAL;
        Self { at, updates: 0 }
    }

    /// When [`Node::trim`] is due.
    pub(super) fn at(&self) -> Nanos {
        self.at
    }
}

impl Node {
    pub(super) fn trim(&mut self, now: Nanos) {
        if now < self.upkeep.memory.at {
            return;
        }
        self.upkeep.memory.at = now + INTERVAL;
        self.services.bus.trim();
        let counters = self.routes.protocol.as_ref().map(|r| *r.speaker.counters());
        let updates = counters.map_or(0, |c| c.updates_sent + c.updates_received);
        if updates - self.upkeep.memory.updates >= UPDATES {
            self.upkeep.memory.updates = updates;
            hyphae_shm::give_back_free_memory();
        }
    }
}
