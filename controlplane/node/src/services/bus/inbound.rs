//! Messages of other nodes: to whom each is delivered, and the inbox's verdict on the rest.

use hyphae_bus::{DeliveryKey, Inbound, Refuse};
use hyphae_time::Nanos;
use tokio::sync::mpsc;

use super::super::Job;
use super::BusService;
use super::request::{BusRequest, InboxVerdict, ReplyOutcome};
use hyphae_store::inbox::PutError;

impl BusService {
    /// Routes a complete message: to the request it replies to, administration, the forward proxy, or the inbox.
    pub(super) fn deliver(&mut self, now: Nanos, inbound: Inbound) {
        if inbound.reply {
            self.deliver_reply(now, inbound);
        } else if inbound.topic.is_admin() {
            self.deliver_admin(now, inbound);
        } else {
            self.deliver_message(now, inbound);
        }
    }

    fn deliver_reply(&mut self, now: Nanos, inbound: Inbound) {
        let key = inbound.key();
        let outcome = match inbound.failure {
            None => ReplyOutcome::Reply(Box::new(inbound)),
            Some(failure) => ReplyOutcome::Failed(failure),
        };
        let caller = self.replies.remove(&key.id);
        if caller.is_some_and(|caller| caller.send(Ok(outcome)).is_ok()) {
            self.bus.accepted(now, key);
        } else {
            // It would never be read, and its sender is to know.
            self.bus.refused(now, key, Refuse::Rejected);
        }
    }

    fn deliver_admin(&mut self, now: Nanos, inbound: Inbound) {
        let key = inbound.key();
        match self.admin.try_send(inbound) {
            Ok(()) => self.bus.accepted_for_reply(now, key),
            Err(mpsc::error::TrySendError::Full(_)) => self.bus.refused(now, key, Refuse::Full),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.bus.refused(now, key, Refuse::Rejected);
            }
        }
    }

    fn deliver_message(&mut self, now: Nanos, inbound: Inbound) {
        let key = inbound.key();
        let config = self.bus.topics().topics.get(&inbound.topic);
        let forwarded = config.is_some_and(|config| config.forward_socket.is_some());
        if !forwarded {
            return self.store(inbound);
        }
        match self.forward.try_send(inbound) {
            // The proxy settles it.
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.bus.refused(now, key, Refuse::Full),
            Err(mpsc::error::TrySendError::Closed(inbound)) => self.store(inbound),
        }
    }

    /// Queues a message for the inbox; the next job stores it.
    fn store(&mut self, inbound: Inbound) {
        self.storing.messages += 1;
        self.storing.bytes += inbound.payload.len();
        self.unstored.push(inbound);
        self.update_room();
    }

    /// Stores the messages queued since the last job, all at once.
    pub(super) fn store_job(&mut self) -> Option<Job<BusRequest>> {
        if self.unstored.is_empty() {
            return None;
        }
        let messages = std::mem::take(&mut self.unstored);
        let of = |inbound: &Inbound| (inbound.key(), inbound.payload.len());
        let keys: Vec<_> = messages.iter().map(of).collect();
        let inbox = self.inbox.clone();
        Some(Box::pin(async move {
            let verdict = |put| match put {
                Ok(_) => InboxVerdict::Stored,
                Err(PutError::Full) => InboxVerdict::Full,
                Err(PutError::Failed(_)) => InboxVerdict::Failed,
            };
            let verdicts = inbox.put_all(messages, false).await.into_iter();
            BusRequest::Stored(keys.into_iter().zip(verdicts.map(verdict)).collect())
        }))
    }

    pub(super) fn stored(
        &mut self,
        now: Nanos,
        messages: Vec<((DeliveryKey, usize), InboxVerdict)>,
    ) {
        for ((key, bytes), verdict) in messages {
            self.storing.messages -= 1;
            self.storing.bytes -= bytes;
            match verdict {
                InboxVerdict::Stored => self.bus.accepted(now, key),
                InboxVerdict::Full => self.bus.refused(now, key, Refuse::Full),
                InboxVerdict::Failed => {
                    self.inbox_failures += 1;
                    self.bus.refused(now, key, Refuse::Full);
                }
            }
        }
        self.update_room();
    }
}
