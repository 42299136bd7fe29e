//! Shares of a bounded table: who occupies how much of it, and whose entry gives way when it is full.
//!
//! While there is room, nobody is held back. In a full table an owner without preference is held to
//! the common share of all such owners, a quarter of the table; beyond it they displace only each
//! other. Within each class the owner with the most entries gives way, and only to one that stays
//! below it, so entries are never exchanged back and forth. All operations are O(log n).

use std::collections::{BTreeMap, BTreeSet};

/// One in so many entries of a full table stays with owners without preference.
const GUESTS_SHARE: usize = 4;

/// Entries of one owner, in order of arrival.
#[derive(Debug)]
struct Held<T> {
    preferred: bool,
    entries: BTreeMap<u64, T>,
}

/// Entries by owner. Tickets name entries and increase with time.
#[derive(Debug)]
pub(super) struct Shares<O, T> {
    held: BTreeMap<O, Held<T>>,
    /// Owners by number of entries: without preference, with preference.
    ranks: [BTreeSet<(usize, O)>; 2],
    totals: [usize; 2],
    next: u64,
}

impl<O, T> Default for Shares<O, T> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            ranks: [BTreeSet::new(), BTreeSet::new()],
            totals: [0; 2],
            next: 0,
        }
    }
}

impl<O: Ord + Copy, T: Copy> Shares<O, T> {
    /// Entries of all owners.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.totals.iter().sum()
    }

    /// Entries of one owner.
    pub(super) fn count(&self, owner: O) -> usize {
        self.held.get(&owner).map_or(0, |held| held.entries.len())
    }

    /// Adds an entry. `preferred` counts for the first one of an owner.
    pub(super) fn add(&mut self, owner: O, preferred: bool, entry: T) -> u64 {
        self.next += 1;
        let ticket = self.next;
        self.change(owner, preferred, |held| {
            held.entries.insert(ticket, entry);
        });
        ticket
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, owner: O, ticket: u64) -> Option<T> {
        let mut entry = None;
        if self.held.contains_key(&owner) {
            self.change(owner, false, |held| entry = held.entries.remove(&ticket));
        }
        entry
    }

    /// Changes whether an owner has preference, if it has entries.
    pub(super) fn set_preferred(&mut self, owner: O, preferred: bool) {
        if self.held.contains_key(&owner) {
            self.change(owner, preferred, |held| held.preferred = preferred);
        }
    }

    /// Whose newest entry gives way so that `owner` gets one more in a table of `max`; `None` when
    /// `owner` itself has the most. `exempt`: its own number does not count.
    pub(super) fn displaced(
        &self,
        owner: O,
        preferred: bool,
        exempt: bool,
        max: usize,
    ) -> Option<(O, T)> {
        let guests = self.totals[0] + usize::from(!preferred && !exempt);
        let guests_first = guests > max / GUESTS_SHARE && !self.ranks[0].is_empty();
        let class = usize::from(!guests_first && !self.ranks[1].is_empty());
        let (most, victim) = *self.ranks[class].last()?;
        let same = class == usize::from(preferred) && !exempt;
        if same && most <= self.count(owner) + 1 {
            return None;
        }
        let (_, entry) = self.held.get(&victim)?.entries.last_key_value()?;
        Some((victim, *entry))
    }

    /// The oldest entry of the owner with the most.
    pub(super) fn oldest_of_most(&self) -> Option<(O, u64)> {
        let (_, owner) = self.ranks.iter().filter_map(BTreeSet::last).max()?;
        let (ticket, _) = self.held.get(owner)?.entries.first_key_value()?;
        Some((*owner, *ticket))
    }

    fn change(&mut self, owner: O, preferred: bool, change: impl FnOnce(&mut Held<T>)) {
        let held = self.held.entry(owner).or_insert(Held {
            preferred,
            entries: BTreeMap::new(),
        });
        let (class, count) = (usize::from(held.preferred), held.entries.len());
        self.ranks[class].remove(&(count, owner));
        self.totals[class] -= count;
        change(held);
        let (class, count) = (usize::from(held.preferred), held.entries.len());
        if count == 0 {
            self.held.remove(&owner);
        } else {
            self.ranks[class].insert((count, owner));
            self.totals[class] += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills a table of `max` for `owner`, as far as shares allow; returns how many were admitted.
    fn push(shares: &mut Shares<u32, u64>, owner: (u32, bool), n: u64, max: usize) -> usize {
        let (owner, preferred) = owner;
        let admit = |_: &u64| {
            if shares.len() >= max {
                let Some((victim, entry)) = shares.displaced(owner, preferred, false, max) else {
                    return false;
                };
                // Entries of this test are their own tickets.
                assert_eq!(shares.remove(victim, entry), Some(entry));
            }
            let entry = shares.next + 1;
            assert_eq!(shares.add(owner, preferred, entry), entry);
            true
        };
        (0..n).filter(admit).count()
    }

    #[test]
    fn nobody_is_held_back_while_there_is_room() {
        let mut shares = Shares::default();
        assert_eq!(push(&mut shares, (1, false), 100, 100), 100);
        assert_eq!(push(&mut shares, (1, false), 50, 100), 0);
    }

    #[test]
    fn owners_of_one_class_share_a_full_table_equally() {
        let mut shares = Shares::default();
        for owner in 1..=4 {
            push(&mut shares, (owner, false), 100, 100);
        }
        // As far as the last one grows without displacing anybody who then has less than it.
        assert_eq!(shares.len(), 100);
        for owner in 1..=4 {
            assert!((24..=26).contains(&shares.count(owner)), "{owner}");
        }
    }

    #[test]
    fn preferred_owners_displace_others_down_to_a_quarter() {
        let mut shares = Shares::default();
        push(&mut shares, (1, false), 100, 100);
        push(&mut shares, (2, false), 100, 100);
        push(&mut shares, (9, true), 1000, 100);
        assert_eq!((shares.count(9), shares.totals[0]), (75, 25));
        // And others get their quarter of a table that preferred owners have filled.
        let mut shares = Shares::default();
        push(&mut shares, (9, true), 100, 100);
        push(&mut shares, (1, false), 1000, 100);
        assert_eq!((shares.count(9), shares.count(1)), (75, 25));
    }

    #[test]
    fn the_newest_entry_gives_way_and_the_oldest_can_be_named() {
        let mut shares = Shares::default();
        let first = shares.add(1, false, 10);
        shares.add(1, false, 20);
        shares.add(2, false, 30);
        assert_eq!(shares.displaced(3, false, false, 3), Some((1, 20)));
        assert_eq!(shares.oldest_of_most(), Some((1, first)));
        shares.set_preferred(1, true);
        assert_eq!(shares.displaced(2, false, true, 8), Some((1, 20)));
    }
}
