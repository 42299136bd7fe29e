//! The bus inside the node: its engine, the inbox, and who waits for what.
//!
//! [`Service`] lives in the engine task. Everybody else has a [`Handle`]. A message that came in
//! goes to whoever waits for it as a reply, to administration, to the proxy of its topic's forward
//! socket, or into the inbox; only then is its sender told that it was received.

mod handle;

use std::collections::{BTreeMap, VecDeque};

use hyphae_bus::topics::Topics;
use hyphae_bus::{
    Bus, Config, DeliveryKey, Event, Inbound, MessageId, MessageState, Refuse, Stats, Topic,
    Transmit,
};
use hyphae_wire::{Nanos, OverlayAddress, PublicKey};
use tokio::sync::{mpsc, oneshot};

#[allow(
    unused_imports,
    reason = "the surface that RPC and proxies are built on"
)]
pub(crate) use handle::{BusCommand, BusError, Handle, Popped, ReplyOutcome};

use crate::inbox::{Inbox, Put, Taken};
use crate::node::Command;

/// Calls that wait for messages.
const POPPERS_MAX: usize = 4096;

/// A call that waits for a message.
struct Popper {
    topic: Option<Topic>,
    peek: bool,
    answer: oneshot::Sender<Popped>,
}

/// What metrics show of the bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct BusScrape {
    pub(crate) stats: Stats,
    pub(crate) inbox_messages: usize,
    pub(crate) inbox_bytes: usize,
    pub(crate) waiting: usize,
    pub(crate) unknown_sources: u64,
    pub(crate) inbox_failures: u64,
}

/// The bus of a node.
pub(crate) struct Service {
    bus: Bus,
    inbox: Box<dyn Inbox>,
    commands: mpsc::Sender<Command>,
    replies: BTreeMap<MessageId, oneshot::Sender<ReplyOutcome>>,
    poppers: VecDeque<Popper>,
    admin: Option<mpsc::Sender<Inbound>>,
    forward: Option<mpsc::Sender<Inbound>>,
    unknown_sources: u64,
    inbox_failures: u64,
}

impl Service {
    pub(crate) fn new(
        now: Nanos,
        key: PublicKey,
        seed: [u8; 32],
        topics: Topics,
        mut inbox: Box<dyn Inbox>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let mut bus = Bus::new(Config::new(key), topics, seed);
        bus.seed_completed(now, inbox.completed());
        bus.set_room(inbox.room());
        Self {
            bus,
            inbox,
            commands,
            replies: BTreeMap::new(),
            poppers: VecDeque::new(),
            admin: None,
            forward: None,
            unknown_sources: 0,
            inbox_failures: 0,
        }
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

    pub(crate) fn wants_transmit(&self) -> bool {
        self.bus.wants_transmit()
    }

    pub(crate) fn session_up(&mut self, now: Nanos, address: OverlayAddress, key: PublicKey) {
        self.bus.session_up(now, address, key);
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
            let _ = waiting.send(outcome);
        }
    }

    /// A whole message: to whom it belongs.
    fn deliver(&mut self, now: Nanos, inbound: Inbound) {
        let key = inbound.key();
        if inbound.reply {
            let reply = ReplyOutcome::Reply(Box::new(inbound));
            let waiting = self.replies.remove(&key.id);
            if waiting.is_some_and(|waiting| waiting.send(reply).is_ok()) {
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
                Ok(()) => self.bus.accepted(now, key),
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
                Err(mpsc::error::TrySendError::Closed(inbound)) => self.store(now, inbound),
            },
            None => self.store(now, inbound),
        }
    }

    /// Into the inbox, which decides.
    fn store(&mut self, now: Nanos, inbound: Inbound) {
        let key = inbound.key();
        match self.inbox.put(inbound) {
            Put::Kept => {
                self.bus.accepted(now, key);
                self.serve_poppers();
            }
            Put::Full => self.bus.refused(now, key, Refuse::Full),
            Put::Later(durable) => {
                let commands = self.commands.clone();
                tokio::spawn(async move {
                    let kept = durable.await;
                    let command = Command::Bus(BusCommand::Committed(key, kept));
                    // The engine task may be ending.
                    let _ = commands.send(command).await;
                });
            }
        }
        self.bus.set_room(self.inbox.room());
    }

