//! A table from 64-bit keys to small values: open addressing, linear probing, keyed hash.
//!
//! The key of a /64 is its first 8 bytes, which strangers choose by choosing keys; the hash is
//! seeded per process so that nobody can aim for one chain. Deletion shifts back, so there are no
//! tombstones and a lookup ends at the first free slot.

use ahash::RandomState;

pub(crate) struct Map<V> {
    slots: Vec<Option<(u64, V)>>,
    len: usize,
    hasher: RandomState,
}

impl<V: Copy> Map<V> {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![None; 64],
            len: 0,
            hasher: RandomState::new(),
        }
    }

    fn home(&self, key: u64) -> usize {
        // The table is far smaller than 2^32 slots.
        self.hasher.hash_one(key) as usize & (self.slots.len() - 1)
    }

    fn find(&self, key: u64) -> Result<usize, usize> {
        let mut at = self.home(key);
        loop {
            match &self.slots[at] {
                None => return Err(at),
                Some((found, _)) if *found == key => return Ok(at),
                Some(_) => at = (at + 1) & (self.slots.len() - 1),
            }
        }
    }

    pub(crate) fn get(&self, key: u64) -> Option<V> {
        let at = self.find(key).ok()?;
        self.slots[at].map(|(_, value)| value)
    }

    /// Gives what the key had before.
    pub(crate) fn insert(&mut self, key: u64, value: V) -> Option<V> {
        if (self.len + 1) * 2 > self.slots.len() {
            let bigger = vec![None; self.slots.len() * 2];
            let old = std::mem::replace(&mut self.slots, bigger);
            for (key, value) in old.into_iter().flatten() {
                let (Ok(at) | Err(at)) = self.find(key);
                self.slots[at] = Some((key, value));
            }
        }
        let (Ok(at) | Err(at)) = self.find(key);
        let before = self.slots[at].replace((key, value));
        self.len += usize::from(before.is_none());
        before.map(|(_, value)| value)
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<V> {
        let mut hole = self.find(key).ok()?;
        let (_, value) = self.slots[hole].take()?;
        self.len -= 1;
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let Some((key, _)) = self.slots[at] else {
                return Some(value);
            };
            // Whoever probed past the hole moves into it.
            let home = self.home(key);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[at].take();
                hole = at;
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, V)> + '_ {
        self.slots.iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_the_standard_map(
            steps in prop::collection::vec((any::<bool>(), 0u64..200, any::<u32>()), 0..800)
        ) {
            let (mut map, mut oracle) = (Map::new(), HashMap::new());
            for (insert, key, value) in steps {
                if insert {
                    prop_assert_eq!(map.insert(key, value), oracle.insert(key, value));
                } else {
                    prop_assert_eq!(map.remove(key), oracle.remove(&key));
                }
                prop_assert_eq!(map.get(key), oracle.get(&key).copied());
            }
            let mut all: Vec<_> = map.iter().collect();
            let mut expected: Vec<_> = oracle.into_iter().collect();
            all.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }
}
