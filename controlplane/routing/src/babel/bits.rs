//! A set of small numbers: which links a destination was told to.

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

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
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
}