    fn committed(&mut self, now: Nanos, key: DeliveryKey, kept: bool) {
        self.inbox.committed(&key, kept);
        if kept {
            self.bus.accepted(now, key);
            self.serve_poppers();
        } else {
            self.inbox_failures += 1;
            self.bus.refused(now, key, Refuse::Full);
        }
        self.bus.set_room(self.inbox.room());
    }

    /// Hands messages to those who wait for them, in the order in which they came.
    fn serve_poppers(&mut self) {
        let mut index = 0;
        while index < self.poppers.len() && self.inbox.len() > 0 {
            let popper = &self.poppers[index];
            if popper.answer.is_closed() {
                self.poppers.remove(index);
                continue;
            }
            let (topic, peek) = (popper.topic.clone(), popper.peek);
            let Some(taken) = self.take(topic.as_ref(), peek) else {
                index += 1;
                continue;
            };
            if let Some(popper) = self.poppers.remove(index)
                && let Err(Popped::Message(taken)) = popper.answer.send(Popped::Message(taken))
                && !peek
            {
                self.inbox.restore(taken.inbound);
            }
        }
        self.bus.set_room(self.inbox.room());
    }

    fn take(&mut self, topic: Option<&Topic>, peek: bool) -> Option<Taken> {
        if peek {
            let inbound = self.inbox.peek(topic)?;
            let durable = None;
            Some(Taken { inbound, durable })
        } else {
            self.inbox.take(topic)
        }
    }

    /// Does what a command asks.
    pub(crate) fn handle_command(&mut self, now: Nanos, command: BusCommand) {
        // Whoever asked may have gone; then the answer is nobody's.
        match command {
            BusCommand::Push {
                message,
                taken,
                outcome,
            } => {
                let result = self.bus.push(now, message);
                if let (Ok(id), Some(outcome)) = (&result, outcome) {
                    self.replies.insert(*id, outcome);
                }
                let _ = taken.send(result);
            }
            BusCommand::Reply { id, message, taken } => {
                let _ = taken.send(self.bus.reply(now, id, message));
            }
            BusCommand::Cancel(id) => {
                self.bus.cancel(now, id);
                self.replies.remove(&id);
            }
            BusCommand::Pop {
                topic,
                peek,
                wait,
                answer,
            } => self.pop(topic, peek, wait, answer),
            BusCommand::Restore(inbound) => {
                self.inbox.restore(inbound);
                self.serve_poppers();
            }
            BusCommand::Read(key) => self.bus.mark_read(now, key),
            BusCommand::Info(id, answer) => {
                let _ = answer.send(self.bus.info(id));
            }
            BusCommand::Topics(answer) => {
                let _ = answer.send(self.bus.topics().clone());
            }
            BusCommand::SetTopics(topics, done) => {
                self.bus.set_topics(topics);
                let _ = done.send(());
            }
            BusCommand::Committed(key, kept) => self.committed(now, key, kept),
            BusCommand::Settle(key, Ok(())) => self.bus.accepted(now, key),
            BusCommand::Settle(key, Err(refuse)) => self.bus.refused(now, key, refuse),
            BusCommand::Store(inbound) => self.store(now, inbound),
            BusCommand::OnAdmin(calls) => self.admin = Some(calls),
            BusCommand::OnForward(topics) => self.forward = Some(topics),
        }
    }

    fn pop(
        &mut self,
        topic: Option<Topic>,
        peek: bool,
        wait: bool,
        answer: oneshot::Sender<Popped>,
    ) {
        if !wait {
            let taken = self.take(topic.as_ref(), peek);
            let popped = taken.map_or(Popped::Empty, Popped::Message);
            if let Err(Popped::Message(taken)) = answer.send(popped)
                && !peek
            {
                self.inbox.restore(taken.inbound);
            }
            self.bus.set_room(self.inbox.room());
            return;
        }
        if self.poppers.len() >= POPPERS_MAX {
            self.poppers.retain(|popper| !popper.answer.is_closed());
        }
        if self.poppers.len() >= POPPERS_MAX {
            // Whoever asked may have gone.
            let _ = answer.send(Popped::Busy);
            return;
        }
        self.poppers.push_back(Popper {
            topic,
            peek,
            answer,
        });
        self.serve_poppers();
    }

    pub(crate) fn scrape(&self) -> BusScrape {
        BusScrape {
            stats: self.bus.stats(),
            inbox_messages: self.inbox.len(),
            inbox_bytes: self.inbox.bytes(),
            waiting: self.poppers.len(),
            unknown_sources: self.unknown_sources,
            inbox_failures: self.inbox_failures,
        }
    }
}
