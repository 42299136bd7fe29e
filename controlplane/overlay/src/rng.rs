//! Seeded generator for jitter, indices and handshake numbers (and, in simulations, ephemeral keys).
//!
//! Each draw replaces the key before output is returned (fast key erasure), so a leaked state does not reveal
//! earlier output. Output guards against off-path attackers, so a statistical generator does not suffice.

use std::time::Duration;

use zeroize::{Zeroize, ZeroizeOnDrop};

#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Rng([u8; 32]);

impl Rng {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let mut stream = blake3::Hasher::new_keyed(&self.0).finalize_xof();
        stream.fill(&mut self.0);
        stream.fill(out);
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A number below `bound`, which is small enough for the modulo bias not to matter.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        u64::from_le_bytes(self.array()) % bound.max(1)
    }

    /// A number that is not 0 and that `taken` does not refuse.
    pub(crate) fn number(&mut self, taken: impl Fn(u32) -> bool) -> u32 {
        loop {
            let n = u32::from_le_bytes(self.array());
            if n != 0 && !taken(n) {
                return n;
            }
        }
    }

    /// Between `low` and `high` percent of `base`.
    pub(crate) fn jitter(&mut self, base: Duration, low: u32, high: u32) -> Duration {
        let span = u64::from(high.saturating_sub(low)) * 100;
        let part = u64::from(low) * 100 + self.below(span + 1);
        base.mul_f64(part as f64 / 10_000.0)
    }
}

impl snow::types::Random for Rng {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.fill(dest);
        Ok(())
    }
}
