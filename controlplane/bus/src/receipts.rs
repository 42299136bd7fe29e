//! Read receipts: batched by sender, retransmitted until acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::message::READS_MAX;

use hyphae_wire::PublicKey;

use crate::{DeliveryKey, MessageId};

/// Messages in unacknowledged receipts; receipts beyond are sent once.
const UNACKED_MAX: usize = 262_144;
/// Transmissions of a receipt.
const TRIES: u32 = 8;
/// Time to the first retransmission; doubles.
const RETRY: Duration = Duration::from_millis(200);

/// Receiver of a receipt: a peer, and whether the messages are replies.
pub(crate) type ReceiptKey = (PublicKey, bool);

/// An unacknowledged receipt.
pub(crate) struct Receipt {
    pub(crate) of: ReceiptKey,
    pub(crate) ids: Vec<[u8; 8]>,
    tries: u32,
}

pub(crate) struct Receipts {
    /// Read messages without a receipt.
    unsent: BTreeMap<ReceiptKey, Vec<[u8; 8]>>,
    /// Unacknowledged receipts by number.
    unacked: BTreeMap<u64, Receipt>,
    /// Messages in `unacked`.
    unacked_ids: usize,
    /// Number of the last receipt.
    last: u64,
}

impl Receipts {
    /// No receipts; the first is numbered after `last`.
    pub(crate) fn new(last: u64) -> Self {
        Self {
            unsent: BTreeMap::new(),
            unacked: BTreeMap::new(),
            unacked_ids: 0,
            last,
        }
    }

    /// Adds a read message; returns the number of messages of its sender without a receipt.
    pub(crate) fn add(&mut self, key: DeliveryKey) -> usize {
        let ids = self.unsent.entry((key.peer, key.reply)).or_default();
        ids.push(key.id.0);
        ids.len()
    }

    /// Creates the next receipt: number, ids, and whether more messages are left.
    pub(crate) fn take_unsent(&mut self, of: ReceiptKey) -> Option<(u64, Vec<[u8; 8]>, bool)> {
        let unsent = self.unsent.get_mut(&of)?;
        let rest = unsent.split_off(unsent.len().min(READS_MAX));
        let ids = std::mem::replace(unsent, rest);
        let more = !unsent.is_empty();
        if !more {
            self.unsent.remove(&of);
        }
        self.last += 1;
        if self.unacked_ids + ids.len() <= UNACKED_MAX {
            self.unacked_ids += ids.len();
            let receipt = Receipt {
                of,
                ids: ids.clone(),
                tries: 1,
            };
            self.unacked.insert(self.last, receipt);
        }
        Some((self.last, ids, more))
    }

    /// Time of the next retransmission of a receipt; never once it is acknowledged.
    pub(crate) fn retry_at(&self, now: Nanos, number: u64) -> Nanos {
        let receipt = self.unacked.get(&number);
        receipt.map_or(Nanos::NEVER, |receipt| {
            now + RETRY * (1 << (receipt.tries - 1))
        })
    }

    /// The receipt of this number, to be retransmitted; `None` after the last try.
    pub(crate) fn retry(&mut self, number: u64) -> Option<&Receipt> {
        let receipt = self.unacked.get_mut(&number)?;
        if receipt.tries == TRIES {
            self.forget(number);
            return None;
        }
        receipt.tries += 1;
        self.unacked.get(&number)
    }

    /// Discards read messages without a receipt: the control queue is full.
    pub(crate) fn drop_unsent(&mut self, of: ReceiptKey) {
        self.unsent.remove(&of);
    }

    /// Acknowledges a receipt; false when it is not one of this peer.
    pub(crate) fn acknowledge(&mut self, number: u64, by: PublicKey) -> bool {
        let receipt = self.unacked.get(&number);
        let own = receipt.is_some_and(|receipt| receipt.of.0 == by);
        if own {
            self.forget(number);
        }
        own
    }

    fn forget(&mut self, number: u64) {
        if let Some(receipt) = self.unacked.remove(&number) {
            self.unacked_ids -= receipt.ids.len();
        }
    }

    /// The key of a message in a receipt.
    pub(crate) fn key((peer, reply): ReceiptKey, id: [u8; 8]) -> DeliveryKey {
        let id = MessageId(id);
        DeliveryKey { peer, id, reply }
    }
}
