//! Use of the budgets of incoming messages by each peer.
//!
//! A weight is the larger share of the two limits, messages and bytes, in 65,536ths. Peers with a thousandth of a limit
//! or more are in a bucket by the power of two of their weight. The largest user is found within a factor of two in
//! constant time, and a short message rarely moves its peer to another bucket.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;
use hyphae_time::Nanos;

use hyphae_wire::PublicKey;

use crate::age_queue::AgeQueue;
use crate::{Config, DeliveryKey, Room};

const WEIGHT_MAX: usize = 1 << 16;
/// Power of two of the least weight in a bucket: a thousandth.
const BUCKET_MIN: u32 = 6;
const BUCKETS: usize = 11;

pub(crate) struct PeerUsage {
    messages_max: usize,
    bytes_max: usize,
    peers: HashMap<PublicKey, Usage, RandomState>,
    buckets: [BTreeSet<PublicKey>; BUCKETS],
}

#[derive(Debug)]
struct Usage {
    room: Room,
    /// Partial messages by the time of their last packet.
    partial: AgeQueue,
}

impl PeerUsage {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            messages_max: config.incoming_max.max(1),
            bytes_max: config.incoming_bytes_max.max(1),
            peers: HashMap::default(),
            buckets: Default::default(),
        }
    }

    /// Messages and bytes of a peer.
    pub(crate) fn of(&self, peer: &PublicKey) -> Room {
        self.peers.get(peer).map_or(Room::NONE, |usage| usage.room)
    }

    pub(crate) fn weight(&self, room: Room) -> usize {
        let of = |room: usize, max: usize| room.saturating_mul(WEIGHT_MAX) / max;
        of(room.messages, self.messages_max).max(of(room.bytes, self.bytes_max))
    }

    fn bucket(&self, room: Room) -> Option<usize> {
        let power = self.weight(room).checked_ilog2()?;
        let bucket = usize::try_from(power.checked_sub(BUCKET_MIN)?).ok()?;
        Some(bucket.min(BUCKETS - 1))
    }

    pub(crate) fn add(&mut self, peer: PublicKey, cost: usize) {
        self.change(peer, |room| Room {
            messages: room.messages + 1,
            bytes: room.bytes + cost,
        });
    }

    pub(crate) fn remove(&mut self, peer: PublicKey, cost: usize) {
        self.change(peer, |room| Room {
            messages: room.messages.saturating_sub(1),
            bytes: room.bytes.saturating_sub(cost),
        });
        if self.of(&peer).messages == 0 {
            self.peers.remove(&peer);
        }
    }

    fn change(&mut self, peer: PublicKey, to: impl Fn(Room) -> Room) {
        let usage = self.peers.entry(peer).or_insert_with(|| Usage {
            room: Room::NONE,
            partial: AgeQueue::default(),
        });
        let before = usage.room;
        usage.room = to(before);
        let after = usage.room;
        let (old, new) = (self.bucket(before), self.bucket(after));
        if old != new {
            let at = |bucket: Option<usize>| bucket.filter(|bucket| *bucket < BUCKETS);
            at(old).map(|old| self.buckets[old].remove(&peer));
            at(new).map(|new| self.buckets[new].insert(peer));
        }
    }

    /// Registers a partial message as a candidate for eviction.
    pub(crate) fn track_partial(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        time: impl Fn(&DeliveryKey) -> Option<Nanos>,
    ) {
        if let Some(usage) = self.peers.get_mut(&key.peer) {
            usage.partial.push(now, key, usage.room.messages, time);
        }
    }

    /// Takes the partial message of the largest user that has been idle longest.
    pub(crate) fn pop_oldest_of_largest(
        &mut self,
        time: impl Fn(&DeliveryKey) -> Option<Nanos>,
    ) -> Option<DeliveryKey> {
        let peer = *self.buckets.iter().rev().find_map(BTreeSet::first)?;
        let usage = self.peers.get_mut(&peer)?;
        usage.partial.pop(Nanos::NEVER, time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;

    #[test]
    fn finds_the_largest_user_by_messages_or_bytes() {
        let config = Config {
            incoming_max: 1000,
            incoming_bytes_max: 1_000_000,
            ..Config::new(PublicKey([0; 32]))
        };
        let mut usage = PeerUsage::new(&config);
        let key = |peer: u8, id: u8| DeliveryKey {
            peer: PublicKey([peer; 32]),
            id: MessageId([id; 8]),
            reply: false,
        };
        let begin = |usage: &mut PeerUsage, of: DeliveryKey, cost| {
            usage.add(of.peer, cost);
            usage.track_partial(Nanos(u64::from(of.id.0[0])), of, |_| Some(Nanos(0)));
        };
        (0..100).for_each(|id| begin(&mut usage, key(1, id), 10));
        begin(&mut usage, key(2, 7), 300_000);
        let time = |_: &DeliveryKey| Some(Nanos(0));
        assert_eq!(
            usage.pop_oldest_of_largest(time),
            Some(key(2, 7)),
            "by bytes"
        );
        usage.remove(PublicKey([2; 32]), 300_000);
        assert_eq!(
            usage.pop_oldest_of_largest(time),
            Some(key(1, 0)),
            "by messages"
        );
        assert_eq!(
            usage.pop_oldest_of_largest(time),
            Some(key(1, 1)),
            "the oldest first"
        );
        (0..100).for_each(|_| usage.remove(PublicKey([1; 32]), 10));
        assert_eq!(usage.pop_oldest_of_largest(time), None);
        assert!(usage.peers.is_empty() && usage.buckets.iter().all(BTreeSet::is_empty));
    }
}
