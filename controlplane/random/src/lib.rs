//! Seeded random numbers of the engines: ids, indices, jitter and, in simulations, ephemeral keys.
//!
//! A keyed BLAKE3 stream fills a block; each fill replaces the key first, and bytes are erased when they are returned
//! (fast key erasure). A leaked state therefore does not reveal earlier output. Output guards against off-path
//! attackers, so a statistical generator does not suffice.
//!
//! ```
//! use hyphae_random::Rng;
//!
//! let (mut one, mut same) = (Rng::new([7; 32]), Rng::new([7; 32]));
//! assert_eq!(one.array::<8>(), same.array());
//! assert!(one.below(6) < 6);
//! ```

#![forbid(unsafe_code)]

use std::time::Duration;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes generated at once: one id or jitter costs a copy, not a hash.
const BLOCK: usize = 256;

/// The generator. The same seed yields the same sequence.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Rng {
    key: [u8; 32],
    block: [u8; BLOCK],
    used: usize,
}

impl Rng {
    /// A generator with this seed.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            key: seed,
            block: [0; BLOCK],
            used: BLOCK,
        }
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(BLOCK) {
            if self.used + part.len() > BLOCK {
                let mut stream = blake3::Hasher::new_keyed(&self.key).finalize_xof();
                stream.fill(&mut self.key);
                stream.fill(&mut self.block);
                self.used = 0;
            }
            let end = self.used + part.len();
            let taken = &mut self.block[self.used..end];
            part.copy_from_slice(taken);
            taken.zeroize();
            self.used = end;
        }
    }

    /// Random bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A number below `bound`; the modulo bias is negligible for small bounds.
    pub fn below(&mut self, bound: u64) -> u64 {
        u64::from_le_bytes(self.array()) % bound.max(1)
    }

    /// A number that is not 0 and that `taken` does not refuse.
    pub fn number(&mut self, taken: impl Fn(u32) -> bool) -> u32 {
        loop {
            let n = u32::from_le_bytes(self.array());
            if n != 0 && !taken(n) {
                return n;
            }
        }
    }

    /// Between `low` and `high` percent of `base`.
    pub fn jitter(&mut self, base: Duration, low: u32, high: u32) -> Duration {
        let span = u64::from(high.saturating_sub(low)) * 100;
        let part = u64::from(low) * 100 + self.below(span + 1);
        base.mul_f64(part as f64 / 10_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returned_bytes_are_erased_and_do_not_repeat() {
        let mut rng = Rng::new([7; 32]);
        let (mut long, mut seen) = ([0; 3 * BLOCK], std::collections::BTreeSet::new());
        rng.fill(&mut long);
        for _ in 0..1000 {
            assert!(seen.insert(rng.array::<16>()));
            assert!(rng.block[..rng.used].iter().all(|byte| *byte == 0));
        }
        assert!(long.chunks(16).all(|part| part != [0; 16]));
    }

    #[test]
    fn numbers_and_jitter_are_within_their_bounds() {
        let mut rng = Rng::new([8; 32]);
        let base = Duration::from_secs(100);
        let drawn: Vec<_> = (0..1000).map(|_| rng.jitter(base, 75, 125)).collect();
        let seconds = |duration: &Duration| duration.as_secs();
        let (least, most) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        assert!((75..80).contains(&seconds(least)) && (120..=125).contains(&seconds(most)));
        assert_eq!(rng.jitter(base, 100, 100), base);
        assert!((0..100).all(|_| rng.below(3) < 3 && rng.number(|n| n % 2 == 0) % 2 == 1));
        assert_eq!(rng.below(0), 0);
    }
}
