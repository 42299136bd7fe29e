//! Deferred senders, to be resumed in order. When the table is full, the newest entry of the largest holder is evicted
//! in favour of a peer with fewer. Senders without an entry retry by timeout.

use std::collections::HashMap;

use ahash::RandomState;
use hyphae_shares::{ShareTable, Ticket};
use hyphae_wire::{OverlayAddress, PublicKey};

use crate::DeliveryKey;

const MAX: usize = 4096;
const PER_PEER_MAX: usize = 512;

#[derive(Default)]
pub(crate) struct DeferredSenders {
    table: ShareTable<(), PublicKey, (DeliveryKey, OverlayAddress)>,
    tickets: HashMap<DeliveryKey, Ticket, RandomState>,
}

impl DeferredSenders {
    /// Adds a message, if it is new and there is room for its peer.
    pub(crate) fn insert(&mut self, key: DeliveryKey, address: OverlayAddress) {
        let count = self.table.count(key.peer);
        if self.tickets.contains_key(&key) || count >= PER_PEER_MAX {
            return;
        }
        if self.table.len() >= MAX && !self.evict(count + 1) {
            return;
        }
        let ticket = self.table.add((), key.peer, 1, (key, address));
        self.tickets.insert(key, ticket);
    }

    /// Evicts the newest entry of the largest holder, if that has more than `count`.
    fn evict(&mut self, count: usize) -> bool {
        let largest = self.table.largest();
        let Some(victim) = largest.filter(|peer| self.table.count(*peer) > count) else {
            return false;
        };
        let newest = self.table.entries(victim).next_back();
        let newest = newest.map(|(_, (key, _))| *key);
        newest.is_some_and(|key| self.remove(&key).is_some())
    }

    pub(crate) fn remove(&mut self, key: &DeliveryKey) -> Option<(DeliveryKey, OverlayAddress)> {
        let ticket = self.tickets.remove(key)?;
        self.table.remove(key.peer, ticket)
    }

    /// Removes the oldest entry.
    pub(crate) fn pop(&mut self) -> Option<(DeliveryKey, OverlayAddress)> {
        let (_, _, &(key, _)) = self.table.oldest()?;
        self.remove(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;
    use crate::types::key_of_test as key;

    #[test]
    fn a_full_table_evicts_from_the_largest_holder() {
        let (mut deferred, address) = (DeferredSenders::default(), OverlayAddress::default());
        for peer in 1..=8 {
            (0..512).for_each(|id| deferred.insert(key(peer, id), address));
        }
        (0..512).for_each(|id| deferred.insert(key(9, id), address));
        let mut counts = [0; 10];
        assert_eq!(deferred.table.len(), MAX);
        // The oldest of each stay, in order.
        let mut next = [0; 10];
        for (key, _) in std::iter::from_fn(|| deferred.pop()) {
            let peer = usize::from(key.peer.0[0]);
            counts[peer] += 1;
            assert_eq!(key.id, MessageId(u64::to_be_bytes(next[peer])));
            next[peer] += 1;
        }
        let shares = counts[1..].iter();
        assert!(
            shares.clone().all(|share| (454..=456).contains(share)),
            "{counts:?}"
        );
        assert!(deferred.table.is_empty() && deferred.tickets.is_empty());
    }

    #[test]
    fn a_peer_has_a_bounded_share_in_order_of_insertion() {
        let mut deferred = DeferredSenders::default();
        let address = OverlayAddress::default();
        (0..100_000).for_each(|id| deferred.insert(key(1, id), address));
        (0..3).for_each(|_| deferred.insert(key(2, 7), address));
        deferred.remove(&key(1, 0));
        deferred.remove(&key(1, 0));
        let order: Vec<_> = std::iter::from_fn(|| deferred.pop())
            .map(|(key, _)| key)
            .collect();
        assert_eq!(order.len(), PER_PEER_MAX);
        assert_eq!(
            (order.first(), order.last()),
            (Some(&key(1, 1)), Some(&key(2, 7)))
        );
        assert!(deferred.table.is_empty() && deferred.tickets.is_empty());
    }
}
