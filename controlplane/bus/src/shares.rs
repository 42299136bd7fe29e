//! What each peer has under way, and who has most of it.
//!
//! A weight is the larger share of the two limits, messages and bytes, in 65,536ths. Peers with a thousandth of
//! the table or more are in a bucket by the power of two of their weight, so the heaviest is found, within a factor
//! of two, without looking at the others, and a message that comes and goes moves nobody.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;
use hyphae_time::Nanos;

use hyphae_wire::PublicKey;

use crate::oldest::Oldest;
use crate::{Config, DeliveryKey, Room};

const WHOLE: usize = 1 << 16;
/// The lightest that count: a thousandth.
const BUCKET_MIN: u32 = 6;
const BUCKETS: usize = 11;

pub(crate) struct Shares {
    messages_max: usize,
    bytes_max: usize,
    peers: HashMap<PublicKey, Share, RandomState>,
    buckets: [BTreeSet<PublicKey>; BUCKETS],
}

#[derive(Debug)]
struct Share {
    held: Room,
    /// Messages of several packets, by when the last of them came.
    partial: Oldest,
}

impl Shares {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            messages_max: config.incoming_max.max(1),
            bytes_max: config.incoming_bytes_max.max(1),
            peers: HashMap::default(),
            buckets: Default::default(),
        }
    }

    /// What a peer has under way.
    pub(crate) fn of(&self, peer: &PublicKey) -> Room {
        self.peers.get(peer).map_or(Room::NONE, |share| share.held)
    }

    pub(crate) fn weight(&self, held: Room) -> usize {
        let of = |held: usize, max: usize| held.saturating_mul(WHOLE) / max;
        of(held.messages, self.messages_max).max(of(held.bytes, self.bytes_max))
    }

    fn bucket(&self, held: Room) -> Option<usize> {
        let power = self.weight(held).checked_ilog2()?;
        let bucket = usize::try_from(power.checked_sub(BUCKET_MIN)?).ok()?;
        Some(bucket.min(BUCKETS - 1))
    }

    pub(crate) fn add(&mut self, peer: PublicKey, cost: usize) {
        self.change(peer, |held| Room {
            messages: held.messages + 1,
            bytes: held.bytes + cost,
        });
    }

    pub(crate) fn remove(&mut self, peer: PublicKey, cost: usize) {
        self.change(peer, |held| Room {
            messages: held.messages.saturating_sub(1),
            bytes: held.bytes.saturating_sub(cost),
        });
        if self.of(&peer).messages == 0 {
            self.peers.remove(&peer);
        }
    }

    fn change(&mut self, peer: PublicKey, to: impl Fn(Room) -> Room) {
        let share = self.peers.entry(peer).or_insert_with(|| Share {
            held: Room::NONE,
            partial: Oldest::default(),
        });
        let before = share.held;
        share.held = to(before);
        let after = share.held;
        let (old, new) = (self.bucket(before), self.bucket(after));
        if old != new {
            let at = |bucket: Option<usize>| bucket.filter(|bucket| *bucket < BUCKETS);
            at(old).map(|old| self.buckets[old].remove(&peer));
            at(new).map(|new| self.buckets[new].insert(peer));
        }
    }

    /// A message of several packets has begun.
    pub(crate) fn begin(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        time: impl Fn(&DeliveryKey) -> Option<Nanos>,
    ) {
        if let Some(share) = self.peers.get_mut(&key.peer) {
            share.partial.push(now, key, share.held.messages, time);
        }
    }

    /// Of the peer with most, the message that has been silent longest.
    pub(crate) fn heaviest(
        &mut self,
        time: impl Fn(&DeliveryKey) -> Option<Nanos>,
    ) -> Option<DeliveryKey> {
        let peer = *self.buckets.iter().rev().find_map(BTreeSet::first)?;
        let share = self.peers.get_mut(&peer)?;
        share.partial.pop(Nanos::NEVER, time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;

    #[test]
    fn the_heaviest_by_messages_or_by_bytes_is_found() {
        let config = Config {
            incoming_max: 1000,
            incoming_bytes_max: 1_000_000,
            ..Config::new(PublicKey([0; 32]))
        };
        let mut shares = Shares::new(&config);
        let key = |peer: u8, id: u8| DeliveryKey {
            peer: PublicKey([peer; 32]),
            id: MessageId([id; 8]),
            reply: false,
        };
        let begin = |shares: &mut Shares, of: DeliveryKey, cost| {
            shares.add(of.peer, cost);
            shares.begin(Nanos(u64::from(of.id.0[0])), of, |_| Some(Nanos(0)));
        };
        (0..100).for_each(|id| begin(&mut shares, key(1, id), 10));
        begin(&mut shares, key(2, 7), 300_000);
        let time = |_: &DeliveryKey| Some(Nanos(0));
        assert_eq!(shares.heaviest(time), Some(key(2, 7)), "by bytes");
        shares.remove(PublicKey([2; 32]), 300_000);
        assert_eq!(shares.heaviest(time), Some(key(1, 0)), "by messages");
        assert_eq!(shares.heaviest(time), Some(key(1, 1)), "the oldest first");
        (0..100).for_each(|_| shares.remove(PublicKey([1; 32]), 10));
        assert_eq!(shares.heaviest(time), None);
        assert!(shares.peers.is_empty() && shares.buckets.iter().all(BTreeSet::is_empty));
    }
}
