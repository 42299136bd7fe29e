//! The message bus as the proxies use it.

use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::{AbortReason, DeliveryKey, Outgoing, PushError, Refuse, ReplyFailure};
use hyphae_node::{BusError, Client, ReplyOutcome};

use super::framing::{Failure, FrameError};

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

impl BusClient for Client {
    async fn request(&self, message: Outgoing, within: Duration) -> Result<Bytes, Failure> {
        let outcome = self.request_or_cancel(message, within).await;
        match outcome.map_err(|error| failure(&error))? {
            ReplyOutcome::Reply(reply) => Ok(reply.payload),
            ReplyOutcome::TimedOut | ReplyOutcome::Failed(ReplyFailure::Late) => {
                Err(Failure::Timeout)
            }
            ReplyOutcome::Failed(ReplyFailure::Unanswered) => Err(Failure::Unanswered),
            ReplyOutcome::Failed(ReplyFailure::TooLarge) => Err(Failure::AnswerTooLarge),
            ReplyOutcome::Aborted(AbortReason::Rejected(_)) => Err(Failure::Rejected),
            ReplyOutcome::Aborted(
                AbortReason::Deadline | AbortReason::Cancelled | AbortReason::OtherKey,
            ) => Err(Failure::Unreachable),
        }
    }

    async fn send(&self, message: Outgoing) -> Result<(), Failure> {
        let pushed = self.push(message).await;
        pushed.map(|_| ()).map_err(|error| failure(&error))
    }

    async fn answer(&self, key: DeliveryKey, message: Outgoing) -> bool {
        Self::answer(self, key, message).await.is_ok()
    }

    async fn fail(&self, key: DeliveryKey, failure: ReplyFailure) {
        // A sender that is not notified waits until its own timeout.
        let _ = Self::fail(self, key, failure).await;
    }

    async fn settle(&self, key: DeliveryKey, verdict: Result<(), Refuse>) {
        // The node is ending; the sender retransmits to the next process.
        let _ = Self::settle(self, key, verdict).await;
    }

    async fn read(&self, key: DeliveryKey) {
        // As above.
        let _ = Self::read(self, key).await;
    }
}

fn failure(error: &BusError) -> Failure {
    match error {
        BusError::Push(PushError::TooLong(_)) => Failure::Frame(FrameError::TooLarge),
        BusError::Push(PushError::QueueFull { .. }) | BusError::Busy => Failure::Busy,
        BusError::Push(PushError::NotOverlay(_) | PushError::Answered(_))
        | BusError::Inbox(_)
        | BusError::LeaseEnded(_)
        | BusError::OtherMessage(_)
        | BusError::Stopping => Failure::Unreachable,
    }
}
