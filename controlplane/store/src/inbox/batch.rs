//! Content of a transaction, and the results of a transaction and of opening a file.

use bytes::Bytes;
use hyphae_bus::DeliveryKey;
use hyphae_wire::PublicKey;

use super::index::Index;
use super::record::{Head, Place};
use super::types::MessageNumber;

/// A message that is to be written.
pub(super) struct Write {
    pub(super) number: MessageNumber,
    pub(super) head: Head,
    pub(super) payload: Bytes,
    /// Only its lease makes it visible.
    pub(super) hidden: bool,
}

/// One transaction.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<Write>,
    pub(super) removals: Vec<Removal>,
    /// Numbers of the oldest ids of these senders, to forget.
    pub(super) forgotten: Vec<(PublicKey, usize)>,
    /// Deliveries of messages.
    pub(super) deliveries: Vec<(MessageNumber, u32)>,
}

/// A message that is to be removed.
pub(super) struct Removal {
    pub(super) number: MessageNumber,
    pub(super) shelf: u64,
    pub(super) len: u64,
    /// The store has a row of its deliveries.
    pub(super) recorded: bool,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.removals.is_empty() && self.deliveries.is_empty()
    }
}

/// Places of messages after a transaction.
#[derive(Default)]
pub(super) struct Placed {
    /// Of the written ones, in order.
    pub(super) writes: Vec<Place>,
    /// Of others that have moved.
    pub(super) moved: Vec<(MessageNumber, Place)>,
}

/// Content of the store when it was opened.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// Ids of received messages, oldest first.
    pub(super) completed: Vec<DeliveryKey>,
    /// Above every number in use.
    pub(super) next: u64,
}
