//! What one transaction writes, and what it and the opening of a file return.

use bytes::Bytes;
use hyphae_bus::DeliveryKey;
use hyphae_wire::PublicKey;

use super::MessageNumber;
use super::index::Index;
use super::record::{Head, Place};

/// A message that is to be written.
pub(super) struct Write {
    pub(super) number: MessageNumber,
    pub(super) head: Head,
    pub(super) payload: Bytes,
    /// Hidden from those who take messages out.
    pub(super) held: bool,
}

/// One transaction.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<Write>,
    pub(super) removals: Vec<Removal>,
    /// The oldest ids of these senders, so many of them, are forgotten.
    pub(super) forgotten: Vec<(PublicKey, usize)>,
    /// How often messages have been handed out by now.
    pub(super) deliveries: Vec<(MessageNumber, u32)>,
}

/// A message that is to be removed.
pub(super) struct Removal {
    pub(super) number: MessageNumber,
    pub(super) shelf: u64,
    pub(super) len: u64,
    /// There is a row of how often it was handed out.
    pub(super) recorded: bool,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.removals.is_empty() && self.deliveries.is_empty()
    }
}

/// Where messages lie after a transaction.
#[derive(Default)]
pub(super) struct Placed {
    /// Those that were written, in order.
    pub(super) writes: Vec<Place>,
    /// Others that have moved.
    pub(super) moved: Vec<(MessageNumber, Place)>,
}

/// What the store held when it was opened.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// Ids of messages that came, oldest first.
    pub(super) completed: Vec<DeliveryKey>,
    /// Above every number in use.
    pub(super) next: u64,
}
