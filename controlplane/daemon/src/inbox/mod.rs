//! The inbox: messages that came in and wait to be read.

mod memory;

use std::future::Future;
use std::pin::Pin;

use hyphae_bus::{DeliveryKey, Inbound, Room, Topic};

pub(crate) use memory::MemoryInbox;

/// Resolves to true once a change is durable, to false when it could not be made so.
pub(crate) type Durable = Pin<Box<dyn Future<Output = bool> + Send>>;

/// What became of a message that was put in.
pub(crate) enum Put {
    /// It is in, as durably as this inbox promises.
    Kept,
    /// It will be, or not; then call [`Inbox::committed`].
    #[allow(dead_code, reason = "an inbox in memory has nothing to wait for")]
    Later(Durable),
    /// There is no room.
    Full,
}

/// A message that was taken out.
pub(crate) struct Taken {
    pub(crate) inbound: Inbound,
    /// Its removal, where that takes time.
    pub(crate) durable: Option<Durable>,
}

/// Where messages wait to be read. Called by the engine task alone, so nothing here may block.
pub(crate) trait Inbox: Send {
    /// Puts a message in.
    fn put(&mut self, inbound: Inbound) -> Put;

    /// A message that was to come later is in now, and may be taken; or is not.
    fn committed(&mut self, key: &DeliveryKey, kept: bool);

    /// Takes the oldest message out, of one topic or of any.
    fn take(&mut self, topic: Option<&Topic>) -> Option<Taken>;

    /// The oldest message, left where it is.
    fn peek(&self, topic: Option<&Topic>) -> Option<Inbound>;

    /// A message that was taken and did not reach whoever asked for it.
    fn restore(&mut self, inbound: Inbound);

    /// Messages inside.
    fn len(&self) -> usize;

    /// Their bytes.
    fn bytes(&self) -> usize;

    /// Room that is left.
    fn room(&self) -> Room;

    /// Messages that were decided before a restart.
    fn completed(&mut self) -> Vec<DeliveryKey>;
}
