//! Which incoming messages have been decided, so that a late copy is answered and not delivered.
//!
//! Bounded. When it is full, the peer with the most entries loses its oldest one: a peer that sends
//! without end can only make the node forget its own messages.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use ahash::RandomState;
use hyphae_wire::message::Status;
use hyphae_wire::{Nanos, PublicKey};

use crate::DeliveryKey;
use crate::config::TRY_DURATION_MAX;

pub(crate) struct Completed {
    max: usize,
    entries: HashMap<DeliveryKey, Status, RandomState>,
    by_peer: BTreeMap<PublicKey, VecDeque<(Nanos, DeliveryKey)>>,
    by_count: BTreeSet<(usize, PublicKey)>,
}

impl Completed {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            entries: HashMap::default(),
            by_peer: BTreeMap::new(),
            by_count: BTreeSet::new(),
        }
    }

    pub(crate) fn get(&self, key: &DeliveryKey) -> Option<Status> {
        self.entries.get(key).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn insert(&mut self, now: Nanos, key: DeliveryKey, status: Status) {
        if self.entries.insert(key, status).is_some() {
            return;
        }
        let queue = self.by_peer.entry(key.peer).or_default();
        self.by_count.remove(&(queue.len(), key.peer));
        queue.push_back((now, key));
        while let Some((at, old)) = queue.front().copied()
            && now.since(at) > TRY_DURATION_MAX
        {
            queue.pop_front();
            self.entries.remove(&old);
        }
        self.by_count.insert((queue.len(), key.peer));
        while self.entries.len() > self.max {
            self.drop_oldest_of_largest();
        }
    }

    fn drop_oldest_of_largest(&mut self) {
        let Some((count, peer)) = self.by_count.pop_last() else {
            return;
        };
        let Some(queue) = self.by_peer.get_mut(&peer) else {
            return;
        };
        if let Some((_, old)) = queue.pop_front() {
            self.entries.remove(&old);
        }
        if count > 1 {
            self.by_count.insert((count - 1, peer));
        } else {
            self.by_peer.remove(&peer);
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
    fn item_07_a_busy_peer_displaces_only_its_own() {
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
    fn old_entries_go() {
        let mut completed = Completed::new(100);
        completed.insert(Nanos(0), key(1, 1), Status::Received);
        let later = Nanos(1) + TRY_DURATION_MAX;
        completed.insert(later, key(1, 2), Status::Received);
        assert_eq!(completed.len(), 1);
        assert_eq!(completed.get(&key(1, 2)), Some(Status::Received));
    }
}
