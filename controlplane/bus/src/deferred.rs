//! Deferred senders, to be resumed in order. When the table is full, the newest entry of the largest holder is evicted
//! in favour of a peer with fewer. Senders without an entry retry by timeout.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ahash::RandomState;
use hyphae_wire::{OverlayAddress, PublicKey};

use crate::DeliveryKey;

const MAX: usize = 4096;
const PER_PEER_MAX: usize = 512;

#[derive(Default)]
pub(crate) struct DeferredSenders {
    order: BTreeMap<u64, (DeliveryKey, OverlayAddress)>,
    places: HashMap<DeliveryKey, u64, RandomState>,
    peers: HashMap<PublicKey, BTreeSet<u64>, RandomState>,
    /// Peers by number of entries.
    sizes: BTreeSet<(usize, PublicKey)>,
    next: u64,
}

impl DeferredSenders {
    /// Adds a message, if it is new and there is room for its peer.
    pub(crate) fn insert(&mut self, key: DeliveryKey, address: OverlayAddress) {
        let count = self.peers.get(&key.peer).map_or(0, BTreeSet::len);
        if self.places.contains_key(&key) || count >= PER_PEER_MAX {
            return;
        }
        if self.order.len() >= MAX && !self.evict(count + 1) {
            return;
        }
        let place = self.next;
        self.next += 1;
        self.order.insert(place, (key, address));
        self.places.insert(key, place);
        self.change(key.peer, |places| {
            places.insert(place);
        });
    }

    /// Evicts the newest entry of the largest holder, if that has more than `count`.
    fn evict(&mut self, count: usize) -> bool {
        let most = self.sizes.last().filter(|(most, _)| *most > count);
        let last = most.and_then(|(_, peer)| self.peers.get(peer)?.last().copied());
        last.is_some_and(|place| self.take(place).is_some())
    }

    pub(crate) fn remove(&mut self, key: &DeliveryKey) {
        if let Some(place) = self.places.get(key).copied() {
            self.take(place);
        }
    }

    /// Removes the oldest entry.
    pub(crate) fn pop(&mut self) -> Option<(DeliveryKey, OverlayAddress)> {
        let (place, _) = self.order.first_key_value()?;
        self.take(*place)
    }

    fn take(&mut self, place: u64) -> Option<(DeliveryKey, OverlayAddress)> {
        let (key, address) = self.order.remove(&place)?;
        self.places.remove(&key);
        self.change(key.peer, |places| {
            places.remove(&place);
        });
        Some((key, address))
    }

    fn change(&mut self, peer: PublicKey, change: impl FnOnce(&mut BTreeSet<u64>)) {
        let places = self.peers.entry(peer).or_default();
        self.sizes.remove(&(places.len(), peer));
        change(places);
        if places.is_empty() {
            self.peers.remove(&peer);
        } else {
            self.sizes.insert((places.len(), peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;

    fn key(peer: u8, id: u64) -> DeliveryKey {
        DeliveryKey {
            peer: PublicKey([peer; 32]),
            id: MessageId(id.to_be_bytes()),
            reply: false,
        }
    }

    #[test]
    fn a_full_table_evicts_from_the_largest_holder() {
        let (mut deferred, address) = (DeferredSenders::default(), OverlayAddress::default());
        for peer in 1..=8 {
            (0..512).for_each(|id| deferred.insert(key(peer, id), address));
        }
        (0..512).for_each(|id| deferred.insert(key(9, id), address));
        let mut counts = [0; 10];
        assert_eq!(deferred.order.len(), MAX);
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
        assert!(
            deferred.places.is_empty() && deferred.peers.is_empty() && deferred.sizes.is_empty()
        );
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
        assert!(deferred.places.is_empty() && deferred.peers.is_empty());
    }
}
