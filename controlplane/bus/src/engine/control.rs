//! Control packets: acks, queries, aborts, read receipts. They are queued as values and encoded when they are sent,
//! so one ack covers all that was received since the last.

use hyphae_time::Nanos;
use hyphae_wire::message::{Body, MESSAGE_HEADER_LEN, Packet, Status};
use hyphae_wire::{OverlayAddress, PublicKey};

use super::Bus;
use crate::receipts::ReceiptKey;
use crate::{DeliveryKey, MessageId, Transmit};

/// Id in packets about several messages.
pub(super) const NO_MESSAGE: MessageId = MessageId([0; 8]);

/// A packet without a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) enum ControlPacket {
    /// Received chunks of an incoming message.
    Progress(DeliveryKey),
    /// Acknowledgement of short messages of a peer.
    BatchAck(PublicKey),
    /// New read receipts.
    ReadReceipt(ReceiptKey),
    /// Retransmission of a read receipt.
    ReceiptRetry(u64),
    /// Ack that needs no state.
    Status {
        address: OverlayAddress,
        key: DeliveryKey,
        sequence: u64,
        status: Status,
    },
    /// Packet that is only a header.
    HeaderOnly {
        address: OverlayAddress,
        id: MessageId,
        reply: bool,
        sequence: u64,
        kind: HeaderOnly,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum HeaderOnly {
    Query,
    ReadAck,
    Abort,
}

impl Bus {
    /// Queues a control packet; false when the queue is full.
    pub(super) fn queue_control(&mut self, packet: ControlPacket) -> bool {
        let room = self.control.len() < self.config.control_max;
        if room {
            self.control.push_back(packet);
        } else {
            self.stats.control_dropped += 1;
        }
        room
    }

    pub(super) fn poll_control(&mut self, now: Nanos) -> Option<Transmit> {
        loop {
            if let Some(peer) = self.batch_ack_before_next()
                && let Some(ack) = self.encode_batch_ack(now, peer)
            {
                return Some(ack);
            }
            let packet = self.control.pop_front()?;
            if let Some(transmit) = self.encode_control(now, packet) {
                return Some(transmit);
            }
        }
    }

    /// Encodes a control packet; `None` when it has become obsolete in the queue.
    fn encode_control(&mut self, now: Nanos, packet: ControlPacket) -> Option<Transmit> {
        match packet {
            ControlPacket::BatchAck(peer) => {
                if let Some(batcher) = self.batchers.get_mut(&peer) {
                    batcher.queued = false;
                }
                self.encode_batch_ack(now, peer)
            }
            ControlPacket::ReadReceipt(of) => self.encode_new_receipt(now, of),
            ControlPacket::ReceiptRetry(number) => self.encode_receipt_retry(now, number),
            ControlPacket::Progress(key) => {
                let incoming = self.incoming.get_mut(&key)?;
                incoming.ack_queued = false;
                let (number, ranges) = incoming.received();
                let (address, sequence) = (incoming.address, incoming.sequence);
                let body = Body::Ack {
                    status: Status::Progress,
                    number,
                    ranges: &ranges,
                };
                Some(self.encode(address, key.id, key.reply, sequence, body))
            }
            ControlPacket::Status {
                address,
                key,
                sequence,
                status,
            } => {
                let body = Body::Ack {
                    status,
                    number: 0,
                    ranges: &[],
                };
                Some(self.encode(address, key.id, key.reply, sequence, body))
            }
            ControlPacket::HeaderOnly {
                address,
                id,
                reply,
                sequence,
                kind,
            } => {
                let body = match kind {
                    HeaderOnly::Query => Body::Query,
                    HeaderOnly::ReadAck => Body::ReadAck,
                    HeaderOnly::Abort => Body::Abort,
                };
                Some(self.encode(address, id, reply, sequence, body))
            }
        }
    }

    /// The peer whose batch ack must precede the next control packet. A sender declares packets lost that are
    /// acknowledged out of order.
    fn batch_ack_before_next(&self) -> Option<PublicKey> {
        let (peer, sequence) = match self.control.front()? {
            ControlPacket::Progress(key) => (key.peer, self.incoming.get(key)?.sequence),
            ControlPacket::Status { key, sequence, .. } => (key.peer, *sequence),
            ControlPacket::BatchAck(_)
            | ControlPacket::ReadReceipt(_)
            | ControlPacket::ReceiptRetry(_)
            | ControlPacket::HeaderOnly { .. } => return None,
        };
        let batcher = self.batchers.get(&peer)?;
        batcher.must_precede(sequence).then_some(peer)
    }

    /// Encodes the batch ack of a peer; `None` when it would be empty.
    fn encode_batch_ack(&mut self, now: Nanos, peer: PublicKey) -> Option<Transmit> {
        let batcher = self.batchers.get_mut(&peer)?;
        let ack = batcher.take_ack(now, |key| self.incoming.contains_key(key));
        if ack.stored.is_empty() && ack.received.is_empty() {
            return None;
        }
        let address = batcher.address;
        let body = Body::BatchAck {
            delay_us: ack.delay_us,
            stored: &ack.stored,
            received: &ack.received,
        };
        Some(self.encode(address, NO_MESSAGE, false, ack.first, body))
    }

    /// Encodes a packet into the recycled buffer.
    pub(super) fn encode(
        &mut self,
        address: OverlayAddress,
        id: MessageId,
        reply: bool,
        sequence: u64,
        body: Body<'_>,
    ) -> Transmit {
        encode(
            std::mem::take(&mut self.spare),
            address,
            id,
            reply,
            sequence,
            body,
        )
    }
}

pub(super) fn encode(
    mut payload: Vec<u8>,
    address: OverlayAddress,
    id: MessageId,
    reply: bool,
    sequence: u64,
    body: Body<'_>,
) -> Transmit {
    let packet = Packet {
        id: id.0,
        reply,
        sequence,
        body,
    };
    packet.write(&mut payload);
    debug_assert!(payload.len() >= MESSAGE_HEADER_LEN);
    Transmit { address, payload }
}
