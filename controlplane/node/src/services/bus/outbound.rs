//! Messages of this node: sent at once or queued until there is room, and the wait for their replies.

use std::sync::OnceLock;

use hyphae_bus::{MessageId, Outgoing, PushError};
use hyphae_time::Nanos;
use tokio::sync::oneshot;

use super::BusService;
use super::request::{Completion, ReplyOutcome, RequestResult, Ticket, Waiter};

impl BusService {
    /// Sends messages that wait for room, as far as there is room.
    pub(super) fn admit(&mut self, now: Nanos) {
        while let Some((ticket, waiter)) = self.waitlist.first() {
            let closed = waiter.completion.is_closed();
            let len = waiter.messages.front().map(|message| message.payload.len());
            if len.is_some_and(|len| !closed && !self.bus.has_room(len)) {
                return;
            }
            if !closed && let Some((ticket, message)) = self.waitlist.take() {
                let pushed = self.bus.push(now, message);
                if let Some(waiter) = self.waitlist.get(ticket) {
                    waiter.results.push(pushed);
                    if let Err(error) = pushed {
                        self.end_wait(now, ticket, error);
                    } else if waiter.messages.is_empty() {
                        let waiter = self.waitlist.remove(ticket);
                        waiter
                            .into_iter()
                            .for_each(|waiter| self.complete(now, waiter));
                    }
                }
            } else {
                self.waitlist.remove(ticket);
            }
        }
    }

    /// Ends the wait of a call for room; messages not sent fail.
    pub(super) fn end_wait(&mut self, now: Nanos, ticket: Ticket, error: PushError) {
        if let Some(mut waiter) = self.waitlist.remove(ticket) {
            waiter.fail(error);
            self.complete(now, waiter);
        }
    }

    /// Completes a call that waited for room.
    fn complete(&mut self, now: Nanos, waiter: Waiter) {
        match waiter.completion {
            Completion::Each(reply) => {
                // The caller may have disconnected.
                let _ = reply.send(waiter.results);
            }
            Completion::Request { id, reply } => match waiter.results.into_iter().next() {
                Some(Ok(pushed)) => self.await_reply(now, pushed, &id, reply),
                Some(Err(error)) => {
                    // As above.
                    let _ = reply.send(Err(error));
                }
                None => {}
            },
        }
    }

    pub(super) fn full(&self) -> PushError {
        let stats = self.bus.stats();
        PushError::QueueFull {
            messages: stats.outgoing + self.waitlist.len(),
            bytes: stats.outgoing_bytes + self.waitlist.bytes(),
        }
    }

    /// Sends the messages of a call now, or queues them until there is room.
    pub(super) fn push_waiting(&mut self, now: Nanos, ticket: Ticket, waiter: Waiter) {
        let Some(destination) = waiter.messages.front().map(|message| message.destination) else {
            return self.complete(now, waiter);
        };
        let subnet = destination.address().subnet_id();
        match self.waitlist.push(ticket, subnet, waiter) {
            Ok(()) => self.admit(now),
            Err(mut waiter) => {
                waiter.fail(self.full());
                self.complete(now, waiter);
            }
        }
    }

    /// Sends a message now, unless others to the same node wait for room.
    pub(super) fn push(&mut self, now: Nanos, message: Outgoing) -> Result<MessageId, PushError> {
        let waits = !self.waitlist.is_empty()
            && self.waitlist.has(message.destination.address().subnet_id());
        if waits {
            return Err(self.full());
        }
        self.bus.push(now, message)
    }

    pub(super) fn push_all(
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

    pub(super) fn outcome(&mut self, id: MessageId, outcome: ReplyOutcome) {
        if let Some(waiting) = self.replies.remove(&id) {
            // The caller may have disconnected.
            let _ = waiting.send(Ok(outcome));
        }
    }

    pub(super) fn cancel(&mut self, now: Nanos, id: MessageId) {
        self.bus.cancel(now, id);
        self.replies.remove(&id);
    }

    /// Sends a message whose reply is awaited, unless the caller has disconnected. A caller that disconnects later
    /// finds the id and cancels the message; one that disconnects meanwhile may not find it.
    pub(super) fn request(
        &mut self,
        now: Nanos,
        message: Outgoing,
        slot: &OnceLock<MessageId>,
        reply: oneshot::Sender<RequestResult>,
    ) {
        if reply.is_closed() {
            return;
        }
        match self.push(now, message) {
            Ok(id) => self.await_reply(now, id, slot, reply),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn await_reply(
        &mut self,
        now: Nanos,
        id: MessageId,
        slot: &OnceLock<MessageId>,
        reply: oneshot::Sender<RequestResult>,
    ) {
        // Set here only.
        let _ = slot.set(id);
        if reply.is_closed() {
            self.cancel(now, id);
        } else {
            self.replies.insert(id, reply);
        }
    }
}
