//! What the rest of the control plane asks of the bus: RPC, administration, socket proxies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::topics::Topics;
use hyphae_bus::{
    AbortReason, DeliveryKey, Destination, Inbound, MessageId, MessageInfo, Outgoing, Pool,
    PushError, Refuse, ReplyFailure, Room, Topic,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::delivery::{Delivery, Handed, Leases, Token};
use super::waitlist::{Hears, Ticket, Waiter};
use crate::node::request::Command;
use crate::proxy::framing::FrameError;
use crate::proxy::{Courier, Failure, Settings};
use hyphae_store::inbox::{Inbox, InboxError, Listing, MessageNumber};

/// Calls that wait for messages.
const POPPERS_MAX: u64 = 4096;

/// Payloads from this size on are digested on a thread of their own, or bit by bit as they are read.
pub(crate) const DIGEST_APART: usize = 256 * 1024;

/// Something asked of the bus.
pub(crate) enum BusCommand {
    Push {
        message: Outgoing,
        taken: oneshot::Sender<Result<MessageId, PushError>>,
    },
    /// The same, for somebody who waits for the reply.
    Request {
        message: Outgoing,
        id: RequestId,
        outcome: oneshot::Sender<Requested>,
    },
    /// Several, of which no reply is waited for. In order: after one that is not taken, none is.
    PushAll {
        messages: Vec<Outgoing>,
        in_order: bool,
        taken: oneshot::Sender<Vec<Result<MessageId, PushError>>>,
    },
    Reply {
        id: MessageId,
        message: Outgoing,
        taken: oneshot::Sender<Result<(), PushError>>,
    },
    /// A reply to a message that was settled, which counts as read if the reply can be sent.
    Answer {
        key: DeliveryKey,
        message: Outgoing,
        taken: oneshot::Sender<Result<(), PushError>>,
    },
    /// Messages to one node, for somebody who waits for room.
    PushWaiting {
        ticket: Ticket,
        waiter: Waiter,
    },
    /// Nobody waits for room for these any more; what has become of them by now is said.
    Withdraw(Ticket),
    Cancel(MessageId),
    Read(Vec<DeliveryKey>),
    Info(MessageId, oneshot::Sender<Option<MessageInfo>>),
    SetTopics(Topics, oneshot::Sender<()>),
    /// The inbox keeps messages of so many bytes, or does not.
    Stored(Vec<((DeliveryKey, usize), super::Kept)>),
    Settle(DeliveryKey, Result<(), Refuse>),
    /// From now on, messages on the topic of administration go to this channel instead of the
    /// inbox. They count as received by then.
    OnAdmin(mpsc::Sender<Inbound>),
    /// From now on, messages on topics with a forward socket go to this channel instead of the
    /// inbox. Whoever takes one settles it; its sender waits for that.
    OnForward(mpsc::Sender<Inbound>),
}

/// The id of a request, once it has one.
pub(crate) type RequestId = Arc<OnceLock<MessageId>>;

/// What a request comes to; an error when it is not taken.
pub(crate) type Requested = Result<ReplyOutcome, PushError>;

/// What came of waiting for a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplyOutcome {
    /// The reply.
    Reply(Box<Inbound>),
    /// The message was delivered, and there is no answer for this reason.
    Failed(ReplyFailure),
    /// The message itself was not delivered.
    Aborted(AbortReason),
    /// None came in time; the message may have arrived.
    TimedOut,
}

/// Why the bus did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// The message is not taken.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Too many calls wait for messages.
    #[error("too many calls wait for messages already; try again when some have ended")]
    Busy,
    /// The inbox cannot be read or written; the message is still there.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// The lease of a message has ended.
    #[error("the lease {0} has ended: its message was acknowledged or is in the inbox again")]
    LeaseEnded(Token),
    /// The lease is of another message than the one that is answered.
    #[error("the lease {0} is of another message")]
    OtherMessage(Token),
    /// The node is ending.
    #[error("the node is shutting down")]
    Stopping,
}

