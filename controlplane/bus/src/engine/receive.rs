//! Packets of incoming messages: opening, reassembly, delivery.

use hyphae_time::Nanos;
use hyphae_wire::OverlayAddress;
use hyphae_wire::message::{Body, ChunkLayout, Packet, Status};

use super::{Bus, Timer};
use crate::incoming::{ChunkResult, Incoming, Stage};
use crate::topics::TopicClass;
use crate::{DeliveryKey, Event, Inbound, Rejection, Topic};

/// Bytes of the longest call on the topic of administration.
const ADMIN_MAX: usize = 1 << 20;

/// Fields of an opening packet.
pub(super) struct Opening<'a> {
    pub(super) sequence: u64,
    pub(super) layout: ChunkLayout,
    pub(super) digest: &'a [u8; 32],
    pub(super) topic: &'a [u8],
}

impl Bus {
    pub(super) fn receive(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        address: OverlayAddress,
        packet: &Packet<'_>,
    ) {
        let sequence = packet.sequence;
        // First, because most packets are chunks of long messages.
        if let Body::Data { number, data } = packet.body
            && self.handle_chunk(now, key, sequence, number, data)
        {
            return;
        }
        if let Some(status) = self.completed.get(&key) {
            if let Body::Open { .. } = packet.body {
                self.stats.duplicates += 1;
            }
            if !matches!(packet.body, Body::Abort) {
                self.send_status(key, address, sequence, status);
            }
            return;
        }
        match packet.body {
            Body::Open {
                layout,
                digest,
                topic,
                failure,
                data,
            } => {
                let opening = Opening {
                    sequence,
                    layout,
                    digest,
                    topic,
                };
                if let Err(status) = self.open(now, key, address, &opening) {
                    self.refuse_opening(key, address, sequence, status, topic);
                    return;
                }
                if let Some(incoming) = self.incoming.get_mut(&key) {
                    incoming.failure = failure;
                }
                self.handle_chunk(now, key, sequence, 0, data);
            }
            Body::Data { .. } => self.send_status(key, address, sequence, Status::Unknown),
            Body::Query => {
                if self.incoming.contains_key(&key) {
                    self.queue_progress(key, sequence);
                } else {
                    self.send_status(key, address, sequence, Status::Unknown);
                }
            }
            Body::Abort => {
                let found = self.incoming.get(&key);
                if found.is_some_and(|incoming| incoming.stage == Stage::Partial) {
                    self.drop_incoming(key);
                }
                self.deferred.remove(&key);
            }
            Body::Ack { .. } | Body::Read { .. } | Body::ReadAck | Body::BatchAck { .. } => {}
        }
    }

    /// Opens a message. An opening with a newer number and another layout restarts it: the sender has learnt
    /// another path MTU.
    pub(super) fn open(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        address: OverlayAddress,
        opening: &Opening<'_>,
    ) -> Result<(), Status> {
        let &Opening {
            sequence,
            layout,
            digest,
            topic,
        } = opening;
        if let Some(known) = self.incoming.get_mut(&key) {
            let same = known.layout.len == layout.len
                && known.digest == *digest
                && known.topic.as_bytes() == topic;
            if !same {
                return Err(Status::Malformed);
            }
            let partial = known.stage == Stage::Partial;
            if partial && known.layout != layout && sequence > known.opened_by {
                let topic = known.topic.clone();
                let mut restarted = Incoming::new(now, address, topic, layout, *digest);
                (restarted.opened_by, restarted.sequence) = (sequence, known.sequence);
                restarted.ack_queued = known.ack_queued;
                **known = restarted;
            }
            return Ok(());
        }
        if self.last_topic.as_bytes() != topic {
            self.last_topic = Topic::new(topic.to_vec()).map_err(|_| Status::Malformed)?;
        }
        let topic = self.last_topic.clone();
        if key.reply {
            self.check_pending_reply(key)?;
        } else {
            let access = self.topics.access(&topic, &key.peer, address);
            if !access.allowed {
                return Err(Status::Forbidden);
            }
            if access.class == TopicClass::Reserved && layout.len > ADMIN_MAX {
                return Err(Status::Malformed);
            }
        }
        self.check_room(now, key, &topic, layout.len)?;
        let mut incoming = Incoming::new(now, address, topic, layout, *digest);
        incoming.opened_by = sequence;
        self.insert_incoming(now, key, incoming);
        Ok(())
    }

