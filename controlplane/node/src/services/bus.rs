//! The message bus as a service: its engine, the inbox, and calls that wait.
//!
//! [`BusService`] runs in the engine task; other tasks use a [`Client`]. An inbound message goes to the request that
//! it replies to, to administration, to the proxy of its topic's forward socket, or into the inbox. It is
//! acknowledged after that.

mod client;
mod inbound;
mod leases;
mod mailbox;
mod outbound;
mod request;
#[cfg(test)]
mod tests;
mod waitlist;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hyphae_bus::topics::Topics;
use hyphae_bus::{Bus, Config, Event, Inbound, MessageId, MessageState, Room};
use hyphae_time::Nanos;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Context, Input, NodeService, RingRoom, Turn};
use crate::snapshot::BusSnapshot;
pub use client::{BusError, Client, DIGEST_APART};
use hyphae_store::inbox::{Found, Inbox};
pub use leases::LeaseToken;
use leases::Leases;
pub use mailbox::{Delivered, Delivery, DeliveryNote};
pub(crate) use request::BusRequest;
pub use request::ReplyOutcome;
use request::RequestResult;
use waitlist::Waitlist;

/// Calls of other nodes that wait for a worker; more are refused, and their senders retransmit.
const ADMIN_MAX: usize = 256;
/// Messages that wait for the forward proxy; more are refused, and their senders retransmit.
const FORWARDED_MAX: usize = 1024;

/// Parts of the message bus.
pub struct BusParts {
    /// Configuration of the engine.
    pub config: Config,
    /// Random and secret.
    pub seed: [u8; 32],
    /// Settings of topics.
    pub topics: Topics,
    /// The inbox.
    pub inbox: Inbox,
    /// What the inbox held at start.
    pub found: Found,
}

/// Receivers of messages that do not go into the inbox.
pub(crate) struct BusOutputs {
    /// Messages on the administration topic, which count as received; refused once the receiver is dropped.
    pub(crate) admin: mpsc::Receiver<Inbound>,
    /// Messages on topics with a forward socket. The receiver settles each; once it is dropped, they go into the inbox.
    pub(crate) forwarded: mpsc::Receiver<Inbound>,
}

/// The message bus of a node.
pub(crate) struct BusService {
    bus: Bus,
    inbox: Inbox,
    /// Messages without a verdict of the inbox yet.
    storing: Room,
    /// Those that no job stores yet.
    unstored: Vec<Inbound>,
    replies: BTreeMap<MessageId, oneshot::Sender<RequestResult>>,
    admin: mpsc::Sender<Inbound>,
    forward: mpsc::Sender<Inbound>,
    unknown_sources: u64,
    inbox_failures: u64,
    /// The settings of topics, for other tasks.
    topics: watch::Sender<Arc<Topics>>,
    leases: Arc<Leases>,
    /// Messages of this node that wait for room.
    waitlist: Waitlist,
    tickets: Arc<AtomicU64>,
}

impl BusService {
    /// A bus without sessions.
    pub(crate) fn new(now: Nanos, parts: BusParts) -> (Self, BusOutputs) {
        let (admin, admin_receiver) = mpsc::channel(ADMIN_MAX);
        let (forward, forwarded) = mpsc::channel(FORWARDED_MAX);
        let (shared, _) = watch::channel(Arc::new(parts.topics.clone()));
        let mut bus = Bus::new(parts.config, parts.topics, parts.seed);
        bus.seed_completed(now, parts.found.completed);
        let mut service = Self {
            bus,
            inbox: parts.inbox,
            storing: Room {
                messages: 0,
                bytes: 0,
            },
            unstored: Vec::new(),
            replies: BTreeMap::new(),
            admin,
            forward,
            unknown_sources: 0,
            inbox_failures: 0,
            topics: shared,
            leases: Leases::start(&parts.seed),
            waitlist: Waitlist::default(),
            tickets: Arc::default(),
        };
        service.update_room();
        let outputs = BusOutputs {
            admin: admin_receiver,
            forwarded,
        };
        (service, outputs)
    }

    /// A client that sends its requests to an engine task.
    pub(crate) fn client(&self, requests: mpsc::Sender<BusRequest>) -> Client {
        Client::new(
            requests,
            self.inbox.clone(),
            self.topics.subscribe(),
            self.bus.pool().clone(),
            Arc::clone(&self.leases),
            Arc::clone(&self.tickets),
        )
    }

    /// Frees pooled buffers of long payloads that were not used lately.
    pub(crate) fn trim(&self) {
        self.bus.pool().expire();
    }

