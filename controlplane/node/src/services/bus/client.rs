//! Client of the message bus, for RPC, administration and socket proxies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::topics::{TopicConfig, Topics};
use hyphae_bus::{
    DeliveryKey, Destination, MessageId, MessageInfo, Outgoing, Pool, PushError, Refuse,
    ReplyFailure, Topic,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::leases::{LeaseToken, Leases};
use super::request::{BusRequest, Completion, ReplyOutcome, RequestId, Waiter};
use hyphae_store::inbox::{Inbox, InboxError};

/// Payload size in bytes from which digests are computed on the blocking pool, or while the payload is read.
pub const DIGEST_APART: usize = 256 * 1024;

/// Why the bus did not do what was requested.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The message was refused.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Too many calls wait for messages.
    #[error("too many calls wait for messages already; try again when some have ended")]
    Busy,
    /// The inbox cannot be read or written; the message stays in it.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The lease of a message has ended.
    #[error("the lease {0} has ended: its message was acknowledged or is in the inbox again")]
    LeaseEnded(LeaseToken),
    /// The lease is of another message than the one that is answered.
    #[error("the lease {0} is of another message")]
    OtherMessage(LeaseToken),
    /// The node is ending.
    #[error("the node is shutting down")]
    Stopping,
}

/// Client of the message bus of this node. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    requests: mpsc::Sender<BusRequest>,
    pub(super) inbox: Inbox,
    topics: watch::Receiver<Arc<Topics>>,
    pool: Pool,
    pub(super) leases: Arc<Leases>,
    tickets: Arc<AtomicU64>,
}

impl Client {
    pub(super) fn new(
        requests: mpsc::Sender<BusRequest>,
        inbox: Inbox,
        topics: watch::Receiver<Arc<Topics>>,
        pool: Pool,
        leases: Arc<Leases>,
        tickets: Arc<AtomicU64>,
    ) -> Self {
        Self {
            requests,
            inbox,
            topics,
            pool,
            leases,
            tickets,
        }
    }