/// A way to the bus of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    inbox: Inbox,
    topics: watch::Receiver<Arc<Topics>>,
    pool: Pool,
    leases: Arc<Leases>,
    tickets: Arc<AtomicU64>,
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        inbox: Inbox,
        topics: watch::Receiver<Arc<Topics>>,
        pool: Pool,
        leases: Arc<Leases>,
        tickets: Arc<AtomicU64>,
    ) -> Self {
        Self {
            commands,
            inbox,
            topics,
            pool,
            leases,
            tickets,
        }
    }

    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Memory for long payloads.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The settings of topics, as they are whenever somebody looks.
    pub(crate) fn settings(&self) -> Settings {
        let topics = self.topics.clone();
        Arc::new(move |topic| topics.borrow().topics.get(topic).cloned())
    }

    /// Sends a message.
    pub(crate) async fn push(&self, message: Outgoing) -> Result<MessageId, BusError> {
        let message = digest(message).await;
        let (taken, answer) = oneshot::channel();
        self.send(BusCommand::Push { message, taken }).await?;
        Ok(answer.await.map_err(|_| BusError::Stopping)??)
    }

    /// Sends several messages; an answer for each. `in_order`: after one that is not taken, none is.
    pub(crate) async fn push_all(
        &self,
        mut messages: Vec<Outgoing>,
        in_order: bool,
    ) -> Result<Vec<Result<MessageId, PushError>>, BusError> {
        digest_long(&mut messages).await;
        let (taken, answer) = oneshot::channel();
        self.send(BusCommand::PushAll {
            messages,
            in_order,
            taken,
        })
        .await?;
        answer.await.map_err(|_| BusError::Stopping)
    }

    /// Sends several messages to one node in order, waiting for room for `wait`; an answer for each. Dropping the
    /// future withdraws those that wait.
    pub(crate) async fn push_waiting(
        &self,
        mut messages: Vec<Outgoing>,
        wait: Duration,
    ) -> Result<Vec<Result<MessageId, PushError>>, BusError> {
        digest_long(&mut messages).await;
        let (taken, answer) = oneshot::channel();
        let waiter = Waiter::new(messages, Hears::Each(taken));
        self.wait_for_room(waiter, wait, answer).await
    }

    /// Has messages wait for room, and hears of them: at the end of `wait` of those that have left by then.
    async fn wait_for_room<T>(
        &self,
        waiter: Waiter,
        wait: Duration,
        mut answer: oneshot::Receiver<T>,
    ) -> Result<T, BusError> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.send(BusCommand::PushWaiting { ticket, waiter })
            .await?;
        let mut leaving = Leaving {
            commands: &self.commands,
            command: Some(BusCommand::Withdraw(ticket)),
        };
        let answer = match tokio::time::timeout(wait, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                self.send(BusCommand::Withdraw(ticket)).await?;
                answer.await
            }
        };
        leaving.command = None;
        answer.map_err(|_| BusError::Stopping)
    }

    /// As [`Self::request`], waiting for room first.
    pub(crate) async fn request_waiting(
        &self,
        mut message: Outgoing,
        within: Duration,
        wait: Duration,
    ) -> Result<(MessageId, ReplyOutcome), BusError> {
        message.reply_within = Some(within);
        let message = digest(message).await;
        let (outcome, answer) = oneshot::channel();
        let id = RequestId::default();
        let hears = Hears::Request {
            id: Arc::clone(&id),
            outcome,
        };
        // A message that has left is not withdrawn any more; its reply may come after the wait for room.
        let waiter = Waiter::new([message], hears);
        let outcome = self.wait_for_room(waiter, wait, answer).await??;
        let id = id.get().ok_or(BusError::Stopping)?;
        Ok((*id, outcome))
    }

    /// Sends a message and waits for its reply for `within`. Dropping the future leaves a message that has an id
    /// on its way.
    pub(crate) async fn request(
        &self,
        message: Outgoing,
        within: Duration,
    ) -> Result<(MessageId, ReplyOutcome), BusError> {
        self.ask(message, within, RequestId::default()).await
    }

    /// The same; `id` is there as soon as the message is on its way. If the future is dropped before, it does not go:
    /// nobody could ask for it.
    async fn ask(
        &self,
        mut message: Outgoing,
        within: Duration,
        id: RequestId,
    ) -> Result<(MessageId, ReplyOutcome), BusError> {
        message.reply_within = Some(within);
        let message = digest(message).await;
        let (sender, outcome) = oneshot::channel();
        self.send(BusCommand::Request {
            message,
            id: Arc::clone(&id),
            outcome: sender,
        })
        .await?;
        let outcome = outcome.await.map_err(|_| BusError::Stopping)??;
        let id = id.get().ok_or(BusError::Stopping)?;
        Ok((*id, outcome))
    }

    /// Answers the message `id`, whose sender is the destination.
    pub(crate) async fn reply(&self, id: MessageId, message: Outgoing) -> Result<(), BusError> {
        let message = digest(message).await;
        let (taken, answer) = oneshot::channel();
        self.send(BusCommand::Reply { id, message, taken }).await?;
        Ok(answer.await.map_err(|_| BusError::Stopping)??)
    }

    /// The same, and acknowledges the message; neither when its lease has ended.
    pub(crate) async fn reply_leased(
        &self,
        id: MessageId,
        message: Outgoing,
        token: Token,
    ) -> Result<(), BusError> {
        let leased = self.leases.take(token);
        let leased = leased.ok_or(BusError::LeaseEnded(token))?;
        let of_it = leased.key.id == id;
        // Nobody else may get the message while its answer is under way.
        let result = if of_it {
            self.reply(id, message).await
        } else {
            Err(BusError::OtherMessage(token))
        };
        self.leases.put_back(token, leased);
        result?;
        self.acknowledge(&[token]).await?;
        Ok(())
    }

    /// Hands out the oldest messages of the inbox, of one topic or of any: one at least, waiting for it for `timeout`,
    /// then as many as fit `most`. They leave the inbox when they are [written](Delivery::written), with a lease when
    /// they are acknowledged. If the future or what it gives is dropped, they stay.
    pub(crate) async fn pop(
        &self,
        topic: Option<Topic>,
        most: Room,
        timeout: Option<Duration>,
        lease: Option<Duration>,
    ) -> Result<Option<Handed>, BusError> {
        let taken = if lease.is_some() {
            let take = || self.inbox.take_recorded(topic.clone(), most);
            self.wait(timeout, take).await?
        } else {
            self.wait(timeout, || self.inbox.take(topic.clone(), most))
                .await?
        };
        Ok(taken.map(|taken| Delivery::of(self, taken, lease)))
    }

    /// Messages of the inbox without their payloads, and how many there are.
    pub(crate) async fn list(
        &self,
        topic: Option<Topic>,
        after: MessageNumber,
        count: usize,
    ) -> Result<Listing, BusError> {
        Ok(self.inbox.list(topic, after, count).await?)
    }

    /// The oldest message of the inbox, left there.
    pub(crate) async fn peek(
        &self,
        topic: Option<Topic>,
        timeout: Option<Duration>,
    ) -> Result<Option<Inbound>, BusError> {
        self.wait(timeout, || self.inbox.peek(topic.clone())).await
    }

    /// Asks the inbox until it has something, or the time is over.
    async fn wait<T, F: Future<Output = Result<Option<T>, InboxError>>>(
        &self,
        timeout: Option<Duration>,
        ask: impl Fn() -> F,
    ) -> Result<Option<T>, BusError> {
        let Some(timeout) = timeout else {
            return Ok(ask().await?);
        };
        let _waiting = self.inbox.wait(POPPERS_MAX).ok_or(BusError::Busy)?;
        let mut changed = self.inbox.changed();
        let found = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = ask().await? {
                    return Ok(Some(found));
                }
                if changed.changed().await.is_err() {
                    return Err(BusError::Stopping);
                }
            }
        };
        // A message that comes in the same moment is let go again.
        tokio::time::timeout(timeout, found)
            .await
            .unwrap_or(Ok(None))
    }

    /// Tells the sender of a message that it was read.
    pub(crate) async fn read(&self, key: DeliveryKey) -> Result<(), BusError> {
        self.send(BusCommand::Read(vec![key])).await
    }

    /// Where an outgoing message is.
    pub(crate) async fn info(&self, id: MessageId) -> Result<Option<MessageInfo>, BusError> {
        let (sender, answer) = oneshot::channel();
        self.send(BusCommand::Info(id, sender)).await?;
        answer.await.map_err(|_| BusError::Stopping)
    }

    /// Puts other topics in force.
    pub(crate) async fn set_topics(&self, topics: Topics) -> Result<(), BusError> {
        let (sender, done) = oneshot::channel();
        self.send(BusCommand::SetTopics(topics, sender)).await?;
        done.await.map_err(|_| BusError::Stopping)
    }

    /// Decides about a message that went to the channel of [`BusCommand::OnForward`].
    pub(crate) async fn settle(
        &self,
        key: DeliveryKey,
        verdict: Result<(), Refuse>,
    ) -> Result<(), BusError> {
        self.send(BusCommand::Settle(key, verdict)).await
    }

    pub(super) async fn send(&self, command: BusCommand) -> Result<(), BusError> {
        let sent = self.commands.send(Command::Bus(command)).await;
        sent.map_err(|_| BusError::Stopping)
    }
}