    /// Updates the room of the engine for inbound messages.
    fn update_room(&mut self) {
        let (limits, (messages, bytes)) = (self.inbox.limits(), self.inbox.depth());
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let left = |max: usize, stored: u64, storing: usize| {
            max.saturating_sub(count(stored)).saturating_sub(storing)
        };
        self.bus.set_room(Room {
            messages: left(limits.messages_max, messages, self.storing.messages),
            bytes: left(count(limits.bytes_max), bytes, self.storing.bytes),
        });
    }

    /// Handles the events of the engine up to the next one that needs a session, and returns its address.
    fn poll_session(&mut self, now: Nanos) -> Option<hyphae_wire::OverlayAddress> {
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

    /// The next event. Messages that finished make room for those that wait, which cause events in turn.
    fn next_event(&mut self, now: Nanos) -> Option<Event> {
        self.bus.poll_event().or_else(|| {
            self.admit(now);
            self.bus.poll_event()
        })
    }

    fn handle_request(&mut self, now: Nanos, request: BusRequest) {
        // A caller that has disconnected gets no reply.
        match request {
            BusRequest::Push { message, reply } => {
                let _ = reply.send(self.push(now, message));
            }
            BusRequest::Request { message, id, reply } => self.request(now, message, &id, reply),
            BusRequest::PushAll {
                messages,
                in_order,
                reply,
            } => {
                let _ = reply.send(self.push_all(now, messages, in_order));
            }
            BusRequest::PushWaiting { ticket, waiter } => self.push_waiting(now, ticket, waiter),
            BusRequest::Withdraw(ticket) => self.end_wait(now, ticket, self.full()),
            BusRequest::Reply { id, message, reply } => {
                let _ = reply.send(self.bus.reply(now, id, message));
            }
            BusRequest::Answer {
                key,
                message,
                reply,
            } => {
                let answered = self.bus.reply(now, key.id, message);
                if answered.is_ok() {
                    self.bus.mark_read(now, key);
                }
                let _ = reply.send(answered);
            }
            BusRequest::Cancel(id) => self.cancel(now, id),
            BusRequest::Read(keys) => {
                keys.into_iter()
                    .for_each(|key| self.bus.mark_read(now, key));
                self.update_room();
            }
            BusRequest::Info(id, reply) => {
                let _ = reply.send(self.bus.info(id));
            }
            BusRequest::SetTopics(topics, reply) => {
                self.topics.send_replace(Arc::new(topics.clone()));
                self.bus.set_topics(topics);
                let _ = reply.send(());
            }
            BusRequest::Stored(messages) => self.stored(now, messages),
            BusRequest::Settle(key, verdict) => {
                match verdict {
                    Ok(()) => self.bus.accepted_for_reply(now, key),
                    Err(refuse) => self.bus.refused(now, key, refuse),
                }
                self.update_room();
            }
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

impl NodeService for BusService {
    type Request = BusRequest;

    fn handle(&mut self, now: Nanos, input: Input<'_, BusRequest>) {
        match input {
            Input::Datagram { key, source, bytes } => match key {
                Some(key) => self.bus.handle_packet(now, key, source, bytes),
                None => self.unknown_sources += 1,
            },
            Input::Request(request) => self.handle_request(now, request),
            Input::SessionUp { address, session } => {
                self.bus.session_up(now, address, session.key, session.mtu);
            }
            Input::SessionDown(address) => self.bus.session_down(now, address),
            Input::PathMtu { address, mtu } => self.bus.path_mtu(address, mtu),
        }
    }

    fn handle_timeout(&mut self, now: Nanos) {
        self.bus.handle_timeout(now);
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.bus.poll_timeout()
    }

    fn turn(&mut self, now: Nanos, share: usize, context: &mut impl Context<BusRequest>) -> Turn {
        loop {
            while let Some(address) = self.poll_session(now) {
                if let Some(session) = context.session(now, address) {
                    self.bus.session_up(now, address, session.key, session.mtu);
                }
            }
            // An inbox in memory completes at once, and its verdicts cause events.
            let Some(stored) = self.store_job().and_then(|job| context.start(job)) else {
                break;
            };
            self.handle_request(now, stored);
        }
        for _ in 0..share {
            // Before the packet is made: without room its parts can still be cancelled, or coalesced with others.
            match context.room() {
                RingRoom::Detached => return Turn::Idle,
                RingRoom::Full => return Turn::Blocked,
                RingRoom::Free => {}
            }
            let Some(transmit) = self.bus.poll_transmit(now) else {
                return Turn::Idle;
            };
            let service = hyphae_wire::Service::Message;
            context.send(service, transmit.address, &transmit.payload);
            self.bus.recycle(transmit);
        }
        match self.bus.wants_transmit() {
            true => Turn::More,
            false => Turn::Idle,
        }
    }
}