    /// Buffers for long payloads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Lookup of the current settings of a topic.
    pub fn topic_settings(&self) -> impl Fn(&Topic) -> Option<TopicConfig> + Send + Sync + 'static {
        let topics = self.topics.clone();
        move |topic| topics.borrow().topics.get(topic).cloned()
    }

    /// Sends a message.
    pub async fn push(&self, message: Outgoing) -> Result<MessageId, BusError> {
        let message = digest(message).await;
        let pushed = self.call(|reply| BusRequest::Push { message, reply });
        Ok(pushed.await??)
    }

    /// Sends several messages; a result for each. `in_order`: none after the first that is refused.
    pub async fn push_all(
        &self,
        mut messages: Vec<Outgoing>,
        in_order: bool,
    ) -> Result<Vec<Result<MessageId, PushError>>, BusError> {
        digest_long(&mut messages).await;
        self.call(|reply| BusRequest::PushAll {
            messages,
            in_order,
            reply,
        })
        .await
    }

    /// Sends several messages to one node in order, waiting for room for `wait`; a result for each. Dropping the
    /// future withdraws those that wait.
    pub async fn push_waiting(
        &self,
        mut messages: Vec<Outgoing>,
        wait: Duration,
    ) -> Result<Vec<Result<MessageId, PushError>>, BusError> {
        digest_long(&mut messages).await;
        let (reply, results) = oneshot::channel();
        let waiter = Waiter::new(messages, Completion::Each(reply));
        self.wait_for_room(waiter, wait, results).await
    }

    /// Queues messages until there is room; those not sent within `wait` fail.
    async fn wait_for_room<T>(
        &self,
        waiter: Waiter,
        wait: Duration,
        mut results: oneshot::Receiver<T>,
    ) -> Result<T, BusError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.send(BusRequest::PushWaiting { ticket, waiter })
            .await?;
        let mut withdraw = SendOnDrop {
            requests: &self.requests,
            request: Some(BusRequest::Withdraw(ticket)),
        };
        let results = match tokio::time::timeout(wait, &mut results).await {
            Ok(results) => results,
            Err(_) => {
                self.send(BusRequest::Withdraw(ticket)).await?;
                results.await
            }
        };
        withdraw.request = None;
        results.map_err(|_| BusError::Stopping)
    }

    /// As [`Self::request`], waiting for room first.
    pub async fn request_waiting(
        &self,
        mut message: Outgoing,
        within: Duration,
        wait: Duration,
    ) -> Result<(MessageId, ReplyOutcome), BusError> {
        message.reply_within = Some(within);
        let message = digest(message).await;
        let (reply, outcome) = oneshot::channel();
        let id = RequestId::default();
        let completion = Completion::Request {
            id: Arc::clone(&id),
            reply,
        };
        // A message that was sent is not withdrawn; its reply may come after the wait for room.
        let waiter = Waiter::new([message], completion);
        let outcome = self.wait_for_room(waiter, wait, outcome).await??;
        let id = id.get().ok_or(BusError::Stopping)?;
        Ok((*id, outcome))
    }

    /// Sends a message and waits for its reply for `within`. Dropping the future leaves a message that has an id
    /// queued.
    pub async fn request(
        &self,
        message: Outgoing,
        within: Duration,
    ) -> Result<(MessageId, ReplyOutcome), BusError> {
        self.request_as(message, within, RequestId::default()).await
    }

    /// As [`Self::request`]; dropping the future cancels the message.
    pub async fn request_or_cancel(
        &self,
        message: Outgoing,
        within: Duration,
    ) -> Result<ReplyOutcome, BusError> {
        let id = RequestId::default();
        let mut cancel = CancelOnDrop {
            requests: &self.requests,
            id: Some(Arc::clone(&id)),
        };
        // Dropped before `cancel`: an id set after that finds the reply channel closed.
        let outcome = self.request_as(message, within, id).await;
        cancel.id = None;
        Ok(outcome?.1)
    }

    /// As [`Self::request`]; sets `id` when the message is queued. A future dropped before that sends nothing.
    async fn request_as(
        &self,
        mut message: Outgoing,
        within: Duration,
        id: RequestId,
    ) -> Result<(MessageId, ReplyOutcome), BusError> {
        message.reply_within = Some(within);
        let message = digest(message).await;
        let outcome = self.call(|reply| BusRequest::Request {
            message,
            id: Arc::clone(&id),
            reply,
        });
        let outcome = outcome.await??;
        let id = id.get().ok_or(BusError::Stopping)?;
        Ok((*id, outcome))
    }

    /// Replies to the message `id`, whose sender is the destination.
    pub async fn reply(&self, id: MessageId, message: Outgoing) -> Result<(), BusError> {
        let message = digest(message).await;
        let replied = self.call(|reply| BusRequest::Reply { id, message, reply });
        Ok(replied.await??)
    }

    /// Replies to a settled message, which counts as read if the reply can be sent.
    pub async fn answer(&self, key: DeliveryKey, message: Outgoing) -> Result<(), BusError> {
        let message = digest(message).await;
        let answered = self.call(|reply| BusRequest::Answer {
            key,
            message,
            reply,
        });
        Ok(answered.await??)
    }

    /// Notifies the sender of a settled message that no reply follows. The message does not count as read.
    pub async fn fail(&self, key: DeliveryKey, failure: ReplyFailure) -> Result<(), BusError> {
        let message = Outgoing {
            destination: Destination::Key(key.peer),
            topic: Topic::default(),
            payload: Bytes::new(),
            digest: None,
            try_for: None,
            reply_within: None,
            failure: Some(failure),
        };
        self.reply(key.id, message).await
    }

    /// Notifies the sender of a message that it was read.
    pub async fn read(&self, key: DeliveryKey) -> Result<(), BusError> {
        self.send(BusRequest::Read(vec![key])).await
    }

    /// State of an outgoing message.
    pub async fn info(&self, id: MessageId) -> Result<Option<MessageInfo>, BusError> {
        self.call(|reply| BusRequest::Info(id, reply)).await
    }

    /// Replaces the settings of topics.
    pub async fn set_topics(&self, topics: Topics) -> Result<(), BusError> {
        self.call(|reply| BusRequest::SetTopics(topics, reply))
            .await
    }

    /// Accepts or refuses a forwarded message.
    pub async fn settle(
        &self,
        key: DeliveryKey,
        verdict: Result<(), Refuse>,
    ) -> Result<(), BusError> {
        self.send(BusRequest::Settle(key, verdict)).await
    }

    pub(super) async fn send(&self, request: BusRequest) -> Result<(), BusError> {
        let sent = self.requests.send(request).await;
        sent.map_err(|_| BusError::Stopping)
    }

    /// Sends a request and waits for its reply.
    async fn call<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> BusRequest,
    ) -> Result<T, BusError> {
        let (sender, reply) = oneshot::channel();
        self.send(request(sender)).await?;
        reply.await.map_err(|_| BusError::Stopping)
    }
}

async fn digest_long(messages: &mut [Outgoing]) {
    for message in messages {
        if message.payload.len() >= DIGEST_APART {
            *message = digest(message.clone()).await;
        }
    }
}

/// Computes the digest of a long payload on the blocking pool.
async fn digest(mut message: Outgoing) -> Outgoing {
    if message.digest.is_none() && message.payload.len() >= DIGEST_APART {
        let payload = message.payload.clone();
        let digest = tokio::task::spawn_blocking(move || *blake3::hash(&payload).as_bytes());
        // The engine computes a missing one.
        message.digest = digest.await.ok();
    }
    message
}

/// Sends a request when dropped with one.
struct SendOnDrop<'a> {
    requests: &'a mpsc::Sender<BusRequest>,
    request: Option<BusRequest>,
}

impl Drop for SendOnDrop<'_> {
    fn drop(&mut self) {
        let (Some(request), Ok(runtime)) =
            (self.request.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let requests = self.requests.clone();
        runtime.spawn(async move {
            // The engine task may have ended.
            let _ = requests.send(request).await;
        });
    }
}

/// Cancels a message and the wait for its reply when dropped with an id.
struct CancelOnDrop<'a> {
    requests: &'a mpsc::Sender<BusRequest>,
    id: Option<RequestId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let id = self.id.as_ref().and_then(|id| id.get().copied());
        drop(SendOnDrop {
            requests: self.requests,
            request: id.map(BusRequest::Cancel),
        });
    }
}
