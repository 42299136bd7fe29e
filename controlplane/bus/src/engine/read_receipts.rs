//! Read receipts, sent and received.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::message::{Body, READS_MAX};
use hyphae_wire::{OverlayAddress, PublicKey};

use super::control::{ControlPacket, HeaderOnly, NO_MESSAGE};
use super::{Bus, Timer};
use crate::receipts::{ReceiptKey, Receipts};
use crate::transfer::TransferKey;
use crate::{DeliveryKey, MessageState, Transmit};

/// Delay of a receipt, to batch others to the same sender.
const READ_DELAY: Duration = Duration::from_millis(5);

impl Bus {
    /// An incoming message has been read: sends a receipt.
    pub fn mark_read(&mut self, now: Nanos, key: DeliveryKey) {
        if key.peer == self.config.key {
            self.on_read(now, key, self.address);
            return;
        }
        let of = (key.peer, key.reply);
        match self.receipts.add(key) {
            1 => self.timers.set(Timer::ReadReceipt(of), now + READ_DELAY),
            READS_MAX => self.queue_receipt(of),
            _ => {}
        }
    }

    pub(super) fn queue_receipt(&mut self, of: ReceiptKey) {
        if !self.queue_control(ControlPacket::ReadReceipt(of)) {
            self.receipts.drop_unsent(of);
        }
    }

    pub(super) fn receipt_retry_due(&mut self, now: Nanos, number: u64) {
        if !self.queue_control(ControlPacket::ReceiptRetry(number)) {
            let at = self.receipts.retry_at(now, number);
            self.timers.set(Timer::ReceiptRetry(number), at);
        }
    }

    pub(super) fn encode_new_receipt(&mut self, now: Nanos, of: ReceiptKey) -> Option<Transmit> {
        let (number, ids, more) = self.receipts.take_unsent(of)?;
        if more {
            self.queue_receipt(of);
        }
        Some(self.encode_receipt(now, of, number, &ids))
    }

    pub(super) fn encode_receipt_retry(&mut self, now: Nanos, number: u64) -> Option<Transmit> {
        let receipt = self.receipts.retry(number)?;
        let (of, ids) = (receipt.of, receipt.ids.clone());
        Some(self.encode_receipt(now, of, number, &ids))
    }

    fn encode_receipt(
        &mut self,
        now: Nanos,
        (peer, reply): ReceiptKey,
        number: u64,
        ids: &[[u8; 8]],
    ) -> Transmit {
        let at = self.receipts.retry_at(now, number);
        self.timers.set(Timer::ReceiptRetry(number), at);
        let address = self.address_of(peer);
        self.encode(address, NO_MESSAGE, reply, number, Body::Read { ids })
    }

    pub(super) fn handle_read(
        &mut self,
        now: Nanos,
        from: ReceiptKey,
        address: OverlayAddress,
        number: u64,
        ids: &[[u8; 8]],
    ) {
        for id in ids {
            self.on_read(now, Receipts::key(from, *id), address);
        }
        self.queue_control(ControlPacket::HeaderOnly {
            address,
            id: NO_MESSAGE,
            reply: from.1,
            sequence: number,
            kind: HeaderOnly::ReadAck,
        });
    }

    fn on_read(&mut self, now: Nanos, from: DeliveryKey, address: OverlayAddress) {
        let name = TransferKey {
            subnet: address.subnet_id(),
            id: from.id,
            reply: from.reply,
        };
        // A receipt implies the final status, whose ack may have been lost.
        if let Some(of) = self.transfers.live(name)
            && self
                .transfers
                .get(of)
                .is_some_and(|it| it.key == Some(from.peer))
        {
            self.finish(now, of, None);
        }
        if let Some(done) = self.transfers.done_mut(name)
            && done.key == Some(from.peer)
            && done.info.state == MessageState::Received
        {
            done.info.state = MessageState::Read;
            self.stats.read += 1;
        }
    }

    pub(super) fn handle_read_ack(&mut self, number: u64, from: PublicKey) {
        if self.receipts.acknowledge(number, from) {
            self.timers.set(Timer::ReceiptRetry(number), Nanos::NEVER);
        }
    }
}
