//! The bus inside the node: its engine, the inbox, and who waits for what.
//!
//! [`Service`] lives in the engine task. Everybody else has a [`Handle`]. A message that came in
//! goes to whoever waits for it as a reply, to administration, to the proxy of its topic's forward
//! socket, or into the inbox; only then is its sender told that it was received.

mod delivery;
mod handle;
mod waitlist;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt;
use hyphae_bus::topics::Topics;
use hyphae_bus::{
    Bus, Config, DeliveryKey, Event, Inbound, MessageId, MessageState, Outgoing, PushError, Refuse,
    Room, Transmit,
};
use hyphae_time::Nanos;

use hyphae_wire::{OverlayAddress, PublicKey};
use tokio::sync::{mpsc, oneshot, watch};

use delivery::Leases;
pub(crate) use delivery::{Delivery, Handed, Note, Token};
use handle::Requested;
pub(crate) use handle::{BusCommand, BusError, DIGEST_APART, Handle, ReplyOutcome};
use waitlist::{Hears, Ticket, Waiter, Waitlist};

use crate::node::request::Command;
use crate::node::snapshot::BusSnapshot;
use hyphae_store::inbox::{Found, Inbox, PutError};

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
    leases: Arc<Leases>,
    /// Messages of this node that wait for room.
    waitlist: Waitlist,
    tickets: Arc<AtomicU64>,
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
            leases: Leases::start(&seed),
            waitlist: Waitlist::default(),
            tickets: Arc::default(),
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
            Arc::clone(&self.leases),
            Arc::clone(&self.tickets),
        )
    }

    /// What long payloads have left goes back to the kernel, if no others came.
    pub(crate) fn give_back_memory(&self) {
        self.bus.pool().expire();
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
        self.bus.recycle(transmit);
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
        while let Some(event) = self.next_event(now) {
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

    /// The next event; what has left makes room for what waits, of which there may be events.
    fn next_event(&mut self, now: Nanos) -> Option<Event> {
        self.bus.poll_event().or_else(|| {
            self.admit(now);
            self.bus.poll_event()
        })
    }

    /// Sends what waits, as far as there is room.
    fn admit(&mut self, now: Nanos) {
        while let Some((ticket, waiter)) = self.waitlist.first() {
            let gone = waiter.hears.is_closed();
            let len = waiter.messages.front().map(|message| message.payload.len());
            if len.is_some_and(|len| !gone && !self.bus.has_room(len)) {
                return;
            }
            if !gone && let Some((ticket, message)) = self.waitlist.take() {
                let pushed = self.bus.push(now, message);
                if let Some(waiter) = self.waitlist.get(ticket) {
                    waiter.results.push(pushed);
                    if let Err(error) = pushed {
                        self.end_wait(now, ticket, error);
                    } else if waiter.messages.is_empty() {
                        let waiter = self.waitlist.remove(ticket);
                        waiter
                            .into_iter()
                            .for_each(|waiter| self.heard(now, waiter));
                    }
                }
            } else {
                self.waitlist.remove(ticket);
            }
        }
    }

    /// Ends the wait of a call for room.
    fn end_wait(&mut self, now: Nanos, ticket: Ticket, error: PushError) {
        if let Some(mut waiter) = self.waitlist.remove(ticket) {
            waiter.fail(error);
            self.heard(now, waiter);
        }
    }

    /// Says what became of the messages of a call that waited for room.
    fn heard(&mut self, now: Nanos, waiter: Waiter) {
        match waiter.hears {
            Hears::Each(taken) => {
                // Whoever asked may have gone.
                let _ = taken.send(waiter.results);
            }
            Hears::Request { id, outcome } => match waiter.results.into_iter().next() {
                Some(Ok(pushed)) => self.await_reply(now, pushed, &id, outcome),
                Some(Err(error)) => {
                    // As above.
                    let _ = outcome.send(Err(error));
                }
                None => {}
            },
        }
    }

    fn full(&self) -> PushError {
        let stats = self.bus.stats();
        PushError::QueueFull {
            messages: stats.outgoing + self.waitlist.len(),
            bytes: stats.outgoing_bytes + self.waitlist.bytes(),
        }
    }

    /// Has a call wait for room, unless there is room now.
    fn push_waiting(&mut self, now: Nanos, ticket: Ticket, waiter: Waiter) {
        let Some(destination) = waiter.messages.front().map(|message| message.destination) else {
            return self.heard(now, waiter);
        };
        let subnet = destination.address().subnet_id();
        match self.waitlist.push(ticket, subnet, waiter) {
            Ok(()) => self.admit(now),
            Err(mut waiter) => {
                waiter.fail(self.full());
                self.heard(now, waiter);
            }
        }
    }

    /// Sends a message now, if none to the same node waits for room.
    fn push(&mut self, now: Nanos, message: Outgoing) -> Result<MessageId, PushError> {
        let waits = !self.waitlist.is_empty()
            && self.waitlist.has(message.destination.address().subnet_id());
        if waits {
            return Err(self.full());
        }
        self.bus.push(now, message)
    }

    fn push_all(
        &mut self,
        now: Nanos,
        messages: Vec<Outgoing>,
        in_order: bool,
    ) -> Vec<Result<MessageId, PushError>> {
        let mut failed = None;
        let push = |message| {
            let pushed = failed.map_or_else(|| self.push(now, message), Err);
            failed = pushed.err().filter(|_| in_order);
            pushed
        };
        messages.into_iter().map(push).collect()
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
            let reply = match inbound.failure {
                None => ReplyOutcome::Reply(Box::new(inbound)),
                Some(failure) => ReplyOutcome::Failed(failure),
            };
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
                Ok(()) => self.bus.accepted_for_reply(now, key),
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
        match self.push(now, message) {
            Ok(id) => self.await_reply(now, id, place, outcome),
            Err(error) => {
                let _ = outcome.send(Err(error));
            }
        }
    }

    fn await_reply(
        &mut self,
        now: Nanos,
        id: MessageId,
        place: &OnceLock<MessageId>,
        outcome: oneshot::Sender<Requested>,
    ) {
        // Nobody else sets it.
        let _ = place.set(id);
        if outcome.is_closed() {
            self.cancel(now, id);
        } else {
            self.replies.insert(id, outcome);
        }
    }

    /// Does what a command asks.
    pub(crate) fn handle_command(&mut self, now: Nanos, command: BusCommand) {
        // Whoever asked may have gone; then the answer is nobody's.
        match command {
            BusCommand::Push { message, taken } => {
                let _ = taken.send(self.push(now, message));
            }
            BusCommand::Request {
                message,
                id,
                outcome,
            } => self.request(now, message, &id, outcome),
            BusCommand::PushAll {
                messages,
                in_order,
                taken,
            } => {
                let _ = taken.send(self.push_all(now, messages, in_order));
            }
            BusCommand::PushWaiting { ticket, waiter } => self.push_waiting(now, ticket, waiter),
            BusCommand::Withdraw(ticket) => self.end_wait(now, ticket, self.full()),
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
                    Ok(()) => self.bus.accepted_for_reply(now, key),
                    Err(refuse) => self.bus.refused(now, key, refuse),
                }
                self.tell_room();
            }
            BusCommand::OnAdmin(calls) => self.admin = Some(calls),
            BusCommand::OnForward(topics) => self.forward = Some(topics),
        }
    }

    pub(crate) fn snapshot(&self) -> BusSnapshot {
        BusSnapshot {
            stats: self.bus.stats(),
            inbox_messages: self.inbox.depth().0,
            inbox_bytes: self.inbox.depth().1,
            inbox_messages_max: self.inbox.limits().messages_max as u64,
            inbox_bytes_max: self.inbox.limits().bytes_max,
            waiting: self.inbox.waiting(),
            leased: self.leases.len() as u64,
            room_waiting: self.waitlist.len() as u64,
            unknown_sources: self.unknown_sources,
            inbox_failures: self.inbox_failures,
            inbox_commits: self.inbox.commits(),
        }
    }
}

#[cfg(test)]
mod tests;
