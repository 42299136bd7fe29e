//! Seeded random numbers for ids and jitter, with fast key erasure.

use std::time::Duration;

/// Bytes generated at once.
const BLOCK: usize = 256;

pub(crate) struct Rng {
    key: [u8; 32],
    block: [u8; BLOCK],
    used: usize,
}

impl Rng {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self {
            key: seed,
            block: [0; BLOCK],
            used: BLOCK,
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= BLOCK) };
        if self.used + N > BLOCK {
            let mut stream = blake3::Hasher::new_keyed(&self.key).finalize_xof();
            stream.fill(&mut self.key);
            stream.fill(&mut self.block);
            self.used = 0;
        }
        let mut out = [0; N];
        out.copy_from_slice(&self.block[self.used..self.used + N]);
        self.used += N;
        out
    }

    /// A random, non-zero base for sequence numbers, below half of [`hyphae_wire::message::SEQUENCE_MAX`].
    pub(crate) fn sequence_base(&mut self) -> u64 {
        u64::from_le_bytes(self.array()) >> 2 | 1
    }

    /// Between three and five quarters of `base`.
    pub(crate) fn jitter(&mut self, base: Duration) -> Duration {
        let part = u16::from_le_bytes(self.array());
        base.mul_f64(0.75 + 0.5 * f64::from(part) / f64::from(u16::MAX))
    }
}