async fn digest_long(messages: &mut [Outgoing]) {
    for message in messages {
        if message.payload.len() >= DIGEST_APART {
            *message = digest(message.clone()).await;
        }
    }
}

/// Works out the digest of a long payload where it holds nobody up.
async fn digest(mut message: Outgoing) -> Outgoing {
    if message.digest.is_none() && message.payload.len() >= DIGEST_APART {
        let payload = message.payload.clone();
        let digest = tokio::task::spawn_blocking(move || *blake3::hash(&payload).as_bytes());
        // Without one the engine works it out.
        message.digest = digest.await.ok();
    }
    message
}

/// Gives a command if it is dropped with one.
struct Leaving<'a> {
    commands: &'a mpsc::Sender<Command>,
    command: Option<BusCommand>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let (Some(command), Ok(runtime)) =
            (self.command.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let commands = self.commands.clone();
        runtime.spawn(async move {
            // The engine task may have ended, and everything with it.
            let _ = commands.send(Command::Bus(command)).await;
        });
    }
}

/// Withdraws a message, and the wait for its reply, when it is dropped before the reply is there.
struct Withdraw<'a> {
    handle: &'a Handle,
    id: Option<RequestId>,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let id = self.id.as_ref().and_then(|id| id.get().copied());
        drop(Leaving {
            commands: &self.handle.commands,
            command: id.map(BusCommand::Cancel),
        });
    }
}

