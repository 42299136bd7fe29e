//! Decisions of the caller about delivered messages, and messages of this node to itself.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::message::{ChunkLayout, Status};

use super::admission::rejection;
use super::receive::Opening;
use super::{Bus, Timer};
use crate::incoming::Stage;
use crate::transfer::TransferKey;
use crate::transfers::TransferRef;
use crate::{AbortReason, DeliveryKey, Event, Inbound, Refuse, Rejection};

impl Bus {
    /// A delivered message is stored (durably, where that was promised). Acknowledges it at once, a reply within
    /// `ACK_DELAY`.
    pub fn accepted(&mut self, now: Nanos, key: DeliveryKey) {
        self.accept(now, key, key.reply);
    }

    /// As [`Self::accepted`], for a message that is likely to be answered soon: the ack waits for the reply, at most
    /// `ACK_DELAY`.
    pub fn accepted_for_reply(&mut self, now: Nanos, key: DeliveryKey) {
        self.accept(now, key, true);
    }

    fn accept(&mut self, now: Nanos, key: DeliveryKey, delay: bool) {
        if self.decide(now, key, Status::Received, delay) {
            self.stats.accepted += 1;
            if key.reply {
                self.forget_pending_reply(key.id);
            }
        }
    }

    /// A delivered message is not stored.
    pub fn refused(&mut self, now: Nanos, key: DeliveryKey, refuse: Refuse) {
        match refuse {
            Refuse::Rejected => {
                let topic = self.incoming.get(&key).map(|i| i.topic.clone());
                // The caller that waited for a refused reply may have disconnected.
                let (status, rejection) = if key.reply {
                    (Status::Late, Rejection::Late)
                } else {
                    (Status::Forbidden, Rejection::Forbidden)
                };
                if self.decide(now, key, status, false) {
                    self.count_rejection(rejection, &topic.unwrap_or_default());
                }
            }
            Refuse::Full => {
                let found = self.incoming.get(&key);
                let Some(incoming) = found.filter(|i| i.stage == Stage::Delivered) else {
                    return;
                };
                let (address, sequence) = (incoming.address, incoming.sequence);
                self.drop_incoming(key);
                if key.peer == self.config.key {
                    self.stats.deferred += 1;
                    if let Some(own) = self.own_transfer(key) {
                        self.defer(now, own, Duration::ZERO);
                    }
                } else {
                    self.defer_sender(key, address);
                    self.send_status(key, address, sequence, Status::Full);
                }
            }
        }
    }

    fn decide(&mut self, now: Nanos, key: DeliveryKey, status: Status, delay: bool) -> bool {
        let found = self.incoming.get(&key);
        let Some(incoming) = found.filter(|i| i.stage == Stage::Delivered) else {
            return false;
        };
        let (address, sequence) = (incoming.address, incoming.sequence);
        let (received_at, single) = (incoming.progress_at, incoming.is_single());
        self.drop_incoming(key);
        if key.peer == self.config.key {
            let reason = rejection(status).map(AbortReason::Rejected);
            if let Some(own) = self.own_transfer(key) {
                self.finish(now, own, reason);
            }
            return true;
        }
        self.completed.insert(now, key, status);
        let batched = status == Status::Received
            && single
            && self.send_batch_ack(key.peer, address, (sequence, received_at), delay);
        if !batched {
            self.send_status(key, address, sequence, status);
        }
        true
    }

    /// Delivers a message to this node itself.
    pub(super) fn deliver_own(&mut self, now: Nanos, of: TransferRef) {
        let Some(own) = self.transfers.get(of) else {
            return;
        };
        let TransferKey { id, reply, .. } = own.name;
        let (payload, digest, topic) = (own.payload.clone(), own.digest, own.topic.clone());
        let failure = own.failure;
        let (peer, address) = (self.config.key, self.address);
        let key = DeliveryKey { peer, id, reply };
        if let Some(pending) = self.pending_replies.get_mut(&id).filter(|_| !reply) {
            pending.key = Some(peer);
        }
        let opening = Opening {
            sequence: 0,
            layout: ChunkLayout {
                len: payload.len(),
                first: payload.len(),
                chunk: usize::from(u16::MAX),
            },
            // Not verified: the payload itself is delivered.
            digest: &[0; 32],
            topic: topic.as_bytes(),
        };
        match self.open(now, key, address, &opening) {
            Ok(()) => {
                if let Some(incoming) = self.incoming.get_mut(&key) {
                    incoming.take_payload();
                }
                self.timers.set(Timer::Incoming(key), Nanos::NEVER);
                self.events.push_back(Event::Deliver(Inbound {
                    id,
                    reply,
                    source_key: peer,
                    source_address: address,
                    topic,
                    payload,
                    digest,
                    failure,
                }));
            }
            Err(status) => {
                if let Some(rejection) = rejection(status) {
                    self.count_rejection(rejection, &topic);
                    self.finish(now, of, Some(AbortReason::Rejected(rejection)));
                } else {
                    self.stats.deferred += 1;
                    self.defer(now, of, Duration::ZERO);
                }
            }
        }
    }

    /// The outgoing side of a message to this node itself.
    fn own_transfer(&self, key: DeliveryKey) -> Option<TransferRef> {
        self.transfers.live(TransferKey {
            id: key.id,
            reply: key.reply,
            subnet: self.address.subnet_id(),
        })
    }
}
