//! Submission and cancellation of outgoing messages, and deadlines of the replies to them.

use hyphae_time::Nanos;
use hyphae_wire::OverlayAddress;
use hyphae_wire::message::MESSAGE_MAX;

use super::{Bus, PendingReply, Timer, sequence_base};
use crate::config::REPLY_CLEAR_DELAY;
use crate::path::Path;
use crate::transfer::{Transfer, TransferKey};
use crate::{AbortReason, Destination, Event, MessageId, MessageState, Outgoing, PushError};

impl Bus {
    /// Submits a message.
    ///
    /// # Errors
    /// When the message is invalid or the send queue is full.
    pub fn push(&mut self, now: Nanos, message: Outgoing) -> Result<MessageId, PushError> {
        let id = loop {
            let id = MessageId(self.rng.array());
            if !self.transfers.has_own(id) && !self.pending_replies.contains_key(&id) {
                break id;
            }
        };
        self.submit(now, id, false, message)?;
        Ok(id)
    }

    /// Submits the reply to message `id` of the destination.
    ///
    /// # Errors
    /// As [`Self::push`], and when that message has been answered.
    pub fn reply(&mut self, now: Nanos, id: MessageId, message: Outgoing) -> Result<(), PushError> {
        self.submit(now, id, true, message)
    }

    /// Whether the send queue has room for a message of so many bytes.
    pub fn has_room(&self, len: usize) -> bool {
        self.transfers.len() < self.config.outgoing_max
            && self.pending_replies.len() < self.config.outgoing_max
            && self.outgoing_bytes + len <= self.config.outgoing_bytes_max
    }

    fn submit(
        &mut self,
        now: Nanos,
        id: MessageId,
        reply: bool,
        message: Outgoing,
    ) -> Result<(), PushError> {
        let address = match message.destination {
            Destination::Key(key) => self.address_of(key),
            Destination::Address(address) => address,
        };
        let (len, subnet) = (message.payload.len(), address.subnet_id());
        let name = TransferKey { id, reply, subnet };
        self.check_submission(name, address, len)?;
        if let Some(within) = message.reply_within.filter(|_| !reply) {
            let deadline = now + within;
            let pending = PendingReply {
                key: None,
                deadline,
                expired: false,
            };
            self.pending_replies.insert(id, pending);
            self.timers.set(Timer::Reply(id), deadline);
        }
        let own = self.address.subnet_id() == subnet;
        let (mut packet, mut first) = (self.config.mtu, false);
        if !own {
            let (rng, window) = (&mut self.rng, self.config.window_max);
            let path = self
                .paths
                .entry(subnet)
                .or_insert_with(|| Path::new(address, sequence_base(rng), packet, window));
            first = path.session.is_none() && path.messages == 0;
            path.messages += 1;
            packet = path.packet();
        }
        let mut transfer = Transfer::new(now, name, message, packet);
        if own {
            transfer.key.get_or_insert(self.config.key);
            transfer.started = true;
        }
        let of = self.transfers.insert(transfer);
        self.transfers.schedule(of);
        self.outgoing_bytes += len;
        self.stats.pushed += 1;
        if own {
            self.deliver_own(now, of);
            return Ok(());
        }
        if first {
            self.session_due(now, subnet);
        }
        self.make_ready(of);
        Ok(())
    }

    fn check_submission(
        &mut self,
        name: TransferKey,
        address: OverlayAddress,
        len: usize,
    ) -> Result<(), PushError> {
        if len > MESSAGE_MAX {
            return Err(PushError::TooLong(len));
        }
        if !address.is_overlay() {
            return Err(PushError::NotOverlay(address));
        }
        if name.reply {
            let done = self.transfers.done_mut(name);
            let answered = done.is_some_and(|done| done.info.state != MessageState::Aborted);
            if answered || self.transfers.live(name).is_some() {
                return Err(PushError::Answered(name.id));
            }
        }
        if !self.has_room(len) {
            return Err(PushError::QueueFull {
                messages: self.transfers.len(),
                bytes: self.outgoing_bytes,
            });
        }
        Ok(())
    }

    /// Withdraws an outgoing message and stops waiting for its reply. False when it is not being sent.
    pub fn cancel(&mut self, now: Nanos, id: MessageId) -> bool {
        self.forget_pending_reply(id);
        let Some(of) = self.transfers.live_any(id, false) else {
            return false;
        };
        self.finish(now, of, Some(AbortReason::Cancelled));
        true
    }

    pub(super) fn forget_pending_reply(&mut self, id: MessageId) {
        if self.pending_replies.remove(&id).is_some() {
            self.timers.set(Timer::Reply(id), Nanos::NEVER);
        }
    }

    /// Expires a pending reply, and forgets it [`REPLY_CLEAR_DELAY`] later.
    pub(super) fn reply_due(&mut self, now: Nanos, id: MessageId) {
        let Some(pending) = self.pending_replies.get_mut(&id) else {
            return;
        };
        if pending.expired {
            self.pending_replies.remove(&id);
            return;
        }
        pending.expired = true;
        let at = now.max(pending.deadline) + REPLY_CLEAR_DELAY;
        self.timers.set(Timer::Reply(id), at);
        self.events.push_back(Event::ReplyTimeout(id));
    }
}
