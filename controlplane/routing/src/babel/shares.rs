//! Fair shares of a full table between neighbours with and without preference.
//!
//! While there is room, no owner is limited. In a full table owners without preference are limited to a common
//! quarter; beyond it they displace only each other. Within each class the owner with the most entries is
//! displaced, and only by one that stays below it, so entries are never exchanged back and forth.

use hyphae_shares::ShareTable;

/// Part of a full table that owners without preference retain.
const UNPREFERRED_SHARE: usize = 4;

/// Entries by owner; the group is whether the owner has preference.
pub(super) type PreferredShares<T> = ShareTable<bool, u32, T>;

/// The newest entry that `owner` displaces from a table of `max`; `None` when `owner` itself has the most.
/// `exempt`: its own number does not count.
pub(super) fn displaced<T: Copy>(
    shares: &PreferredShares<T>,
    owner: u32,
    preferred: bool,
    exempt: bool,
    max: usize,
) -> Option<(u32, T)> {
    let unpreferred = shares.group_len(false);
    let beyond = unpreferred + usize::from(!preferred && !exempt) > max / UNPREFERRED_SHARE;
    let class = !(beyond && unpreferred > 0) && shares.group_len(true) > 0;
    let victim = shares.largest_of(class)?;
    if class == preferred && !exempt && shares.count(victim) <= shares.count(owner) + 1 {
        return None;
    }
    let (_, newest) = shares.entries(victim).next_back()?;
    Some((victim, *newest))
}

#[cfg(test)]
mod tests {
    use hyphae_shares::Ticket;

    use super::*;

    /// Fills a table of `max` for `owner`, as far as shares allow; returns how many were admitted.
    fn push(
        shares: &mut PreferredShares<Ticket>,
        (owner, preferred): (u32, bool),
        n: u64,
        max: usize,
    ) -> usize {
        let admit = |_: &u64| {
            if shares.len() >= max {
                let Some((victim, _)) = displaced(shares, owner, preferred, false, max) else {
                    return false;
                };
                let (newest, _) = shares.entries(victim).next_back().unwrap();
                assert!(shares.remove(victim, newest).is_some());
            }
            shares.add(preferred, owner, 1, Ticket::default());
            true
        };
        (0..n).filter(admit).count()
    }

    #[test]
    fn no_owner_is_limited_while_there_is_room() {
        let mut shares = PreferredShares::default();
        assert_eq!(push(&mut shares, (1, false), 100, 100), 100);
        assert_eq!(push(&mut shares, (1, false), 50, 100), 0);
    }

    #[test]
    fn owners_of_one_class_share_a_full_table_equally() {
        let mut shares = PreferredShares::default();
        for owner in 1..=4 {
            push(&mut shares, (owner, false), 100, 100);
        }
        // As far as the last one grows without displacing an owner that then has fewer entries.
        assert_eq!(shares.len(), 100);
        for owner in 1..=4 {
            assert!((24..=26).contains(&shares.count(owner)), "{owner}");
        }
    }

    #[test]
    fn preferred_owners_displace_others_down_to_a_quarter() {
        let mut shares = PreferredShares::default();
        push(&mut shares, (1, false), 100, 100);
        push(&mut shares, (2, false), 100, 100);
        push(&mut shares, (9, true), 1000, 100);
        assert_eq!((shares.count(9), shares.group_len(false)), (75, 25));
        // And others get their quarter of a table that preferred owners have filled.
        let mut shares = PreferredShares::default();
        push(&mut shares, (9, true), 100, 100);
        push(&mut shares, (1, false), 1000, 100);
        assert_eq!((shares.count(9), shares.count(1)), (75, 25));
    }

    #[test]
    fn the_newest_entry_of_the_largest_gives_way() {
        let mut shares = PreferredShares::default();
        for (owner, entry) in [(1, 10), (1, 20), (2, 30)] {
            shares.add(false, owner, 1, entry);
        }
        assert_eq!(displaced(&shares, 3, false, false, 3), Some((1, 20)));
        shares.regroup(1, true);
        assert_eq!(displaced(&shares, 2, false, true, 8), Some((1, 20)));
    }
}
