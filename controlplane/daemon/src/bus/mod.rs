//! The bus inside the node: its engine, the inbox, and who waits for what.
//!
//! [`Service`] lives in the engine task. Everybody else has a [`Handle`]. A message that came in
//! goes to whoever waits for it as a reply, to administration, to the proxy of its topic's forward
//! socket, or into the inbox; only then is its sender told that it was received.

mod handle;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt;
use hyphae_bus::topics::Topics;
use hyphae_bus::{
    Bus, Config, DeliveryKey, Event, Inbound, MessageId, MessageState, Outgoing, Refuse, Room,
    Stats, Transmit,
};
use hyphae_wire::{Nanos, OverlayAddress, PublicKey};
use tokio::sync::{mpsc, oneshot, watch};

use handle::Requested;
pub(crate) use handle::{BusCommand, BusError, DIGEST_APART, Handle, ReplyOutcome};

use crate::inbox::{Found, Inbox, PutError};
use crate::node::Command;
use crate::proxy::Side;

/// What metrics show of the bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct BusScrape {
    pub(crate) stats: Stats,
    pub(crate) inbox_messages: u64,
    pub(crate) inbox_bytes: u64,
    pub(crate) inbox_messages_max: u64,
    pub(crate) inbox_bytes_max: u64,
    pub(crate) waiting: u64,
    pub(crate) unknown_sources: u64,
    pub(crate) inbox_failures: u64,
    pub(crate) inbox_commits: u64,
    pub(crate) proxies: BTreeMap<(Side, &'static str), u64>,
}

/// What the inbox says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    Yes,
    Full,
    Failed,
}

/// The bus of a node.
pub(crate) struct Service {
    bus: Bus,
    inbox: Inbox,
    /// On their way into the inbox.
    storing: Room,
    /// Of these, those that nobody has brought there yet.
    fresh: Vec<Inbound>,
    commands: mpsc::Sender<Command>,
    replies: BTreeMap<MessageId, oneshot::Sender<Requested>>,
    admin: Option<mpsc::Sender<Inbound>>,
    forward: Option<mpsc::Sender<Inbound>>,
    unknown_sources: u64,
    inbox_failures: u64,
    /// The topics in force, for those who cannot ask the engine task.
    topics: watch::Sender<Arc<Topics>>,
    proxies: crate::proxy::Stats,
}

impl Service {
    pub(crate) fn new(
        now: Nanos,
        config: Config,
        seed: [u8; 32],
        topics: Topics,
        (inbox, found): (Inbox, Found),
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let (shared, _) = watch::channel(Arc::new(topics.clone()));
        let mut bus = Bus::new(config, topics, seed);
        bus.seed_completed(now, found.completed);
        let mut service = Self {
            bus,
            inbox,
            storing: Room {
                messages: 0,
                bytes: 0,
            },
            fresh: Vec::new(),
            commands,
            replies: BTreeMap::new(),
            admin: None,
            forward: None,
            unknown_sources: 0,
            inbox_failures: 0,
            topics: shared,
            proxies: crate::proxy::Stats::default(),
        };
        service.tell_room();
        service
    }

    /// A way to this bus.
    pub(crate) fn handle(&self) -> Handle {
        Handle::new(
            self.commands.clone(),
            self.inbox.clone(),
            self.topics.subscribe(),
            self.bus.pool().clone(),
        )
    }

    /// What long payloads have left goes back to the kernel, if no others came.
    pub(crate) fn give_back_memory(&self) {
        self.bus.pool().expire();
    }

    /// Where socket proxies count.
    pub(crate) fn proxies(&self) -> crate::proxy::Stats {
        self.proxies.clone()
    }

