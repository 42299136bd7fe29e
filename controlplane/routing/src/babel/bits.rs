//! Sets of links, as bits in the marks of destinations.

/// Grows as needed; numbers are reused, so it stays small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn contains(&self, n: usize) -> bool {
        self.0
            .get(n / 64)
            .is_some_and(|word| word >> (n % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, n: usize) {
        if self.0.len() <= n / 64 {
            self.0.resize(n / 64 + 1, 0);
        }
        self.0[n / 64] |= 1 << (n % 64);
    }

    pub(super) fn remove(&mut self, n: usize) {
        if let Some(word) = self.0.get_mut(n / 64) {
            *word &= !(1 << (n % 64));
        }
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Removes all that are not in `other`.
    pub(super) fn retain(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= other;
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Released slots that trigger a sweep.
const STALE_MAX: usize = 64;

/// Numbers of links in [`Bits`]. A released one may still be in many sets, so several are collected and removed
/// from all sets in one sweep.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) used: Bits,
    free: Vec<usize>,
    stale: Vec<usize>,
    next: usize,
}

impl Slots {
    pub(super) fn take(&mut self) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.used.insert(slot);
        slot
    }

    /// Releases a slot. True when it is time to sweep and to call [`Self::swept`].
    pub(super) fn release(&mut self, slot: usize) -> bool {
        self.used.remove(slot);
        self.stale.push(slot);
        self.stale.len() >= STALE_MAX
    }

    /// All sets contain only slots in use.
    pub(super) fn swept(&mut self) {
        self.free.append(&mut self.stale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_size_come_and_go() {
        let mut bits = Bits::default();
        for n in [0, 63, 64, 1000] {
            assert!(!bits.contains(n) && bits.is_empty());
            bits.remove(n);
            bits.insert(n);
            assert!(!bits.is_empty());
            assert!(bits.contains(n) && !bits.contains(n + 1));
            bits.remove(n);
            assert!(!bits.contains(n));
        }
    }

    #[test]
    fn sets_have_in_common_what_is_in_both() {
        let (mut a, mut b) = (Bits::default(), Bits::default());
        a.insert(3);
        a.insert(200);
        b.insert(200);
        assert!(a.intersects(&b) && b.intersects(&a));
        a.retain(&b);
        assert!(!a.contains(3) && a.contains(200));
        b.remove(200);
        assert!(!a.intersects(&b));
        a.retain(&Bits::default());
        assert!(a.is_empty());
    }

    #[test]
    fn a_slot_is_given_out_again_after_a_sweep_only() {
        let mut slots = Slots::default();
        for n in 0..STALE_MAX {
            assert_eq!(slots.take(), n);
            assert_eq!(slots.release(n), n + 1 == STALE_MAX);
        }
        slots.swept();
        assert!(slots.take() < STALE_MAX);
    }
}