impl Courier for Handle {
    async fn request(&self, message: Outgoing, within: Duration) -> Result<Bytes, Failure> {
        let id = RequestId::default();
        let mut withdraw = Withdraw {
            handle: self,
            id: Some(Arc::clone(&id)),
        };
        // Dropped before the other: whoever finds the id set afterwards also finds nobody waiting.
        let outcome = self.ask(message, within, id).await;
        withdraw.id = None;
        match outcome.map_err(|error| failure(&error))?.1 {
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

    async fn tell(&self, message: Outgoing) -> Result<(), Failure> {
        let pushed = self.push(message).await;
        pushed.map(|_| ()).map_err(|error| failure(&error))
    }

    async fn answer(&self, key: DeliveryKey, message: Outgoing) -> bool {
        let message = digest(message).await;
        let (taken, answer) = oneshot::channel();
        let sent = self.send(BusCommand::Answer {
            key,
            message,
            taken,
        });
        sent.await.is_ok() && matches!(answer.await, Ok(Ok(())))
    }

    async fn fail(&self, key: DeliveryKey, failure: ReplyFailure) {
        let message = Outgoing {
            destination: Destination::Key(key.peer),
            topic: Topic::default(),
            payload: Bytes::new(),
            digest: None,
            try_for: None,
            reply_within: None,
            failure: Some(failure),
        };
        // A sender that does not hear of it waits for as long as it wanted to.
        let _ = self.reply(key.id, message).await;
    }

    async fn settle(&self, key: DeliveryKey, verdict: Result<(), Refuse>) {
        // If the node ends, the sender sends again to its next life.
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
