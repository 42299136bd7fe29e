//! Requests to the message bus, as they travel to the engine task.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use hyphae_bus::topics::Topics;
use hyphae_bus::{
    AbortReason, DeliveryKey, Inbound, MessageId, MessageInfo, Outgoing, PushError, Refuse,
    ReplyFailure,
};
use tokio::sync::oneshot;

/// A request to the bus.
pub(crate) enum BusRequest {
    /// Sends a message.
    Push {
        message: Outgoing,
        reply: oneshot::Sender<Result<MessageId, PushError>>,
    },
    /// Sends a message whose reply is awaited.
    Request {
        message: Outgoing,
        id: RequestId,
        reply: oneshot::Sender<RequestResult>,
    },
    /// Sends several messages without replies. `in_order`: none after the first that is refused.
    PushAll {
        messages: Vec<Outgoing>,
        in_order: bool,
        reply: oneshot::Sender<Vec<Result<MessageId, PushError>>>,
    },
    /// Replies to the message `id`.
    Reply {
        id: MessageId,
        message: Outgoing,
        reply: oneshot::Sender<Result<(), PushError>>,
    },
    /// Replies to a settled message, which counts as read if the reply can be sent.
    Answer {
        key: DeliveryKey,
        message: Outgoing,
        reply: oneshot::Sender<Result<(), PushError>>,
    },
    /// Sends messages to one node, waiting for room.
    PushWaiting { ticket: Ticket, waiter: Waiter },
    /// Ends a wait for room; the messages not sent by then fail.
    Withdraw(Ticket),
    /// Cancels a message and the wait for its reply.
    Cancel(MessageId),
    /// Notifies the senders that these messages were read.
    Read(Vec<DeliveryKey>),
    /// State of an outgoing message.
    Info(MessageId, oneshot::Sender<Option<MessageInfo>>),
    /// Replaces the settings of topics.
    SetTopics(Topics, oneshot::Sender<()>),
    /// Verdicts of the inbox on messages, each with its payload size in bytes.
    Stored(Vec<((DeliveryKey, usize), InboxVerdict)>),
    /// Accepts or refuses a message that was forwarded.
    Settle(DeliveryKey, Result<(), Refuse>),
}

/// Id of a request, set once it is queued.
pub(super) type RequestId = Arc<OnceLock<MessageId>>;

/// Outcome of a request, or why it was not queued.
pub(super) type RequestResult = Result<ReplyOutcome, PushError>;

/// Outcome of the wait for a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyOutcome {
    /// The reply.
    Reply(Box<Inbound>),
    /// The message was delivered, and its receiver reported that no reply follows.
    Failed(ReplyFailure),
    /// The message itself was not delivered.
    Aborted(AbortReason),
    /// No reply in time; the message may have been delivered.
    TimedOut,
}

/// Verdict of the inbox on a message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InboxVerdict {
    Stored,
    Full,
    Failed,
}

/// Number of a call that waits for room, ascending.
pub(super) type Ticket = u64;

/// Reply channel of a call that waits for room.
pub(crate) enum Completion {
    /// The result of each message, in order.
    Each(oneshot::Sender<Vec<Result<MessageId, PushError>>>),
    /// The reply to one message.
    Request {
        id: RequestId,
        reply: oneshot::Sender<RequestResult>,
    },
}

impl Completion {
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Each(reply) => reply.is_closed(),
            Self::Request { reply, .. } => reply.is_closed(),
        }
    }
}

/// Messages of one call to one node.
pub(crate) struct Waiter {
    pub(super) messages: VecDeque<Outgoing>,
    pub(super) results: Vec<Result<MessageId, PushError>>,
    pub(super) completion: Completion,
}

impl Waiter {
    pub(crate) fn new(
        messages: impl IntoIterator<Item = Outgoing>,
        completion: Completion,
    ) -> Self {
        Self {
            messages: messages.into_iter().collect(),
            results: Vec::new(),
            completion,
        }
    }

    /// Fails the messages not sent yet.
    pub(super) fn fail(&mut self, error: PushError) {
        let rest = self.messages.drain(..).map(|_| Err(error));
        self.results.extend(rest);
    }
}
