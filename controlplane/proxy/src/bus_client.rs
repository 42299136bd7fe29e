//! The message bus as the proxies use it.

use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::{DeliveryKey, Outgoing, Refuse, ReplyFailure};

use super::framing::Failure;

/// Client of the message bus, as the proxies use it.
pub trait BusClient: Clone + Send + Sync + 'static {
    /// Sends a message and waits for its reply.
    fn request(
        &self,
        message: Outgoing,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, Failure>> + Send;

    /// Sends a message without a reply.
    fn send(&self, message: Outgoing) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Replies to a settled message, which then counts as read; false when the reply cannot be sent.
    fn answer(&self, key: DeliveryKey, message: Outgoing) -> impl Future<Output = bool> + Send;

    /// Notifies the sender of a settled message why no reply follows. The message does not count as read.
    fn fail(&self, key: DeliveryKey, failure: ReplyFailure) -> impl Future<Output = ()> + Send;

    /// Accepts or refuses a forwarded message.
    fn settle(
        &self,
        key: DeliveryKey,
        verdict: Result<(), Refuse>,
    ) -> impl Future<Output = ()> + Send;

    /// Notifies the sender that its message was read.
    fn read(&self, key: DeliveryKey) -> impl Future<Output = ()> + Send;
}
