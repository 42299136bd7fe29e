//! Messages on their way from the inbox to a consumer.
//!
//! Without a lease a message leaves the inbox once the answer that carries it was written. With one it leaves the
//! inbox when the consumer acknowledges it, and goes back when it does not in time. A lease is of one delivery and
//! named by a token; it ends with this process, and what was leased is visible again in the next one.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyphae_bus::{DeliveryKey, Inbound};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::handle::{BusCommand, Handle};
use hyphae_store::inbox::{InboxError, Lease, Taken};

/// Names a lease, and is all that it takes to end it: no other token and no earlier process tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(u128);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text that is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the token of a lease: expected 32 hex digits")]
pub(crate) struct InvalidToken(String);

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| hex);
        number
            .map(Self)
            .ok_or_else(|| InvalidToken(text.to_owned()))
    }
}

/// A message that a consumer has and has not acknowledged.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) lease: Lease,
    pub(crate) key: DeliveryKey,
    ends: Instant,
}

/// All of them: at most as many as there are messages in the inbox.
#[derive(Debug)]
pub(crate) struct Leases {
    table: Mutex<Table>,
    /// One ends earlier than those before.
    earlier: Notify,
    /// Makes tokens of numbers.
    key: [u8; 32],
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    leased: HashMap<Token, Leased>,
    ends: BTreeSet<(Instant, Token)>,
}

impl Leases {
    /// None, and a task that ends them in time. `seed` is random, and secret.
    pub(crate) fn start(seed: &[u8; 32]) -> Arc<Self> {
        let this = Arc::new(Self {
            table: Mutex::default(),
            earlier: Notify::new(),
            key: blake3::derive_key("hyphae 2026 tokens of leases", seed),
            next: AtomicU64::new(1),
        });
        let leases = Arc::clone(&this);
        tokio::spawn(async move { leases.expire().await });
        this
    }

    async fn expire(&self) {
        loop {
            let next = self.table().ends.first().map(|(at, _)| *at);
            tokio::select! {
                () = self.earlier.notified() => continue,
                () = sleep_until(next) => {}
            }
            let now = Instant::now();
            // Dropped after the table is free again: the messages go back.
            while let Some(_ended) = self.take_ended(now) {}
        }
    }

    fn take_ended(&self, now: Instant) -> Option<Leased> {
        let mut table = self.table();
        let first = *table.ends.first().filter(|(at, _)| *at <= now)?;
        table.ends.remove(&first);
        table.leased.remove(&first.1)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.table().leased.len()
    }

    fn next_token(&self) -> Token {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let digest = blake3::keyed_hash(&self.key, &number.to_le_bytes());
        let half = digest.as_bytes().first_chunk();
        Token(u128::from_be_bytes(half.copied().unwrap_or_default()))
    }

    fn lease(&self, lease: Lease, key: DeliveryKey, time: Duration) -> Token {
        let token = self.next_token();
        let ends = Instant::now() + time;
        self.put_back(token, Leased { lease, key, ends });
        token
    }

    /// Puts in what was taken with [`Self::take`], with the time that it had.
    pub(crate) fn put_back(&self, token: Token, leased: Leased) {
        let mut table = self.table();
        let ends = (leased.ends, token);
        table.ends.insert(ends);
        table.leased.insert(token, leased);
        if table.ends.first() == Some(&ends) {
            self.earlier.notify_one();
        }
    }

    /// Ends a lease; `None` when it has ended. Dropped, its message goes back.
    pub(crate) fn take(&self, token: Token) -> Option<Leased> {
        let mut table = self.table();
        let leased = table.leased.remove(&token)?;
        table.ends.remove(&(leased.ends, token));
        Some(leased)
    }

    /// Lets a lease end so long from now; false when it has ended.
    pub(crate) fn extend(&self, token: Token, time: Duration) -> bool {
        let Some(leased) = self.take(token) else {
            return false;
        };
        let ends = Instant::now() + time;
        self.put_back(token, Leased { ends, ..leased });
        true
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Of a message that is handed out: times that it has been, and its lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) deliveries: u32,
    pub(crate) token: Option<Token>,
}

