//! Admission of incoming messages: pending replies, inbox room, budgets, eviction, back-pressure.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::OverlayAddress;
use hyphae_wire::message::Status;

use super::Bus;
use crate::incoming::{Incoming, OVERHEAD};
use crate::{DeliveryKey, Rejection, Room, Topic};

/// Idle time after which a partial message of any sender may be evicted.
const STALE: Duration = Duration::from_secs(2);

pub(super) fn rejection(status: Status) -> Option<Rejection> {
    match status {
        Status::Forbidden => Some(Rejection::Forbidden),
        Status::Unasked => Some(Rejection::Unasked),
        Status::Late => Some(Rejection::Late),
        Status::Malformed => Some(Rejection::Malformed),
        Status::Progress | Status::Received | Status::Full | Status::Unknown | Status::Resume => {
            None
        }
    }
}

impl Bus {
    /// Checks that a reply is expected from this peer.
    pub(super) fn check_pending_reply(&self, key: DeliveryKey) -> Result<(), Status> {
        let pending = self.pending_replies.get(&key.id).ok_or(Status::Unasked)?;
        if pending.key != Some(key.peer) {
            return Err(Status::Unasked);
        }
        if pending.expired {
            Err(Status::Late)
        } else {
            Ok(())
        }
    }

    /// Checks room in the inbox and the budgets; evicts a partial message if the total budget is exhausted.
    pub(super) fn check_room(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        topic: &Topic,
        len: usize,
    ) -> Result<(), Status> {
        let forwarded = || {
            let config = self.topics.topics.get(topic);
            config.is_some_and(|config| config.forward_socket.is_some())
        };
        let inbox = !key.reply && !topic.is_admin() && !forwarded();
        if inbox && (self.room.messages == 0 || self.room.bytes < len) {
            return Err(Status::Full);
        }
        let cost = len + OVERHEAD;
        let usage = self.usage.of(&key.peer);
        if usage.messages >= self.config.incoming_per_peer_max
            || usage.bytes + cost > self.config.incoming_per_peer_bytes_max
        {
            return Err(Status::Full);
        }
        let exhausted = |bus: &Self| {
            bus.incoming.len() >= bus.config.incoming_max
                || bus.incoming_bytes + cost > bus.config.incoming_bytes_max
        };
        let wanted = Room {
            messages: usage.messages + 1,
            bytes: usage.bytes + cost,
        };
        // Under attack, or with very many senders.
        while exhausted(self) {
            let victim = self.victim(now, wanted).ok_or(Status::Full)?;
            self.drop_incoming(victim);
        }
        Ok(())
    }

    /// The partial message to evict for a peer that would then use `wanted`: the one idle longest, if for [`STALE`];
    /// else one of the largest user, if that still uses no less than `wanted` without it.
    fn victim(&mut self, now: Nanos, wanted: Room) -> Option<DeliveryKey> {
        let age = |key: &DeliveryKey| Incoming::idle_since(&self.incoming, key);
        let stale = u64::try_from(STALE.as_nanos()).unwrap_or(u64::MAX);
        if let Some(until) = now.0.checked_sub(stale)
            && let Some(stale) = self.partial.pop(Nanos(until), age)
        {
            self.stats.expired += 1;
            return Some(stale);
        }
        let found = self.usage.pop_oldest_of_largest(age)?;
        let usage = self.usage.of(&found.peer);
        let cost = self.incoming.get(&found).map_or(0, |it| it.cost());
        let left = Room {
            messages: usage.messages - 1,
            bytes: usage.bytes - cost,
        };
        if self.usage.weight(left) >= self.usage.weight(wanted) {
            self.stats.displaced += 1;
            return Some(found);
        }
        // Not evicted now; it stays a candidate.
        let at = age(&found)?;
        self.usage.track_partial(at, found, age);
        None
    }

    pub(super) fn refuse_opening(
        &mut self,
        key: DeliveryKey,
        address: OverlayAddress,
        sequence: u64,
        status: Status,
        topic: &[u8],
    ) {
        if let Some(rejection) = rejection(status) {
            let topic = Topic::new(topic.to_vec()).unwrap_or_default();
            self.count_rejection(rejection, &topic);
        } else {
            self.defer_sender(key, address);
        }
        self.send_status(key, address, sequence, status);
    }

    pub(super) fn count_rejection(&mut self, rejection: Rejection, topic: &Topic) {
        let class = self.topics.class(topic);
        *self.stats.rejected.entry((rejection, class)).or_default() += 1;
    }

    /// Registers a sender under back-pressure, to be resumed by [`Self::set_room`].
    pub(super) fn defer_sender(&mut self, key: DeliveryKey, address: OverlayAddress) {
        self.stats.deferred += 1;
        self.deferred.insert(key, address);
    }

    /// Sets the room left in the inbox. When it grows, resumes as many deferred senders as there is room for.
    pub fn set_room(&mut self, room: Room) {
        let more = room.messages > self.room.messages || room.bytes > self.room.bytes;
        self.room = room;
        if !more || room.bytes == 0 {
            return;
        }
        for _ in 0..room.messages {
            let Some((key, address)) = self.deferred.pop() else {
                break;
            };
            self.send_status(key, address, 0, Status::Resume);
        }
    }
}
