//! Senders that were told to wait for room, in order. None has more than a share of the places; who has none tries
//! again by itself, later.

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;
use hyphae_wire::{OverlayAddress, PublicKey};

use crate::DeliveryKey;

const MAX: usize = 4096;
const PER_PEER_MAX: usize = 512;

#[derive(Default)]
pub(crate) struct Held {
    order: BTreeMap<u64, (DeliveryKey, OverlayAddress)>,
    places: HashMap<DeliveryKey, u64, RandomState>,
    peers: HashMap<PublicKey, usize, RandomState>,
    next: u64,
}

impl Held {
    /// Remembers a message once, if there is a place.
    pub(crate) fn insert(&mut self, key: DeliveryKey, address: OverlayAddress) {
        if self.order.len() >= MAX || self.places.contains_key(&key) {
            return;
        }
        let count = self.peers.entry(key.peer).or_default();
        if *count < PER_PEER_MAX {
            *count += 1;
            self.places.insert(key, self.next);
            self.order.insert(self.next, (key, address));
            self.next += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: &DeliveryKey) {
        if let Some(place) = self.places.remove(key) {
            self.order.remove(&place);
            self.leave(key.peer);
        }
    }

    fn leave(&mut self, peer: PublicKey) {
        if let Some(count) = self.peers.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&peer);
            }
        }
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<(DeliveryKey, OverlayAddress)> {
        let (_, (key, address)) = self.order.pop_first()?;
        self.places.remove(&key);
        self.leave(key.peer);
        Some((key, address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;

    #[test]
    fn a_peer_has_a_share_of_the_places_and_order_is_kept() {
        let mut held = Held::default();
        let key = |peer: u8, id: u64| DeliveryKey {
            peer: PublicKey([peer; 32]),
            id: MessageId(id.to_be_bytes()),
            reply: false,
        };
        let address = OverlayAddress::default();
        (0..100_000).for_each(|id| held.insert(key(1, id), address));
        (0..3).for_each(|_| held.insert(key(2, 7), address));
        held.remove(&key(1, 0));
        held.remove(&key(1, 0));
        let order: Vec<_> = std::iter::from_fn(|| held.pop())
            .map(|(key, _)| key)
            .collect();
        assert_eq!(order.len(), PER_PEER_MAX);
        assert_eq!(
            (order.first(), order.last()),
            (Some(&key(1, 1)), Some(&key(2, 7)))
        );
        assert!(held.places.is_empty() && held.peers.is_empty());
    }
}