/// Messages for a caller, and what has to be done when it has them.
pub(crate) struct Handed {
    pub(crate) messages: Vec<(Inbound, Note)>,
    pub(crate) delivery: Delivery,
}

/// What happens to messages whose answer is being written: dropped before [`Self::written`], they go back.
pub(crate) struct Delivery {
    handle: Handle,
    /// Of those that leave the inbox.
    lease: Option<Lease>,
    keys: Vec<DeliveryKey>,
    /// Of those that are leased.
    tokens: Vec<Token>,
}

impl Delivery {
    pub(super) fn of(handle: &Handle, taken: Taken, lease: Option<Duration>) -> Handed {
        let mut delivery = Self {
            handle: handle.clone(),
            lease: None,
            keys: Vec::new(),
            tokens: Vec::new(),
        };
        let note = |deliveries, token| Note { deliveries, token };
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
                    let token = handle.leases().lease(lease, message.key(), time);
                    delivery.tokens.push(token);
                    (message, note(count, Some(token)))
                });
                leased.collect()
            }
        };
        Handed { messages, delivery }
    }

    /// The caller has them, as far as can be known: those without a lease leave the inbox, and their senders learn
    /// that they were read.
    pub(crate) async fn written(mut self) {
        self.tokens.clear();
        let Some(lease) = self.lease.take() else {
            return;
        };
        let keys = std::mem::take(&mut self.keys);
        if let Err(error) = self.handle.remove(lease, keys).await {
            tracing::warn!(%error, "messages that were handed out stay in the inbox");
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        for token in &self.tokens {
            drop(self.handle.leases().take(*token));
        }
    }
}

impl Handle {
    /// Removes messages from the inbox and tells their senders that they were read.
    async fn remove(&self, lease: Lease, keys: Vec<DeliveryKey>) -> Result<(), InboxError> {
        lease.confirm().await?;
        // The node may be ending; then nobody is told.
        let _ = self.send(BusCommand::Read(keys)).await;
        Ok(())
    }

    /// Acknowledges deliveries: their messages leave the inbox. Gives those whose lease has ended.
    pub(crate) async fn acknowledge(&self, tokens: &[Token]) -> Result<Vec<Token>, InboxError> {
        let (mut leases, mut keys, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        for token in tokens {
            match self.leases().take(*token) {
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

    /// Gives messages back: they are visible again. Gives the tokens whose lease had ended.
    pub(crate) fn give_back(&self, tokens: &[Token]) -> Vec<Token> {
        let ended = |token: &&Token| self.leases().take(**token).is_none();
        tokens.iter().filter(ended).copied().collect()
    }

    /// Lets leases end so long from now. Gives those that had ended.
    pub(crate) fn extend(&self, tokens: &[Token], time: Duration) -> Vec<Token> {
        let ended = |token: &&Token| !self.leases().extend(**token, time);
        tokens.iter().filter(ended).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_tells_neither_its_neighbours_nor_those_of_the_next_process() {
        let leases = Leases::start(&[1; 32]);
        let tokens: Vec<u128> = (0..1000).map(|_| leases.next_token().0).collect();
        for pair in tokens.windows(2) {
            // Random numbers of 128 bits are this near with odds of 1000 in 2^32.
            assert!(pair[0].abs_diff(pair[1]) > u128::from(u64::MAX));
            let low = |token: u128| token & u128::from(u64::MAX);
            assert!(low(pair[0]).abs_diff(low(pair[1])) > u128::from(u32::MAX));
        }
        let next = Leases::start(&[2; 32]);
        assert!(!tokens.contains(&next.next_token().0));
    }

    #[test]
    fn a_token_is_32_hex_digits() {
        let token = Token(0xab << 64 | u128::from(u64::MAX));
        let text = token.to_string();
        assert_eq!(text, "00000000000000abffffffffffffffff");
        assert_eq!(text.parse(), Ok(token));
        for bad in [
            "",
            "ab",
            "+0000000000000abffffffffffffffff",
            &"é".repeat(16),
        ] {
            assert_eq!(bad.parse::<Token>(), Err(InvalidToken(bad.to_owned())));
        }
    }
}