    fn insert_incoming(&mut self, now: Nanos, key: DeliveryKey, incoming: Incoming) {
        self.incoming_bytes += incoming.cost();
        self.usage.add(key.peer, incoming.cost());
        // A single packet completes its message, which needs no idle timeout.
        let single = incoming.is_single();
        self.incoming.insert(key, Box::new(incoming));
        if !single {
            let at = now + self.config.incoming_idle;
            self.timers.set(Timer::Incoming(key), at);
            let age = |key: &DeliveryKey| Incoming::idle_since(&self.incoming, key);
            self.partial.push(now, key, self.incoming.len(), age);
            self.usage.track_partial(now, key, age);
        }
    }

    /// Handles a chunk; false when the message is not open.
    fn handle_chunk(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        sequence: u64,
        number: u32,
        data: &[u8],
    ) -> bool {
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return false;
        };
        if sequence < incoming.opened_by {
            return true;
        }
        match incoming.insert(now, number, data, &self.config.pool) {
            ChunkResult::Invalid => {
                self.stats.malformed += 1;
                // It has no idle timeout.
                if incoming.is_single() && incoming.stage == Stage::Partial {
                    self.drop_incoming(key);
                    return true;
                }
            }
            ChunkResult::Duplicate | ChunkResult::Stored => {
                if incoming.note_queued(sequence) {
                    return true;
                }
            }
            ChunkResult::Complete { valid: true } => {
                if self.deliver(now, key, sequence) {
                    return true;
                }
            }
            ChunkResult::Complete { valid: false } => {
                let class = self.topics.class(&incoming.topic);
                let entry = self.stats.rejected.entry((Rejection::Malformed, class));
                *entry.or_default() += 1;
                let address = incoming.address;
                self.drop_incoming(key);
                self.completed.insert(now, key, Status::Malformed);
                self.send_status(key, address, sequence, Status::Malformed);
                return true;
            }
        }
        self.queue_progress(key, sequence);
        true
    }

    /// Delivers a complete message; true when its acknowledgement is delayed.
    fn deliver(&mut self, now: Nanos, key: DeliveryKey, sequence: u64) -> bool {
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return false;
        };
        let address = incoming.address;
        let inbound = Inbound {
            id: key.id,
            reply: key.reply,
            source_key: key.peer,
            source_address: address,
            topic: incoming.topic.clone(),
            payload: incoming.take_payload(),
            digest: incoming.digest,
            failure: incoming.failure,
        };
        let single = incoming.is_single();
        incoming.sequence = sequence;
        self.events.push_back(Event::Deliver(inbound));
        if single && self.delay_ack(now, key, address, sequence) {
            return true;
        }
        self.timers.set(Timer::Incoming(key), Nanos::NEVER);
        false
    }

    /// Drops a partial message after [`crate::Config::incoming_idle`] without progress.
    pub(super) fn incoming_due(&mut self, now: Nanos, key: DeliveryKey) {
        let found = self.incoming.get(&key);
        let Some(incoming) = found.filter(|incoming| incoming.stage == Stage::Partial) else {
            return;
        };
        let at = incoming.progress_at + self.config.incoming_idle;
        if at <= now {
            self.stats.expired += 1;
            self.drop_incoming(key);
        } else {
            self.timers.set(Timer::Incoming(key), at);
        }
    }

    pub(super) fn drop_incoming(&mut self, key: DeliveryKey) {
        let Some(incoming) = self.incoming.remove(&key) else {
            return;
        };
        if !incoming.is_single() {
            self.timers.set(Timer::Incoming(key), Nanos::NEVER);
        }
        let cost = incoming.cost();
        self.incoming_bytes -= cost;
        self.usage.remove(key.peer, cost);
    }
}
