//! Leases of messages that were delivered and not yet acknowledged.
//!
//! A lease is of one delivery and named by a token. It ends with this process: the next one finds the message
//! visible in the inbox.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyphae_bus::DeliveryKey;
use tokio::sync::Notify;
use tokio::time::Instant;

use hyphae_store::inbox::Lease;

/// Name of a lease, and the authority to end it: it cannot be derived from other tokens or earlier processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseToken(u128);

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Text that is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the token of a lease: expected 32 hex digits")]
pub struct InvalidLeaseToken(String);

impl FromStr for LeaseToken {
    type Err = InvalidLeaseToken;

    fn from_str(text: &str) -> Result<Self, InvalidLeaseToken> {
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| hex);
        number
            .map(Self)
            .ok_or_else(|| InvalidLeaseToken(text.to_owned()))
    }
}

/// A message that a consumer has not acknowledged yet.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) lease: Lease,
    pub(crate) key: DeliveryKey,
    ends: Instant,
}

/// All leases: at most one per message of the inbox.
#[derive(Debug)]
pub(crate) struct Leases {
    table: Mutex<Table>,
    /// Notified when the earliest end moves forward.
    earlier: Notify,
    /// Derives tokens from numbers.
    key: [u8; 32],
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    leased: HashMap<LeaseToken, Leased>,
    ends: BTreeSet<(Instant, LeaseToken)>,
}

impl Leases {
    /// An empty table, and a task that ends leases in time. `seed` is random and secret.
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
            // Dropped after the lock is released: the messages return to the inbox.
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

    pub(crate) fn len(&self) -> usize {
        self.table().leased.len()
    }

    fn next_token(&self) -> LeaseToken {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let digest = blake3::keyed_hash(&self.key, &number.to_le_bytes());
        let half = digest.as_bytes().first_chunk();
        LeaseToken(u128::from_be_bytes(half.copied().unwrap_or_default()))
    }

    pub(super) fn lease(&self, lease: Lease, key: DeliveryKey, time: Duration) -> LeaseToken {
        let token = self.next_token();
        let ends = Instant::now() + time;
        self.put_back(token, Leased { lease, key, ends });
        token
    }

    /// Restores a lease from [`Self::take`] with its end.
    pub(crate) fn put_back(&self, token: LeaseToken, leased: Leased) {
        let mut table = self.table();
        let ends = (leased.ends, token);
        table.ends.insert(ends);
        table.leased.insert(token, leased);
        if table.ends.first() == Some(&ends) {
            self.earlier.notify_one();
        }
    }

    /// Ends a lease; `None` when it has ended. Dropping it returns the message to the inbox.
    pub(crate) fn take(&self, token: LeaseToken) -> Option<Leased> {
        let mut table = self.table();
        let leased = table.leased.remove(&token)?;
        table.ends.remove(&(leased.ends, token));
        Some(leased)
    }

    /// Sets the end of a lease to `time` from now; false when it has ended.
    pub(crate) fn extend(&self, token: LeaseToken, time: Duration) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_reveals_no_token_beside_it_nor_of_the_next_process() {
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
        let token = LeaseToken(0xab << 64 | u128::from(u64::MAX));
        let text = token.to_string();
        assert_eq!(text, "00000000000000abffffffffffffffff");
        assert_eq!(text.parse(), Ok(token));
        for bad in [
            "",
            "ab",
            "+0000000000000abffffffffffffffff",
            &"é".repeat(16),
        ] {
            assert_eq!(
                bad.parse::<LeaseToken>(),
                Err(InvalidLeaseToken(bad.to_owned()))
            );
        }
    }
}
