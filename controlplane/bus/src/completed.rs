//! Which incoming messages have been decided, so that a late copy is answered and not delivered.
//!
//! Bounded. When it is full, whoever has more than an even share loses its oldest one: a peer that sends
//! without end can only make the node forget its own messages.

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
    /// Who lost one last in favour of another.
    loser: PublicKey,
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
            loser: PublicKey([0; 32]),
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
            self.loser = if own > share {
                key.peer
            } else {
                self.above(share)
            };
            self.drop_oldest_of_loser();
        }
    }

    /// Somebody with at least so many, from the last one who lost on; somebody has.
    fn above(&self, share: usize) -> PublicKey {
        let behind = self.peers.range(self.loser..);
        let mut all = behind.chain(self.peers.range(..self.loser));
        let found = all.find(|(_, peer)| peer.order.len() >= share.max(1));
        found.map_or(self.loser, |(key, _)| *key)
    }

    fn drop_oldest_of_loser(&mut self) {
        if let Some(peer) = self.peers.get_mut(&self.loser) {
            peer.drop_oldest();
            self.len -= 1;
            if peer.order.is_empty() {
                self.peers.remove(&self.loser);
            }
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
    fn a_busy_peer_displaces_only_its_own() {
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
    fn many_peers_with_an_even_share_each_keep_their_youngest() {
        let mut completed = Completed::new(100);
        for id in 0..1000 {
            for peer in 0..10 {
                completed.insert(Nanos(id), key(peer, id), Status::Received);
                assert!(completed.len() <= 100);
            }
        }
        let holds = |peer| completed.get(&key(peer, 999)).is_some();
        assert!((0..10).all(holds) && completed.peers.len() == 10);
        // A newcomer has room for its share, too.
        for id in 0..9 {
            completed.insert(Nanos(2000), key(77, id), Status::Received);
        }
        assert!((0..9).all(|id| completed.get(&key(77, id)).is_some()));
        assert_eq!(completed.len(), 100);
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
