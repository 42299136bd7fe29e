//! Acks of incoming messages: at once for chunks, delayed and in batches for messages of one packet.

use std::collections::btree_map::Entry;

use hyphae_time::Nanos;
use hyphae_wire::message::Status;
use hyphae_wire::{OverlayAddress, PublicKey};

use super::control::ControlPacket;
use super::{Bus, Timer};
use crate::DeliveryKey;
use crate::batch_ack::{ACK_DELAY, AckBatcher};

/// Peers with a batcher.
const BATCHERS_MAX: usize = 16_384;

impl Bus {
    /// Delays the ack of a message of one packet until its final status, at most [`ACK_DELAY`]; false when it must
    /// be sent now.
    pub(super) fn delay_ack(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        address: OverlayAddress,
        sequence: u64,
    ) -> bool {
        let Some(batcher) = self.batcher(key.peer, address) else {
            return false;
        };
        if !batcher.insert(now, sequence, key) {
            return false;
        }
        if !std::mem::replace(&mut batcher.timer_set, true) {
            self.timers.set(Timer::BatchAck(key.peer), now + ACK_DELAY);
        }
        true
    }

    /// The batcher of a peer; `None` when the table is full.
    fn batcher(&mut self, peer: PublicKey, address: OverlayAddress) -> Option<&mut AckBatcher> {
        if self.batchers.len() >= BATCHERS_MAX && !self.batchers.contains_key(&peer) {
            // One sweep per BATCHERS_MAX failures: constant cost, amortised.
            match self.batcher_sweep_in.checked_sub(1) {
                Some(less) => self.batcher_sweep_in = less,
                None => {
                    self.batcher_sweep_in = BATCHERS_MAX;
                    self.batchers
                        .retain(|_, batcher| batcher.queued || batcher.due().is_some());
                }
            }
        }
        let room = self.batchers.len() < BATCHERS_MAX;
        match self.batchers.entry(peer) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) if room => Some(entry.insert(AckBatcher::new(address))),
            Entry::Vacant(_) => None,
        }
    }

    /// Acknowledges messages whose final status takes longer than [`ACK_DELAY`] as received.
    pub(super) fn batch_ack_due(&mut self, now: Nanos, peer: PublicKey) {
        let Some(batcher) = self.batchers.get_mut(&peer) else {
            return;
        };
        let Some(due) = batcher.due() else {
            batcher.timer_set = false;
            return;
        };
        // The queue may be full, and one packet may not hold all of them.
        let again = if due <= now { now + ACK_DELAY } else { due };
        self.timers.set(Timer::BatchAck(peer), again);
        if due <= now {
            self.queue_batch_ack(peer);
        }
    }

    fn queue_batch_ack(&mut self, peer: PublicKey) {
        if let Some(batcher) = self.batchers.get_mut(&peer)
            && !std::mem::replace(&mut batcher.queued, true)
            && !self.queue_control(ControlPacket::BatchAck(peer))
            && let Some(batcher) = self.batchers.get_mut(&peer)
        {
            batcher.queued = false;
        }
    }

    /// Acknowledges a stored message of one packet. `sequence` and `received_at` are those of its packet; `delay`
    /// waits for another packet to the same peer. False when there is no batcher for the peer.
    pub(super) fn send_batch_ack(
        &mut self,
        peer: PublicKey,
        address: OverlayAddress,
        (sequence, received_at): (u64, Nanos),
        delay: bool,
    ) -> bool {
        let Some(batcher) = self.batcher(peer, address) else {
            return false;
        };
        batcher.on_stored(sequence, received_at);
        if !(delay && batcher.can_delay(sequence)) {
            self.queue_batch_ack(peer);
        }
        true
    }

    /// Queues one ack for all chunks received since the last.
    pub(super) fn queue_progress(&mut self, key: DeliveryKey, sequence: u64) {
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        if !incoming.note_queued(sequence) {
            incoming.ack_queued = true;
            if !self.queue_control(ControlPacket::Progress(key))
                && let Some(incoming) = self.incoming.get_mut(&key)
            {
                incoming.ack_queued = false;
            }
        }
    }

    pub(super) fn send_status(
        &mut self,
        key: DeliveryKey,
        address: OverlayAddress,
        sequence: u64,
        status: Status,
    ) {
        if key.peer != self.config.key {
            self.queue_control(ControlPacket::Status {
                address,
                key,
                sequence,
                status,
            });
        }
    }
}
