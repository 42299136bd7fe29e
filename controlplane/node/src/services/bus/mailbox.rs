//! Deliveries from the inbox to consumers.
//!
//! Without a lease a message leaves the inbox once the answer that carries it was written. With one it leaves the
//! inbox when the consumer acknowledges it, and returns when the lease ends before that.

use std::time::Duration;

use hyphae_bus::{DeliveryKey, Inbound, MessageId, Outgoing, Room, Topic};

use super::client::{BusError, Client};
use super::leases::LeaseToken;
use super::request::BusRequest;
use hyphae_store::inbox::{InboxError, Lease, Listing, MessageNumber, Taken};

/// Calls that wait for messages.
const POPPERS_MAX: u64 = 4096;

/// Delivery count and lease of a delivered message.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryNote {
    /// Deliveries of the message, this one included.
    pub deliveries: u32,
    /// Its lease, if requested.
    pub token: Option<LeaseToken>,
}

/// Messages for a caller, and their delivery.
pub struct Delivered {
    /// Messages with their delivery count and lease.
    pub messages: Vec<(Inbound, DeliveryNote)>,
    /// Completes or returns the delivery.
    pub delivery: Delivery,
}

/// A delivery in progress. Dropped before [`Self::written`], it returns the messages to the inbox.
pub struct Delivery {
    client: Client,
    /// Of messages that leave the inbox.
    lease: Option<Lease>,
    keys: Vec<DeliveryKey>,
    /// Of messages that are leased.
    tokens: Vec<LeaseToken>,
}

impl Delivery {
    pub(super) fn of(client: &Client, taken: Taken, lease: Option<Duration>) -> Delivered {
        let mut delivery = Self {
            client: client.clone(),
            lease: None,
            keys: Vec::new(),
            tokens: Vec::new(),
        };
        let note = |deliveries, token| DeliveryNote { deliveries, token };
        let messages = match lease {
            None => {
                let (messages, deliveries, lease) = taken.into_parts();
                delivery.lease = Some(lease);
                delivery.keys = messages.iter().map(Inbound::key).collect();
                let notes = deliveries.into_iter().map(|count| note(count, None));
                messages.into_iter().zip(notes).collect()
            }
            Some(time) => {
                let (messages, deliveries, leases) = taken.split();
                let each = messages.into_iter().zip(deliveries).zip(leases);
                let leased = each.map(|((message, count), lease)| {
                    let token = client.leases.lease(lease, message.key(), time);
                    delivery.tokens.push(token);
                    (message, note(count, Some(token)))
                });
                leased.collect()
            }
        };
        Delivered { messages, delivery }
    }

    /// Completes the delivery once the caller's answer was written: messages without a lease leave the inbox, and
    /// their senders are notified that they were read.
    pub async fn written(mut self) {
        self.tokens.clear();
        let Some(lease) = self.lease.take() else {
            return;
        };
        let keys = std::mem::take(&mut self.keys);
        if let Err(error) = self.client.remove(lease, keys).await {
            tracing::warn!(%error, "delivered messages stay in the inbox");
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        for token in &self.tokens {
            drop(self.client.leases.take(*token));
        }
    }
}

impl Client {
    /// Takes the oldest messages of the inbox, of one topic or of any: at least one, waiting for it for `timeout`,
    /// then as many as fit `most`. They leave the inbox when the delivery is [written](Delivery::written), with a
    /// lease when they are acknowledged. If the future or the delivery is dropped, they stay.
    pub async fn pop(
        &self,
        topic: Option<Topic>,
        most: Room,
        timeout: Option<Duration>,
        lease: Option<Duration>,
    ) -> Result<Option<Delivered>, BusError> {
        let taken = if lease.is_some() {
            let take = || self.inbox.take_recorded(topic.clone(), most);
            self.wait(timeout, take).await?
        } else {
            self.wait(timeout, || self.inbox.take(topic.clone(), most))
                .await?
        };
        Ok(taken.map(|taken| Delivery::of(self, taken, lease)))
    }

    /// Messages of the inbox without their payloads, and their number.
    pub async fn list(
        &self,
        topic: Option<Topic>,
        after: MessageNumber,
        count: usize,
    ) -> Result<Listing, BusError> {
        Ok(self.inbox.list(topic, after, count).await?)
    }

    /// The oldest message of the inbox, which stays in it.
    pub async fn peek(
        &self,
        topic: Option<Topic>,
        timeout: Option<Duration>,
    ) -> Result<Option<Inbound>, BusError> {
        self.wait(timeout, || self.inbox.peek(topic.clone())).await
    }

    /// Polls the inbox on each change until it returns a message or the time is over.
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
        // A message found in the same moment returns to the inbox.
        tokio::time::timeout(timeout, found)
            .await
            .unwrap_or(Ok(None))
    }

    /// Replies to a leased message and acknowledges it; neither when its lease has ended.
    pub async fn reply_leased(
        &self,
        id: MessageId,
        message: Outgoing,
        token: LeaseToken,
    ) -> Result<(), BusError> {
        let leased = self.leases.take(token);
        let leased = leased.ok_or(BusError::LeaseEnded(token))?;
        let of_it = leased.key.id == id;
        // The lease must not end while the reply is queued: the message would be delivered again.
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

    /// Removes messages from the inbox and notifies their senders that they were read.
    pub(super) async fn remove(
        &self,
        lease: Lease,
        keys: Vec<DeliveryKey>,
    ) -> Result<(), InboxError> {
        lease.confirm().await?;
        // The node may be ending.
        let _ = self.send(BusRequest::Read(keys)).await;
        Ok(())
    }

    /// Acknowledges deliveries: their messages leave the inbox. Returns the tokens whose lease had ended.
    pub async fn acknowledge(&self, tokens: &[LeaseToken]) -> Result<Vec<LeaseToken>, InboxError> {
        let (mut leases, mut keys, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        for token in tokens {
            match self.leases.take(*token) {
                Some(leased) => {
                    leases.push(leased.lease);
                    keys.push(leased.key);
                }
                None => ended.push(*token),
            }
        }
        if let Some(lease) = Lease::join(leases) {
            self.remove(lease, keys).await?;
        }
        Ok(ended)
    }

    /// Returns leased messages to the inbox. Returns the tokens whose lease had ended.
    pub fn release(&self, tokens: &[LeaseToken]) -> Vec<LeaseToken> {
        let ended = |token: &&LeaseToken| self.leases.take(**token).is_none();
        tokens.iter().filter(ended).copied().collect()
    }

    /// Sets the end of leases to `time` from now. Returns the tokens whose lease had ended.
    pub fn extend(&self, tokens: &[LeaseToken], time: Duration) -> Vec<LeaseToken> {
        let ended = |token: &&LeaseToken| !self.leases.extend(**token, time);
        tokens.iter().filter(ended).copied().collect()
    }
}
