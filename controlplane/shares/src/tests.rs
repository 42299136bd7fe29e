//! Covers: the table against a list that is searched as a whole, and its bounds on memory.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;

/// Group, owner, weight, ticket, value.
type Row = (u8, u8, u32, Ticket, u32);

/// The same table as a plain list.
#[derive(Default)]
struct Oracle(Vec<Row>);

impl Oracle {
    /// Weight and age of the rows that `of` selects.
    fn rank(&self, of: impl Fn(&Row) -> bool) -> Rank {
        let rows = || self.0.iter().filter(|row| of(row));
        let oldest = rows().map(|row| row.3).min().unwrap_or_default();
        (rows().map(|row| u64::from(row.2)).sum(), Reverse(oldest))
    }

    fn group_of(&self, owner: u8) -> Option<u8> {
        self.0.iter().find(|row| row.1 == owner).map(|row| row.0)
    }

    fn largest_of(&self, group: u8) -> Option<u8> {
        let owners = self.0.iter().filter(|row| row.0 == group).map(|row| row.1);
        owners.max_by_key(|owner| self.rank(|row| row.1 == *owner))
    }

    fn largest(&self) -> Option<u8> {
        let groups = self.0.iter().map(|row| row.0);
        let group = groups.max_by_key(|group| self.rank(|row| row.0 == *group))?;
        self.largest_of(group)
    }
}

fn check(table: &ShareTable<u8, u8, u32>, oracle: &Oracle) {
    let weight = oracle.0.iter().map(|row| u64::from(row.2)).sum();
    assert_eq!((table.len(), table.weight()), (oracle.0.len(), weight));
    assert_eq!(table.is_empty(), oracle.0.is_empty());
    assert_eq!(table.largest(), oracle.largest());
    let oldest = oracle.0.iter().min_by_key(|row| row.3);
    let oldest = oldest.map(|row| (row.1, row.3, row.4));
    assert_eq!(table.oldest().map(|(o, t, value)| (o, t, *value)), oldest);
    for group in 0..4 {
        let rows = oracle.0.iter().filter(|row| row.0 == group);
        assert_eq!(table.group_len(group), rows.count());
        assert_eq!(table.largest_of(group), oracle.largest_of(group));
    }
    for owner in 0..8 {
        let rows = oracle.0.iter().filter(|row| row.1 == owner);
        let rows: Vec<_> = rows.map(|row| (row.3, row.4)).collect();
        assert_eq!(table.count(owner), rows.len());
        let entries = table.entries(owner).map(|(ticket, value)| (ticket, *value));
        assert_eq!(entries.collect::<Vec<_>>(), rows);
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_search_of_all_entries(
        steps in prop::collection::vec((0u8..4, 0u8..4, 0u8..8, 0u32..3, any::<usize>()), 0..200),
    ) {
        let (mut table, mut oracle) = (ShareTable::default(), Oracle::default());
        for (value, (step, group, owner, weight, pick)) in (0..).zip(steps) {
            match step {
                0 | 1 => {
                    let group_after = oracle.group_of(owner).unwrap_or(group);
                    let ticket = table.add(group, owner, weight, value);
                    oracle.0.push((group_after, owner, weight, ticket, value));
                }
                2 if !oracle.0.is_empty() => {
                    let (_, owner, _, ticket, value) = oracle.0.remove(pick % oracle.0.len());
                    prop_assert_eq!(table.remove(owner, ticket), Some(value));
                    prop_assert_eq!(table.remove(owner, ticket), None);
                }
                _ => {
                    table.regroup(owner, group);
                    let rows = oracle.0.iter_mut().filter(|row| row.1 == owner);
                    rows.for_each(|row| row.0 = group);
                }
            }
            check(&table, &oracle);
        }
        for (_, owner, _, ticket, _) in oracle.0 {
            table.remove(owner, ticket);
        }
        prop_assert!(table.owners.is_empty() && table.groups.is_empty());
        prop_assert!(table.ranks.by_weight.is_empty() && table.ranks.by_age.is_empty());
    }

    #[test]
    fn a_full_table_keeps_what_owners_below_an_equal_share_hold(
        quiet in prop::collection::vec(1u8..5, 0..10),
    ) {
        const CAPACITY: usize = 20;
        let mut table = ShareTable::default();
        let quiet: Vec<_> = quiet.into_iter().filter(|owner| *owner > 0).collect();
        let arrivals = quiet.iter().copied().chain(std::iter::repeat_n(0, 100));
        for owner in arrivals {
            if table.len() == CAPACITY {
                let victim = table.largest().unwrap();
                let (ticket, ()) = table.entries(victim).next().unwrap();
                table.remove(victim, ticket);
            }
            table.add((), owner, 1, ());
        }
        for owner in 1..5 {
            let held = quiet.iter().filter(|of| **of == owner).count();
            prop_assert!(table.count(owner) >= held.min(CAPACITY / 5));
        }
    }
}
