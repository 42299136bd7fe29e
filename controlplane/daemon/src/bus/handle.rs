//! What the rest of the control plane asks of the bus: RPC, administration, socket proxies.

#![allow(dead_code, reason = "the surface that RPC and proxies are built on")]

use std::time::Duration;

use hyphae_bus::topics::Topics;
use hyphae_bus::{
    AbortReason, DeliveryKey, Inbound, MessageId, MessageInfo, Outgoing, PushError, Refuse, Topic,
};
use tokio::sync::{mpsc, oneshot};

use crate::node::Command;

/// Payloads from this size on are digested on a thread of their own.
const DIGEST_APART: usize = 256 * 1024;

/// Something asked of the bus.
pub(crate) enum BusCommand {
    Push {
        message: Outgoing,
        taken: oneshot::Sender<Result<MessageId, PushError>>,
        /// Gets the reply, if one is waited for.
        outcome: Option<oneshot::Sender<ReplyOutcome>>,
    },
    Reply {
        id: MessageId,
        message: Outgoing,
        taken: oneshot::Sender<Result<(), PushError>>,
    },
    Cancel(MessageId),
    Pop {
        topic: Option<Topic>,
        peek: bool,
        /// Stay until there is a message, or the receiver is dropped.
        wait: bool,
        answer: oneshot::Sender<Popped>,
    },
    /// A message that was taken did not reach whoever asked.
    Restore(Inbound),
    Read(DeliveryKey),
    Info(MessageId, oneshot::Sender<Option<MessageInfo>>),
    Topics(oneshot::Sender<Topics>),
    SetTopics(Topics, oneshot::Sender<()>),
    /// The inbox has made a message durable, or could not.
    Committed(DeliveryKey, bool),
    Settle(DeliveryKey, Result<(), Refuse>),
    /// Put a message, which was delivered elsewhere and not settled, into the inbox.
    Store(Inbound),
    OnAdmin(mpsc::Sender<Inbound>),
    OnForward(mpsc::Sender<Inbound>),
}

/// A message that was taken from the inbox, or why there is none.
pub(crate) enum Popped {
    Message(crate::inbox::Taken),
    /// There is none, and the caller does not wait.
    Empty,
    /// Too many wait already.
    Busy,
}

/// What came of waiting for a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplyOutcome {
    /// The reply.
    Reply(Box<Inbound>),
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
    /// The inbox could not make a removal durable; the message is still there.
    #[error("the inbox could not be written; the message stays in it")]
    Inbox,
    /// The node is ending.
    #[error("the node is shutting down")]
    Stopping,
}

