//! Fair shares of a bounded table: the holdings of each owner, and the owner to evict from when it is full.
//!
//! ```text
//! group (class, site)  ──▶ owner (peer, link, /64) ──▶ entry (weight, value), by ticket
//! weight, age of oldest    weight, age of oldest       in order of arrival
//! ```
//!
//! A full table evicts from the owner that holds the most, within the group that holds the most. An owner that
//! fills the table therefore displaces only its own entries. Among equals the one whose oldest entry is oldest
//! is chosen, so names that an attacker chooses have no effect.
//!
//! The table does not evict by itself: capacity, and whether the oldest or the newest entry of the victim is removed,
//! are policy of the caller.
//!
//! ```
//! use hyphae_shares::ShareTable;
//!
//! const CAPACITY: usize = 3;
//! // One group; owners are peers, values are message numbers.
//! let mut table: ShareTable<(), &str, u32> = ShareTable::default();
//! for (peer, message) in [("loud", 1), ("quiet", 2), ("loud", 3), ("loud", 4)] {
//!     if table.len() == CAPACITY {
//!         let victim = table.largest().unwrap();
//!         let (ticket, _) = table.entries(victim).next().unwrap();
//!         assert_eq!(table.remove(victim, ticket), Some(1));
//!     }
//!     table.add((), peer, 1, message);
//! }
//! assert_eq!((table.count("loud"), table.count("quiet")), (2, 1));
//! ```
//!
//! Every operation costs O(log n), in time that no owner can raise for others. Iteration order is deterministic.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Names an entry of one table; later entries have higher tickets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Entries of a bounded table, by owner, with owners in groups.
///
/// `G` names a group, `O` an owner, `T` is the value of an entry. An owner belongs to one group at a time.
/// Without groups `G` is `()`; where every entry counts the same its weight is 1.
#[derive(Debug)]
pub struct ShareTable<G, O, T> {
    owners: BTreeMap<O, Owner<G, T>>,
    groups: BTreeMap<G, Group<O>>,
    ranks: Ranks<G>,
    len: usize,
    weight: u64,
    ticket_last: u64,
}

#[derive(Debug)]
struct Owner<G, T> {
    group: G,
    entries: BTreeMap<Ticket, (u32, T)>,
    weight: u64,
}

impl<G, T> Owner<G, T> {
    /// `None` without entries.
    fn rank(&self) -> Option<Rank> {
        let (oldest, _) = self.entries.first_key_value()?;
        Some((self.weight, Reverse(*oldest)))
    }
}

#[derive(Debug)]
struct Group<O> {
    ranks: Ranks<O>,
    len: usize,
    weight: u64,
}

impl<O: Ord + Copy> Group<O> {
    const EMPTY: Self = Self {
        ranks: Ranks::EMPTY,
        len: 0,
        weight: 0,
    };

    /// `None` without owners.
    fn rank(&self) -> Option<Rank> {
        let (oldest, _) = self.ranks.by_age.first()?;
        Some((self.weight, Reverse(*oldest)))
    }
}

/// Weight, then age of the oldest entry; the greatest is evicted first.
type Rank = (u64, Reverse<Ticket>);

/// Holders in order of weight, and in order of age.
#[derive(Debug)]
struct Ranks<K> {
    by_weight: BTreeSet<(Rank, K)>,
    by_age: BTreeSet<(Ticket, K)>,
}

impl<K: Ord + Copy> Ranks<K> {
    const EMPTY: Self = Self {
        by_weight: BTreeSet::new(),
        by_age: BTreeSet::new(),
    };

    fn replace(&mut self, key: K, before: Option<Rank>, after: Option<Rank>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.by_weight.remove(&(before, key));
        }
        if let Some(after) = after {
            self.by_weight.insert((after, key));
        }
        let age = |rank: Rank| rank.1.0;
        let (before, after) = (before.map(age), after.map(age));
        if before != after {
            before.map(|before| self.by_age.remove(&(before, key)));
            after.map(|after| self.by_age.insert((after, key)));
        }
    }
}

impl<G: Ord + Copy, O: Ord + Copy, T> Default for ShareTable<G, O, T> {
    fn default() -> Self {
        Self {
            owners: BTreeMap::new(),
            groups: BTreeMap::new(),
            ranks: Ranks::EMPTY,
            len: 0,
            weight: 0,
            ticket_last: 0,
        }
    }
}

