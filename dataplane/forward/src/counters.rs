//! What the worker counts: plain integers, published to the segment once per turn.

use hyphae_shm::stats::{COUNTERS, Counter, DropReason, FRAME_BUCKETS, counter_at, drop_at};
use hyphae_wire::Suite;

/// All counters of one worker.
#[derive(Clone, Debug)]
pub struct Counters([u64; COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Counters {
    /// Adds to a counter.
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.0[counter_at(counter)] += n;
    }

    /// Adds a value to the histogram whose first bucket is `first`.
    pub fn observe(&mut self, first: Counter, frames: u64) {
        if let Some(bucket) = FRAME_BUCKETS.iter().position(|bound| frames <= *bound) {
            self.0[counter_at(first) + bucket] += 1;
        }
    }

    /// Sets the histogram whose first bucket is `first`.
    pub fn set_buckets(&mut self, first: Counter, totals: [u64; FRAME_BUCKETS.len()]) {
        let at = counter_at(first);
        self.0[at..at + totals.len()].copy_from_slice(&totals);
    }

    pub(crate) fn sealed(&mut self, suite: Suite, n: u64) {
        self.add(
            match suite {
                Suite::Aes256Gcm => Counter::SealedAes,
                Suite::ChaCha20Poly1305 => Counter::SealedChaCha,
            },
            n,
        );
    }

    pub(crate) fn opened(&mut self, suite: Suite, n: u64) {
        self.add(
            match suite {
                Suite::Aes256Gcm => Counter::OpenedAes,
                Suite::ChaCha20Poly1305 => Counter::OpenedChaCha,
            },
            n,
        );
    }

    /// Sets a counter whose total is kept elsewhere.
    pub fn set(&mut self, counter: Counter, total: u64) {
        self.0[counter_at(counter)] = total;
    }

    /// Counts a dropped packet.
    pub fn drop(&mut self, reason: DropReason) {
        self.0[drop_at(reason)] += 1;
    }

    /// Counts several packets dropped for one reason.
    pub fn drop_many(&mut self, reason: DropReason, n: u64) {
        self.0[drop_at(reason)] += n;
    }

    /// A counter's total.
    pub fn total(&self, counter: Counter) -> u64 {
        self.0[counter_at(counter)]
    }

    /// How many packets were dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.0[drop_at(reason)]
    }

    /// All of them, in the order of the stats block.
    pub fn all(&self) -> &[u64; COUNTERS] {
        &self.0
    }
}
