//! Read receipts: what has been read is told to its senders, many messages at once, until they know.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::message::READS_MAX;

use hyphae_wire::PublicKey;

use crate::{DeliveryKey, MessageId};

/// Messages whose receipts wait for an answer; those beyond are told of once.
const WAITING_MAX: usize = 262_144;
/// Times that a receipt is sent.
const TRIES: u32 = 8;
/// Time to its second sending; doubles from then on.
const RETRY: Duration = Duration::from_millis(200);

/// Whom a receipt is for: a sender, of messages or of replies.
pub(crate) type Reader = (PublicKey, bool);

/// Messages of one sender that have been read.
pub(crate) struct Receipt {
    pub(crate) of: Reader,
    pub(crate) ids: Vec<[u8; 8]>,
    tries: u32,
}

pub(crate) struct Receipts {
    /// Not told yet.
    fresh: BTreeMap<Reader, Vec<[u8; 8]>>,
    /// Told and not answered, by number.
    told: BTreeMap<u64, Receipt>,
    waiting: usize,
    last: u64,
}

impl Receipts {
    /// None, numbered after `last`.
    pub(crate) fn new(last: u64) -> Self {
        Self {
            fresh: BTreeMap::new(),
            told: BTreeMap::new(),
            waiting: 0,
            last,
        }
    }

    /// A message has been read. How many there are now that its sender has to be told of.
    pub(crate) fn add(&mut self, key: DeliveryKey) -> usize {
        let ids = self.fresh.entry((key.peer, key.reply)).or_default();
        ids.push(key.id.0);
        ids.len()
    }

    /// The next receipt for a sender: its number, and whether there is more.
    pub(crate) fn tell(&mut self, of: Reader) -> Option<(u64, Vec<[u8; 8]>, bool)> {
        let fresh = self.fresh.get_mut(&of)?;
        let rest = fresh.split_off(fresh.len().min(READS_MAX));
        let ids = std::mem::replace(fresh, rest);
        let more = !fresh.is_empty();
        if !more {
            self.fresh.remove(&of);
        }
        self.last += 1;
        if self.waiting + ids.len() <= WAITING_MAX {
            self.waiting += ids.len();
            let receipt = Receipt {
                of,
                ids: ids.clone(),
                tries: 1,
            };
            self.told.insert(self.last, receipt);
        }
        Some((self.last, ids, more))
    }

    /// When the receipt of a number has to be told again, if its answer is still waited for.
    pub(crate) fn again_at(&self, now: Nanos, number: u64) -> Nanos {
        let receipt = self.told.get(&number);
        receipt.map_or(Nanos::NEVER, |receipt| {
            now + RETRY * (1 << (receipt.tries - 1))
        })
    }

    /// The receipt of a number, to be told again.
    pub(crate) fn again(&mut self, number: u64) -> Option<&Receipt> {
        let receipt = self.told.get_mut(&number)?;
        if receipt.tries == TRIES {
            self.forget(number);
            return None;
        }
        receipt.tries += 1;
        self.told.get(&number)
    }

    /// Nothing is told to a sender of what has been read, for want of room.
    pub(crate) fn drop_fresh(&mut self, of: Reader) {
        self.fresh.remove(&of);
    }

    /// The sender knows. False when this is not its receipt.
    pub(crate) fn answered(&mut self, number: u64, by: PublicKey) -> bool {
        let receipt = self.told.get(&number);
        let own = receipt.is_some_and(|receipt| receipt.of.0 == by);
        if own {
            self.forget(number);
        }
        own
    }

    fn forget(&mut self, number: u64) {
        if let Some(receipt) = self.told.remove(&number) {
            self.waiting -= receipt.ids.len();
        }
    }

    /// The ids of a packet.
    pub(crate) fn key((peer, reply): Reader, id: [u8; 8]) -> DeliveryKey {
        let id = MessageId(id);
        DeliveryKey { peer, id, reply }
    }
}
