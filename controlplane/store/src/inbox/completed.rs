//! Rows of message ids in the file, by sender and age.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;
use hyphae_wire::PublicKey;

/// Rows of the ids of each sender.
#[derive(Default)]
pub(super) struct Completed {
    senders: HashMap<PublicKey, Rows, RandomState>,
    /// Rows with ids of several senders, as earlier versions wrote them: number of senders with remembered ids.
    pub(super) shared: HashMap<u64, usize, RandomState>,
}

#[derive(Default)]
struct Rows {
    /// Rows and their number of ids, oldest first.
    rows: VecDeque<(u64, usize)>,
    /// Ids of the oldest row that are forgotten.
    forgotten: usize,
}

impl Completed {
    pub(super) fn add(&mut self, sender: PublicKey, row: u64, count: usize) {
        let of = self.senders.entry(sender).or_default();
        of.rows.push_back((row, count));
    }

    /// Forgets the oldest ids of a sender; returns the rows without remembered ids.
    pub(super) fn forget(&mut self, sender: PublicKey, count: usize) -> Vec<u64> {
        let mut empty = Vec::new();
        let Some(of) = self.senders.get_mut(&sender) else {
            return empty;
        };
        of.forgotten += count;
        while let Some((row, count)) = of.rows.front().copied()
            && count <= of.forgotten
        {
            of.rows.pop_front();
            of.forgotten -= count;
            let left = self.shared.get_mut(&row).map_or(0, |others| {
                *others -= 1;
                *others
            });
            if left == 0 {
                self.shared.remove(&row);
                empty.push(row);
            }
        }
        if of.rows.is_empty() {
            self.senders.remove(&sender);
        }
        empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_with_ids_of_several_senders_goes_with_the_last_of_them() {
        let mut completed = Completed::default();
        let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
        completed.add(a, 7, 2);
        completed.add(b, 7, 1);
        completed.shared.insert(7, 2);
        completed.add(a, 9, 3);
        assert_eq!(completed.forget(a, 4), [0; 0], "the other has one in it");
        assert_eq!(completed.forget(b, 1), [7]);
        assert_eq!(completed.forget(a, 1), [9]);
        assert!(completed.senders.is_empty() && completed.shared.is_empty());
    }
}