    /// Tells the engine how much more may come.
    fn tell_room(&mut self) {
        let (limits, (messages, bytes)) = (self.inbox.limits(), self.inbox.depth());
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let left = |max: usize, held: u64, coming: usize| {
            max.saturating_sub(count(held)).saturating_sub(coming)
        };
        self.bus.set_room(Room {
            messages: left(limits.messages_max, messages, self.storing.messages),
            bytes: left(count(limits.bytes_max), bytes, self.storing.bytes),
        });
    }

    /// A packet of a node. The key is missing when its session has just ended.
    pub(crate) fn handle_packet(
        &mut self,
        now: Nanos,
        key: Option<PublicKey>,
        address: OverlayAddress,
        bytes: &[u8],
    ) {
        match key {
            Some(key) => self.bus.handle_packet(now, key, address, bytes),
            None => self.unknown_sources += 1,
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) {
        self.bus.handle_timeout(now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Nanos> {
        self.bus.poll_timeout()
    }

    pub(crate) fn poll_transmit(&mut self, now: Nanos) -> Option<Transmit> {
        self.bus.poll_transmit(now)
    }

    /// Takes back what [`Self::poll_transmit`] gave.
    pub(crate) fn transmitted(&mut self, transmit: Transmit) {
        self.bus.transmitted(transmit);
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        self.bus.wants_transmit()
    }

    pub(crate) fn session_up(
        &mut self,
        now: Nanos,
        address: OverlayAddress,
        key: PublicKey,
        mtu: usize,
    ) {
        self.bus.session_up(now, address, key, mtu);
    }

    pub(crate) fn path_mtu(&mut self, address: OverlayAddress, mtu: usize) {
        self.bus.path_mtu(address, mtu);
    }

    pub(crate) fn session_down(&mut self, now: Nanos, address: OverlayAddress) {
        self.bus.session_down(now, address);
    }

    /// Does what the events say; gives the next address that a session is wanted for.
    pub(crate) fn poll_session(&mut self, now: Nanos) -> Option<OverlayAddress> {
        while let Some(event) = self.bus.poll_event() {
            match event {
                Event::NeedSession(address) => return Some(address),
                Event::Deliver(inbound) => self.deliver(now, inbound),
                Event::Finished {
                    id,
                    reply: false,
                    state: MessageState::Aborted,
                    reason: Some(reason),
                } => self.outcome(id, ReplyOutcome::Aborted(reason)),
                Event::Finished { .. } => {}
                Event::ReplyTimeout(id) => self.outcome(id, ReplyOutcome::TimedOut),
            }
        }
        None
    }

    fn outcome(&mut self, id: MessageId, outcome: ReplyOutcome) {
        if let Some(waiting) = self.replies.remove(&id) {
            // Whoever asked may have gone.
            let _ = waiting.send(Ok(outcome));
        }
    }

    /// A whole message: to whom it belongs.
    fn deliver(&mut self, now: Nanos, inbound: Inbound) {
        let key = inbound.key();
        if inbound.reply {
            let reply = ReplyOutcome::Reply(Box::new(inbound));
            let waiting = self.replies.remove(&key.id);
            if waiting.is_some_and(|waiting| waiting.send(Ok(reply)).is_ok()) {
                self.bus.accepted(now, key);
            } else {
                // Nobody will ever read it, and its sender should know.
                self.bus.refused(now, key, Refuse::Rejected);
            }
            return;
        }
        if inbound.topic.is_admin() {
            let Some(admin) = &self.admin else {
                self.bus.refused(now, key, Refuse::Rejected);
                return;
            };
            match admin.try_send(inbound) {
                Ok(()) => self.bus.accepted_to_answer(now, key),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.bus.refused(now, key, Refuse::Full);
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    self.bus.refused(now, key, Refuse::Rejected);
                }
            }
            return;
        }
        let config = self.bus.topics().topics.get(&inbound.topic);
        let forwarded = config.is_some_and(|config| config.forward_socket.is_some());
        match self.forward.as_ref().filter(|_| forwarded) {
            Some(forward) => match forward.try_send(inbound) {
                // The proxy settles it.
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.bus.refused(now, key, Refuse::Full);
                }
                Err(mpsc::error::TrySendError::Closed(inbound)) => self.keep(inbound),
            },
            None => self.keep(inbound),
        }
    }

    /// Into the inbox, which decides; with the next [`Self::store`].
    fn keep(&mut self, inbound: Inbound) {
        self.storing.messages += 1;
        self.storing.bytes += inbound.payload.len();
        self.fresh.push(inbound);
        self.tell_room();
    }

    /// Brings what has come into the inbox, all at once. True when that has decided about it already, as an
    /// inbox in memory does.
    pub(crate) fn store(&mut self, now: Nanos) -> bool {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return false;
        }
        let of = |inbound: &Inbound| (inbound.key(), inbound.payload.len());
        let keys: Vec<_> = fresh.iter().map(of).collect();
        let inbox = self.inbox.clone();
        let mut kept = Box::pin(async move {
            let kept = inbox.put_all(fresh, false).await.into_iter();
            let kept = kept.map(|put| match put {
                Ok(_) => Kept::Yes,
                Err(PutError::Full) => Kept::Full,
                Err(PutError::Failed(_)) => Kept::Failed,
            });
            keys.into_iter().zip(kept).collect()
        });
        if let Some(kept) = (&mut kept).now_or_never() {
            self.stored(now, kept);
            return true;
        }
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let command = Command::Bus(BusCommand::Stored(kept.await));
            // The engine task may be ending.
            let _ = commands.send(command).await;
        });
        false
    }

    fn stored(&mut self, now: Nanos, messages: Vec<((DeliveryKey, usize), Kept)>) {
        for ((key, bytes), kept) in messages {
            self.storing.messages -= 1;
            self.storing.bytes -= bytes;
            match kept {
                Kept::Yes => self.bus.accepted(now, key),
                Kept::Full => self.bus.refused(now, key, Refuse::Full),
                Kept::Failed => {
                    self.inbox_failures += 1;
                    self.bus.refused(now, key, Refuse::Full);
                }
            }
        }
        self.tell_room();
    }

    fn cancel(&mut self, now: Nanos, id: MessageId) {
        self.bus.cancel(now, id);
        self.replies.remove(&id);
    }

    /// Sends a message whose reply is waited for, unless whoever waits has gone. If he goes later he finds the id and
    /// withdraws it; if he goes meanwhile, he may not find it.
    fn request(
        &mut self,
        now: Nanos,
        message: Outgoing,
        place: &OnceLock<MessageId>,
        outcome: oneshot::Sender<Requested>,
    ) {
        if outcome.is_closed() {
            return;
        }
        match self.bus.push(now, message) {
            Ok(id) => {
                // Nobody else sets it.
                let _ = place.set(id);
                if outcome.is_closed() {
                    self.cancel(now, id);
                } else {
                    self.replies.insert(id, outcome);
                }
            }
            Err(error) => {
                let _ = outcome.send(Err(error));
            }
        }
    }

    /// Does what a command asks.
    pub(crate) fn handle_command(&mut self, now: Nanos, command: BusCommand) {
        // Whoever asked may have gone; then the answer is nobody's.
        match command {
            BusCommand::Push { message, taken } => {
                let _ = taken.send(self.bus.push(now, message));
            }
            BusCommand::Request {
                message,
                id,
                outcome,
            } => self.request(now, message, &id, outcome),
            BusCommand::PushAll { messages, taken } => {
                let push = |message| self.bus.push(now, message);
                let _ = taken.send(messages.into_iter().map(push).collect());
            }
            BusCommand::Reply { id, message, taken } => {
                let _ = taken.send(self.bus.reply(now, id, message));
            }
            BusCommand::Answer {
                key,
                message,
                taken,
            } => {
                let answered = self.bus.reply(now, key.id, message);
                if answered.is_ok() {
                    self.bus.mark_read(now, key);
                }
                let _ = taken.send(answered);
            }
            BusCommand::Cancel(id) => self.cancel(now, id),
            BusCommand::Read(keys) => {
                for key in keys {
                    self.bus.mark_read(now, key);
                }
                self.tell_room();
            }
            BusCommand::Info(id, answer) => {
                let _ = answer.send(self.bus.info(id));
            }
            BusCommand::SetTopics(topics, done) => {
                self.topics.send_replace(Arc::new(topics.clone()));
                self.bus.set_topics(topics);
                let _ = done.send(());
            }
            BusCommand::Stored(messages) => self.stored(now, messages),
            BusCommand::Settle(key, verdict) => {
                match verdict {
                    Ok(()) => self.bus.accepted_to_answer(now, key),
                    Err(refuse) => self.bus.refused(now, key, refuse),
                }
                self.tell_room();
            }
            BusCommand::OnAdmin(calls) => self.admin = Some(calls),
            BusCommand::OnForward(topics) => self.forward = Some(topics),
        }
    }

    pub(crate) fn scrape(&self) -> BusScrape {
        BusScrape {
            stats: self.bus.stats(),
            inbox_messages: self.inbox.depth().0,
            inbox_bytes: self.inbox.depth().1,
            inbox_messages_max: self.inbox.limits().messages_max as u64,
            inbox_bytes_max: self.inbox.limits().bytes_max,
            waiting: self.inbox.waiting(),
            unknown_sources: self.unknown_sources,
            inbox_failures: self.inbox_failures,
            inbox_commits: self.inbox.commits(),
            proxies: self.proxies.all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyphae_bus::{AbortReason, Destination, Topic};

    use super::*;
    use crate::inbox::Limits;
    use crate::proxy::Courier;

    /// The next command of a node whose task is this test.
    async fn command(receiver: &mut mpsc::Receiver<Command>) -> BusCommand {
        match receiver.recv().await.unwrap() {
            Command::Bus(command) => command,
            Command::Call { .. } | Command::Scrape(_) | Command::Shutdown => {
                panic!("a command of the bus")
            }
        }
    }

    #[tokio::test]
    async fn item_25_a_client_that_goes_away_leaves_no_message_behind() {
        let (commands, mut receiver) = mpsc::channel(8);
        let limits = Limits {
            messages_max: 8,
            bytes_max: 1 << 20,
            completed_max: 8,
        };
        let inbox = (Inbox::in_memory(limits).unwrap(), Found::default());
        let (key, now) = (PublicKey([1; 32]), Nanos(1));
        let topics = Topics::default();
        let mut service = Service::new(now, Config::new(key), [7; 32], topics, inbox, commands);
        let message = Outgoing {
            destination: Destination::Key(PublicKey([2; 32])),
            topic: Topic::default(),
            payload: vec![0; 1000].into(),
            digest: None,
            try_for: None,
            reply_within: None,
        };
        let request = || {
            let (handle, message) = (service.handle(), message.clone());
            let wait = Duration::from_secs(300);
            tokio::spawn(async move { Courier::request(&handle, message, wait).await })
        };
        let (early, late) = (request(), request());

        // One goes before it knows the id.
        let push = command(&mut receiver).await;
        early.abort();
        assert!(early.await.unwrap_err().is_cancelled());
        service.handle_command(now, push);
        assert!(service.replies.is_empty());

        // The other while it waits.
        let push = command(&mut receiver).await;
        service.handle_command(now, push);
        let id = *service.replies.keys().next().unwrap();
        tokio::task::yield_now().await;
        late.abort();
        assert!(late.await.unwrap_err().is_cancelled());
        let cancel = command(&mut receiver).await;
        service.handle_command(now, cancel);
        assert!(service.replies.is_empty());
        let info = service.bus.info(id).unwrap();
        assert_eq!(info.state, MessageState::Aborted);
        assert_eq!(info.reason, Some(AbortReason::Cancelled));
    }
}
