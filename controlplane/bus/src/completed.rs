//! Final statuses of incoming messages: a duplicate is acknowledged and not delivered again.
//!
//! Bounded. When the table is full, the oldest entry of a peer with more than an even share is evicted: a flooding peer
//! evicts only its own entries.

use std::collections::{BTreeMap, HashMap, VecDeque};

use ahash::RandomState;
use hyphae_time::Nanos;
use hyphae_wire::message::Status;

use hyphae_wire::PublicKey;

use crate::config::TRY_DURATION_MAX;
use crate::{DeliveryKey, MessageId};

pub(crate) struct Completed {
    max: usize,
    len: usize,
    peers: BTreeMap<PublicKey, Peer>,
    /// Peer of the last eviction; the next search starts there.
    evicted_peer: PublicKey,
}

#[derive(Default)]
struct Peer {
    statuses: HashMap<(MessageId, bool), Status, RandomState>,
    order: VecDeque<(Nanos, MessageId, bool)>,
}

impl Peer {
    fn drop_oldest(&mut self) {
        if let Some((_, id, reply)) = self.order.pop_front() {
            self.statuses.remove(&(id, reply));
        }
    }
}

impl Completed {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            len: 0,
            peers: BTreeMap::new(),
            evicted_peer: PublicKey([0; 32]),
        }
    }

    pub(crate) fn get(&self, key: &DeliveryKey) -> Option<Status> {
        let peer = self.peers.get(&key.peer)?;
        peer.statuses.get(&(key.id, key.reply)).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, now: Nanos, key: DeliveryKey, status: Status) {
        let peer = self.peers.entry(key.peer).or_default();
        if peer.statuses.insert((key.id, key.reply), status).is_some() {
            return;
        }
        peer.order.push_back((now, key.id, key.reply));
        self.len += 1;
        while let Some((at, ..)) = peer.order.front()
            && now.since(*at) > TRY_DURATION_MAX
        {
            peer.drop_oldest();
            self.len -= 1;
        }
        let own = peer.order.len();
        if self.len > self.max {
            let share = self.len / self.peers.len();
            self.evicted_peer = if own > share {
                key.peer
            } else {
                self.peer_above(share)
            };
            self.evict();
        }
    }

    /// A peer with at least an even share; by the pigeonhole principle one exists.
    fn peer_above(&self, share: usize) -> PublicKey {
        let behind = self.peers.range(self.evicted_peer..);
        let mut all = behind.chain(self.peers.range(..self.evicted_peer));
        let found = all.find(|(_, peer)| peer.order.len() >= share.max(1));
        found.map_or(self.evicted_peer, |(key, _)| *key)
    }

    fn evict(&mut self) {
        if let Some(peer) = self.peers.get_mut(&self.evicted_peer) {
            peer.drop_oldest();
            self.len -= 1;
            if peer.order.is_empty() {
                self.peers.remove(&self.evicted_peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::key_of_test as key;

    #[test]
    fn a_flooding_peer_evicts_only_its_own_entries() {
        let mut completed = Completed::new(100);
        for id in 0..10 {
            completed.insert(Nanos(0), key(1, id), Status::Received);
        }
        for id in 0..100_000 {
            completed.insert(Nanos(1), key(2, id), Status::Received);
        }
        assert_eq!(completed.len(), 100);
        assert!((0..10).all(|id| completed.get(&key(1, id)).is_some()));
        assert!(completed.get(&key(2, 99_999)).is_some() && completed.get(&key(2, 0)).is_none());
    }

    #[test]
    fn peers_with_an_even_share_keep_their_newest_entries() {
        let mut completed = Completed::new(100);
        for id in 0..1000 {
            for peer in 0..10 {
                completed.insert(Nanos(id), key(peer, id), Status::Received);
                assert!(completed.len() <= 100);
            }
        }
        let holds = |peer| completed.get(&key(peer, 999)).is_some();
        assert!((0..10).all(holds) && completed.peers.len() == 10);
        // A new peer gets its share.
        for id in 0..9 {
            completed.insert(Nanos(2000), key(77, id), Status::Received);
        }
        assert!((0..9).all(|id| completed.get(&key(77, id)).is_some()));
        assert_eq!(completed.len(), 100);
    }

    #[test]
    fn old_entries_expire() {
        let mut completed = Completed::new(100);
        completed.insert(Nanos(0), key(1, 1), Status::Received);
        let later = Nanos(1) + TRY_DURATION_MAX;
        completed.insert(later, key(1, 2), Status::Received);
        assert_eq!(completed.len(), 1);
        assert_eq!(completed.get(&key(1, 2)), Some(Status::Received));
    }
}