/// A way to the bus of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    pub(crate) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    /// Sends a message.
    pub(crate) async fn push(&self, message: Outgoing) -> Result<MessageId, BusError> {
        let message = digest(message).await;
        let (taken, answer) = oneshot::channel();
        self.send(BusCommand::Push {
            message,
            taken,
            outcome: None,
        })
        .await?;
        Ok(answer.await.map_err(|_| BusError::Stopping)??)
    }

    /// Sends a message and waits for its reply for `within`. Dropping the future leaves the message
    /// on its way.
    pub(crate) async fn request(
        &self,
        mut message: Outgoing,
        within: Duration,
    ) -> Result<(MessageId, ReplyOutcome), BusError> {
        message.reply_within = Some(within);
        let message = digest(message).await;
        let (taken, answer) = oneshot::channel();
        let (sender, outcome) = oneshot::channel();
        self.send(BusCommand::Push {
            message,
            taken,
            outcome: Some(sender),
        })
        .await?;
        let id = answer.await.map_err(|_| BusError::Stopping)??;
        let outcome = outcome.await.map_err(|_| BusError::Stopping)?;
        Ok((id, outcome))
    }

    /// Answers the message `id`, whose sender is the destination.
    pub(crate) async fn reply(&self, id: MessageId, message: Outgoing) -> Result<(), BusError> {
        let message = digest(message).await;
        let (taken, answer) = oneshot::channel();
        self.send(BusCommand::Reply { id, message, taken }).await?;
        Ok(answer.await.map_err(|_| BusError::Stopping)??)
    }

    /// Withdraws a message that is not delivered yet, and the wait for its reply.
    pub(crate) async fn cancel(&self, id: MessageId) -> Result<(), BusError> {
        self.send(BusCommand::Cancel(id)).await
    }

    /// Takes the oldest message out of the inbox, of one topic or of any, waiting for one for
    /// `timeout`. Its sender learns that it has been read. If the future is dropped, the message
    /// stays in the inbox.
    pub(crate) async fn pop(
        &self,
        topic: Option<Topic>,
        timeout: Option<Duration>,
    ) -> Result<Option<Inbound>, BusError> {
        let taken = self.wait_for(topic, timeout, false).await?;
        let Some(taken) = taken else {
            return Ok(None);
        };
        let (inbound, durable) = taken.disarm();
        if let Some(durable) = durable
            && !durable.await
        {
            return Err(BusError::Inbox);
        }
        self.send(BusCommand::Read(inbound.key())).await?;
        Ok(Some(inbound))
    }

    /// The oldest message of the inbox, left there.
    pub(crate) async fn peek(
        &self,
        topic: Option<Topic>,
        timeout: Option<Duration>,
    ) -> Result<Option<Inbound>, BusError> {
        let taken = self.wait_for(topic, timeout, true).await?;
        Ok(taken.map(|taken| taken.disarm().0))
    }

    async fn wait_for(
        &self,
        topic: Option<Topic>,
        timeout: Option<Duration>,
        peek: bool,
    ) -> Result<Option<Guard>, BusError> {
        let (answer, receiver) = oneshot::channel();
        let mut waiter = Waiter {
            receiver,
            commands: self.commands.clone(),
            peek,
        };
        self.send(BusCommand::Pop {
            topic,
            peek,
            wait: timeout.is_some(),
            answer,
        })
        .await?;
        let popped = match timeout {
            None => (&mut waiter.receiver).await.ok(),
            Some(timeout) => match tokio::time::timeout(timeout, &mut waiter.receiver).await {
                Ok(popped) => popped.ok(),
                // It may have come in the same moment.
                Err(_) => Some(waiter.close().unwrap_or(Popped::Empty)),
            },
        };
        match popped {
            None => Err(BusError::Stopping),
            Some(Popped::Busy) => Err(BusError::Busy),
            Some(Popped::Empty) => Ok(None),
            Some(Popped::Message(taken)) => Ok(Some(Guard {
                taken: Some(taken),
                commands: self.commands.clone(),
                peek,
            })),
        }
    }

    /// Where an outgoing message is.
    pub(crate) async fn info(&self, id: MessageId) -> Result<Option<MessageInfo>, BusError> {
        let (sender, answer) = oneshot::channel();
        self.send(BusCommand::Info(id, sender)).await?;
        answer.await.map_err(|_| BusError::Stopping)
    }

    /// The topics in force.
    pub(crate) async fn topics(&self) -> Result<Topics, BusError> {
        let (sender, answer) = oneshot::channel();
        self.send(BusCommand::Topics(sender)).await?;
        answer.await.map_err(|_| BusError::Stopping)
    }

    /// Puts other topics in force.
    pub(crate) async fn set_topics(&self, topics: Topics) -> Result<(), BusError> {
        let (sender, done) = oneshot::channel();
        self.send(BusCommand::SetTopics(topics, sender)).await?;
        done.await.map_err(|_| BusError::Stopping)
    }

    /// From now on, messages on the topic of administration go to this channel instead of the
    /// inbox. They count as received by then.
    pub(crate) async fn on_admin(&self, calls: mpsc::Sender<Inbound>) -> Result<(), BusError> {
        self.send(BusCommand::OnAdmin(calls)).await
    }

    /// From now on, messages on topics with a forward socket go to this channel instead of the
    /// inbox. Whoever takes one must [`Self::settle`] or [`Self::store`] it; its sender waits for
    /// that.
    pub(crate) async fn on_forward(&self, topics: mpsc::Sender<Inbound>) -> Result<(), BusError> {
        self.send(BusCommand::OnForward(topics)).await
    }

    /// Decides about a message that went to the channel of [`Self::on_forward`].
    pub(crate) async fn settle(
        &self,
        key: DeliveryKey,
        verdict: Result<(), Refuse>,
    ) -> Result<(), BusError> {
        self.send(BusCommand::Settle(key, verdict)).await
    }

    /// Puts a message that went to the channel of [`Self::on_forward`] into the inbox after all,
    /// which decides about it.
    pub(crate) async fn store(&self, inbound: Inbound) -> Result<(), BusError> {
        self.send(BusCommand::Store(inbound)).await
    }

    async fn send(&self, command: BusCommand) -> Result<(), BusError> {
        let sent = self.commands.send(Command::Bus(command)).await;
        sent.map_err(|_| BusError::Stopping)
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

/// A wait for a message. A message that comes when nobody is there any more goes back.
struct Waiter {
    receiver: oneshot::Receiver<Popped>,
    commands: mpsc::Sender<Command>,
    peek: bool,
}

impl Waiter {
    fn close(&mut self) -> Option<Popped> {
        self.receiver.close();
        self.receiver.try_recv().ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(Popped::Message(taken)) = self.close()
            && !self.peek
        {
            restore(&self.commands, taken.inbound);
        }
    }
}

/// A message that goes back unless it is disarmed.
struct Guard {
    taken: Option<crate::inbox::Taken>,
    commands: mpsc::Sender<Command>,
    peek: bool,
}

impl Guard {
    fn disarm(mut self) -> (Inbound, Option<crate::inbox::Durable>) {
        match self.taken.take() {
            Some(taken) => (taken.inbound, taken.durable),
            None => unreachable!("a guard is disarmed once"),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take()
            && !self.peek
        {
            restore(&self.commands, taken.inbound);
        }
    }
}

fn restore(commands: &mpsc::Sender<Command>, inbound: Inbound) {
    let commands = commands.clone();
    tokio::spawn(async move {
        // If the node ends, the inbox ends with it.
        let _ = commands
            .send(Command::Bus(BusCommand::Restore(inbound)))
            .await;
    });
}