impl<G: Ord + Copy, O: Ord + Copy, T> ShareTable<G, O, T> {
    /// Entries of all owners.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody holds an entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sum of the weights of all entries.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Entries of the owners of a group.
    pub fn group_len(&self, group: G) -> usize {
        self.groups.get(&group).map_or(0, |group| group.len)
    }

    /// Entries of an owner.
    pub fn count(&self, owner: O) -> usize {
        self.owners
            .get(&owner)
            .map_or(0, |owner| owner.entries.len())
    }

    /// Entries of an owner, the oldest first.
    pub fn entries(&self, owner: O) -> impl DoubleEndedIterator<Item = (Ticket, &T)> {
        let owner = self.owners.get(&owner).into_iter();
        owner.flat_map(|owner| {
            owner
                .entries
                .iter()
                .map(|(ticket, (_, value))| (*ticket, value))
        })
    }

    /// The oldest entry of the table.
    pub fn oldest(&self) -> Option<(O, Ticket, &T)> {
        let (_, group) = self.ranks.by_age.first()?;
        let (ticket, owner) = *self.groups.get(group)?.ranks.by_age.first()?;
        let (_, value) = self.owners.get(&owner)?.entries.get(&ticket)?;
        Some((owner, ticket, value))
    }

    /// The owner to evict from: the largest holder of the largest group.
    pub fn largest(&self) -> Option<O> {
        let (_, group) = self.ranks.by_weight.last()?;
        self.largest_of(*group)
    }

    /// The owner of a group that holds the most.
    pub fn largest_of(&self, group: G) -> Option<O> {
        let (_, owner) = self.groups.get(&group)?.ranks.by_weight.last()?;
        Some(*owner)
    }

    /// Adds an entry. `group` counts for the first entry of an owner; [`Self::regroup`] changes it later.
    pub fn add(&mut self, group: G, owner: O, weight: u32, value: T) -> Ticket {
        self.ticket_last += 1;
        let ticket = Ticket(self.ticket_last);
        self.owners.entry(owner).or_insert_with(|| Owner {
            group,
            entries: BTreeMap::new(),
            weight: 0,
        });
        self.change(owner, |owner| {
            owner.entries.insert(ticket, (weight, value));
            owner.weight += u64::from(weight);
        });
        ticket
    }

    /// Removes an entry; `None` when the owner does not have it.
    pub fn remove(&mut self, owner: O, ticket: Ticket) -> Option<T> {
        self.change(owner, |owner| {
            let (weight, value) = owner.entries.remove(&ticket)?;
            owner.weight -= u64::from(weight);
            Some(value)
        })?
    }

    /// Moves an owner and its entries to another group. An owner without entries has none.
    pub fn regroup(&mut self, owner: O, group: G) {
        self.change(owner, |owner| owner.group = group);
    }

    /// Changes an owner and updates the ranks; `None` for an unknown owner.
    fn change<R>(&mut self, key: O, change: impl FnOnce(&mut Owner<G, T>) -> R) -> Option<R> {
        let owner = self.owners.get_mut(&key)?;
        let (group, before) = (
            owner.group,
            (owner.rank(), owner.entries.len(), owner.weight),
        );
        let result = change(owner);
        let (group_after, after) = (
            owner.group,
            (owner.rank(), owner.entries.len(), owner.weight),
        );
        if after.1 == 0 {
            self.owners.remove(&key);
        }
        self.len = self.len + after.1 - before.1;
        self.weight = self.weight + after.2 - before.2;
        let none = (None, 0, 0);
        if group == group_after {
            self.update_group(group, key, before, after);
        } else {
            self.update_group(group, key, before, none);
            self.update_group(group_after, key, none, after);
        }
        Some(result)
    }

    /// Replaces what an owner contributes to a group: its rank, entries and weight.
    fn update_group(
        &mut self,
        key: G,
        owner: O,
        before: (Option<Rank>, usize, u64),
        after: (Option<Rank>, usize, u64),
    ) {
        let group = self.groups.entry(key).or_insert(Group::EMPTY);
        let rank = group.rank();
        group.ranks.replace(owner, before.0, after.0);
        group.len = group.len + after.1 - before.1;
        group.weight = group.weight + after.2 - before.2;
        self.ranks.replace(key, rank, group.rank());
        if group.len == 0 {
            self.groups.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
