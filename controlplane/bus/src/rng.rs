//! Seeded randomness for ids and jitter. Each draw replaces the key before it gives bytes out.

use std::time::Duration;

pub(crate) struct Rng([u8; 32]);

impl Rng {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut stream = blake3::Hasher::new_keyed(&self.0).finalize_xof();
        stream.fill(&mut self.0);
        let mut out = [0; N];
        stream.fill(&mut out);
        out
    }

    /// Between three and five quarters of `base`.
    pub(crate) fn jitter(&mut self, base: Duration) -> Duration {
        let part = u16::from_le_bytes(self.array());
        base.mul_f64(0.75 + 0.5 * f64::from(part) / f64::from(u16::MAX))
    }
}
