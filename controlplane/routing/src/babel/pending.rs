//! Prefixes to advertise on a link: an ordered set.
//!
//! In a burst each link has one with as many entries as there are routes, for a moment. Two vectors instead of a
//! tree, because the nodes of a thousand freed trees would fragment the heap.

use std::cmp::Ordering;

use hyphae_wire::Prefix;

/// Fewest new entries that are collected before they are sorted.
const FRESH_MIN: usize = 1024;

/// In order, each once.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// Last first.
    sorted: Vec<Prefix>,
    /// As they came.
    fresh: Vec<Prefix>,
}

impl Pending {
    pub(super) fn insert(&mut self, prefix: Prefix) {
        self.fresh.push(prefix);
        if self.fresh.len() > FRESH_MIN.max(2 * self.sorted.len()) {
            self.sort();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty() && self.fresh.is_empty()
    }

    /// Upper bound of the number of entries.
    pub(super) fn len(&self) -> usize {
        self.sorted.len() + self.fresh.len()
    }

    /// Removes the first entries. New ones are merged with the rest only when they are many, so a neighbour that
    /// requests one prefix after another does not cost a pass over all.
    pub(super) fn take(&mut self, most: usize) -> Vec<Prefix> {
        if self.fresh.len() > FRESH_MIN {
            self.sort();
        }
        self.fresh.sort_unstable_by(|a, b| b.cmp(a));
        self.fresh.dedup();
        let mut taken = Vec::with_capacity(most.min(self.len()));
        while taken.len() < most {
            let (sorted, fresh) = (self.sorted.last(), self.fresh.last());
            let order = sorted.zip(fresh).map(|(sorted, fresh)| sorted.cmp(fresh));
            let next = match order {
                Some(Ordering::Less) => self.sorted.pop(),
                Some(Ordering::Greater) => self.fresh.pop(),
                Some(Ordering::Equal) => self.sorted.pop().and(self.fresh.pop()),
                None => self.sorted.pop().or_else(|| self.fresh.pop()),
            };
            let Some(next) = next else { break };
            taken.push(next);
        }
        for emptied in [&mut self.sorted, &mut self.fresh] {
            if emptied.is_empty() {
                *emptied = Vec::new();
            }
        }
        taken
    }

    /// Puts entries back that [`Self::take`] returned, in its order.
    pub(super) fn put_back(&mut self, prefixes: &[Prefix]) {
        let first = self.sorted.last();
        if prefixes
            .last()
            .is_some_and(|last| first.is_none_or(|first| last < first))
        {
            self.sorted.extend(prefixes.iter().rev());
        } else {
            self.extend(prefixes.iter().copied());
        }
    }

    fn sort(&mut self) {
        if !self.fresh.is_empty() {
            self.sorted.append(&mut self.fresh);
            self.fresh = Vec::new();
            // A stable sort merges runs that are in order already.
            self.sorted.sort_by(|a, b| b.cmp(a));
            self.sorted.dedup();
        }
    }
}

impl Extend<Prefix> for Pending {
    fn extend<T: IntoIterator<Item = Prefix>>(&mut self, prefixes: T) {
        prefixes.into_iter().for_each(|prefix| self.insert(prefix));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hyphae_wire::OverlayAddress;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_in_order(
            steps in prop::collection::vec((any::<u8>(), prop::option::of(0usize..40)), 0..3000),
        ) {
            let (mut pending, mut oracle) = (Pending::default(), BTreeSet::new());
            for (n, take) in steps {
                let prefix = Prefix::new(OverlayAddress([n; 16]), 128);
                pending.insert(prefix);
                oracle.insert(prefix);
                prop_assert!(pending.len() >= oracle.len());
                if let Some(most) = take {
                    let first: Vec<_> = std::iter::from_fn(|| oracle.pop_first()).take(most).collect();
                    let taken = pending.take(most);
                    prop_assert_eq!(&taken, &first);
                    let back = &taken[most.min(taken.len()) / 2..];
                    pending.put_back(back);
                    oracle.extend(back);
                }
                prop_assert_eq!(pending.is_empty(), oracle.is_empty());
            }
        }
    }
}
