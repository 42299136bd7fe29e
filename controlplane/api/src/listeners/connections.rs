//! Limits of connections, per listener and holder.
//!
//! | holder | slots |
//! |---|---|
//! | root and the node's own user | half of the listener's |
//! | other users, each; holders of the token | the other half, at most half of it |
//! | callers that have not presented the token yet | at most half of the same, an eighth of that per source |
//!
//! A new unproven caller evicts the oldest one, of the same source if that has used its share. All callers of metrics
//! are unproven. [`REFUSED_AT_ONCE`] more connections are those of callers that are being refused.
//!
//! All listeners together use less than two thirds of the descriptors of the process; `rpc.sock` has a [`Reserve`]
//! beside that, for when other parts have used them up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;

use crate::authorizer::Authority;

/// Callers of a listener that are refused concurrently.
pub(super) const REFUSED_AT_ONCE: usize = 16;
/// Descriptors reserved for `rpc.sock`.
const RESERVED: usize = 16;
/// Interval of log lines about failures to accept.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Pause after a failure that an immediate retry would repeat.
const PAUSE: Duration = Duration::from_millis(100);

/// Raises the soft limit of descriptors to the hard one.
pub fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?current, ?maximum, "the limit of descriptors was not raised");
    }
}

/// At most `most` connections, and at most `1 / share` of the limit of descriptors.
pub(super) fn within_descriptors(most: usize, share: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    limit.map_or(most, |limit| most.min(limit / share)).max(4)
}

/// Holder of a connection's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// Root and the node's own user.
    Node,
    /// Another user, admitted.
    User(u32),
    /// A caller that has presented the token.
    Token,
    /// A user of this host that has not presented it yet.
    UnprovenUser(u32),
    /// A source that has not presented it, or need not: IPv4 address or IPv6 /64.
    Unproven(Ipv6Addr),
}

impl Holder {
    /// The holder for an unproven caller at an address.
    pub(super) fn at(client: IpAddr) -> Self {
        Self::Unproven(match client.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)),
        })
    }

    /// An admitted caller.
    pub(super) const fn of(authority: Authority) -> Self {
        match authority {
            Authority::Node => Self::Node,
            Authority::User(uid) => Self::User(uid),
            Authority::Remote => Self::Token,
        }
    }

    const fn is_unproven(self) -> bool {
        matches!(self, Self::UnprovenUser(_) | Self::Unproven(_))
    }
}

/// Slots of a listener.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    used: Arc<Mutex<Used>>,
    node_max: usize,
    others_max: usize,
    each_max: usize,
    unproven_max: usize,
    unproven_each_max: usize,
}

#[derive(Debug, Default)]
struct Used {
    by: BTreeMap<Holder, usize>,
    /// Unproven connections, oldest first, and the signal that closes each.
    unproven: BTreeMap<u64, (Holder, Arc<Notify>)>,
    next: u64,
}

impl Used {
    fn others(&self) -> usize {
        let others = self
            .by
            .iter()
            .filter(|(holder, _)| **holder != Holder::Node);
        others.map(|(_, count)| count).sum()
    }

    fn release(&mut self, holder: Holder) {
        if let Some(count) = self.by.get_mut(&holder) {
            *count -= 1;
            if *count == 0 {
                self.by.remove(&holder);
            }
        }
    }

    /// Closes the oldest unproven connection, of one holder or of all.
    fn evict_oldest(&mut self, of: Option<Holder>) {
        let mut all = self.unproven.iter();
        let oldest = all.find(|(_, (holder, _))| of.is_none_or(|of| of == *holder));
        let Some(number) = oldest.map(|(number, _)| *number) else {
            return;
        };
        if let Some((holder, evicted)) = self.unproven.remove(&number) {
            self.release(holder);
            evicted.notify_one();
        }
    }
}

/// A connection's slot.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    holder: Mutex<Holder>,
    number: u64,
    evicted: Arc<Notify>,
}

impl Slot {
    /// The connection has presented the token: it is not evicted any more.
    pub(super) fn prove(&self) {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = self.slots.lock();
        let count = used.by.get(&Holder::Token).copied().unwrap_or_default();
        // An evicted connection is not counted.
        if !holder.is_unproven() || count >= self.slots.each_max {
            return;
        }
        if used.unproven.remove(&self.number).is_none() {
            return;
        }
        used.release(*holder);
        *used.by.entry(Holder::Token).or_default() += 1;
        *holder = Holder::Token;
    }

    /// Returns when the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let holder = *self
            .holder
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let mut used = self.slots.lock();
        // The slot of an evicted connection is in use by another.
        if !holder.is_unproven() || used.unproven.remove(&self.number).is_some() {
            used.release(holder);
        }
    }
}

impl Slots {
    /// Slots of a listener for calls.
    pub(super) fn new(connections: usize) -> Self {
        let half = (connections / 2).max(1);
        let quarter = (half / 2).max(1);
        Self {
            used: Arc::default(),
            node_max: half,
            others_max: half,
            each_max: quarter,
            unproven_max: quarter,
            unproven_each_max: (quarter / 8).max(1),
        }
    }

    /// Slots of a listener without authorization.
    pub(super) fn open(connections: usize) -> Self {
        Self {
            used: Arc::default(),
            node_max: 0,
            others_max: connections,
            each_max: 0,
            unproven_max: connections,
            unproven_each_max: (connections / 8).max(1),
        }
    }

    /// A free slot of the holder's share. An unproven holder evicts the oldest of its source at its own limit, or the
    /// oldest of all at the limit of all.
    pub(super) fn take(&self, holder: Holder) -> Option<Slot> {
        let mut used = self.lock();
        let count = |used: &Used| used.by.get(&holder).copied().unwrap_or_default();
        if holder.is_unproven() {
            if count(&used) >= self.unproven_each_max {
                used.evict_oldest(Some(holder));
            } else if used.unproven.len() >= self.unproven_max {
                used.evict_oldest(None);
            }
        }
        let (free, each_max) = match holder {
            Holder::Node => (true, self.node_max),
            Holder::User(_) | Holder::Token => (used.others() < self.others_max, self.each_max),
            Holder::UnprovenUser(_) | Holder::Unproven(_) => {
                (used.others() < self.others_max, self.unproven_each_max)
            }
        };
        if !free || count(&used) >= each_max {
            return None;
        }
        *used.by.entry(holder).or_default() += 1;
        let (number, evicted) = (used.next, Arc::new(Notify::new()));
        used.next += 1;
        if holder.is_unproven() {
            used.unproven.insert(number, (holder, Arc::clone(&evicted)));
        }
        drop(used);
        Some(Slot {
            slots: self.clone(),
            holder: Mutex::new(holder),
            number,
            evicted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Descriptors that are closed when no others are left. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserve(Arc<Mutex<Vec<OwnedFd>>>);

impl Reserve {
    /// Opens descriptors until it is full or the process is out of them.
    pub(super) fn fill(&self) {
        let mut reserve = self.lock();
        while reserve.len() < RESERVED {
            match File::open("/dev/null") {
                Ok(file) => reserve.push(file.into()),
                Err(_) => return,
            }
        }
    }

    /// Closes one if `error` reports that the process, or the host, is out of them. True when trying again may succeed.
    pub(super) fn helps(&self, error: &io::Error) -> bool {
        out_of_descriptors(error) && self.lock().pop().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    let errors = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|it| errors.contains(&it))
}

/// Connections that were not accepted, for the log.
#[derive(Debug)]
pub(super) struct Unaccepted {
    listener: &'static str,
    since_logged: u64,
    logged: Option<Instant>,
}

impl Unaccepted {
    pub(super) fn new(listener: &'static str) -> Self {
        Self {
            listener,
            since_logged: 0,
            logged: None,
        }
    }

    /// A connection was not accepted, or dropped at once.
    pub(super) fn note(&mut self, cause: &dyn std::fmt::Display) {
        self.since_logged += 1;
        let now = Instant::now();
        if self.logged.is_some_and(|at| now - at < LOG_EVERY) {
            return;
        }
        let (listener, connections) = (self.listener, self.since_logged);
        tracing::warn!(listener, connections, %cause, "connections were not accepted");
        (self.since_logged, self.logged) = (0, Some(now));
    }

    /// `accept` failed.
    pub(super) async fn failed(&mut self, error: &io::Error) {
        self.note(error);
        // Other errors concern one connection, such as a reset.
        let lasting = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        let lasting = lasting.map(Errno::raw_os_error);
        if error.raw_os_error().is_none_or(|it| lasting.contains(&it)) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(slots: &Slots, holder: Holder) -> Vec<Slot> {
        std::iter::from_fn(|| slots.take(holder)).collect()
    }

    fn at(client: &str) -> Holder {
        Holder::at(client.parse().unwrap())
    }

    fn is_evicted(slot: &Slot) -> bool {
        futures_util::FutureExt::now_or_never(slot.evicted()).is_some()
    }

    #[test]
    fn no_user_takes_the_slots_of_another_and_none_those_of_the_node() {
        let slots = Slots::new(16);
        let first = all(&slots, Holder::User(1));
        assert_eq!(first.len(), 4);
        let second = all(&slots, Holder::User(2));
        assert_eq!(second.len(), 4);
        assert!(slots.take(at("192.0.2.1")).is_none());
        assert_eq!(all(&slots, Holder::Node).len(), 8);
        drop(second);
        assert!(slots.take(at("192.0.2.1")).is_some());
        drop(first);
        assert!(slots.lock().by.is_empty());
    }

    #[test]
    fn silent_connections_of_one_host_keep_neither_others_nor_its_own_next_one_out() {
        let slots = Slots::new(512);
        let silent: Vec<_> = (0..200)
            .map(|_| slots.take(at("192.0.2.1")).unwrap())
            .collect();
        assert_eq!(silent.iter().filter(|slot| !is_evicted(slot)).count(), 16);
        assert!(
            silent[184..].iter().all(|slot| !is_evicted(slot)),
            "the oldest go"
        );
        let other = slots.take(at("::ffff:192.0.2.2")).unwrap();
        other.prove();
        // From many networks, and many addresses of one.
        let flood = |n: u16| slots.take(at(&format!("2001:db8:0:{n:x}::1"))).unwrap();
        let flooded: Vec<_> = (0..1000).map(flood).collect();
        assert_eq!(flooded.iter().filter(|slot| !is_evicted(slot)).count(), 128);
        assert!(!is_evicted(&other), "it has presented the token");
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:0:1"));
        assert!(slots.take(Holder::User(1)).is_some());
        let newcomer = slots.take(at("192.0.2.3")).unwrap();
        newcomer.prove();
        assert!(!is_evicted(&newcomer));
        drop((silent, flooded, other, newcomer));
        let used = slots.lock();
        assert!(used.by.is_empty() && used.unproven.is_empty());
    }

    #[test]
    fn all_slots_of_an_open_listener_are_for_everybody_by_source() {
        let slots = Slots::open(64);
        let take = |n: u8| slots.take(at(&format!("192.0.2.{n}"))).unwrap();
        let taken: Vec<_> = (0..8).flat_map(|n| [n; 8]).map(take).collect();
        assert_eq!(taken.iter().filter(|slot| !is_evicted(slot)).count(), 64);
        let _ninth = take(9);
        assert_eq!(taken.iter().filter(|slot| !is_evicted(slot)).count(), 63);
    }

    #[test]
    fn the_soft_limit_of_descriptors_is_the_hard_one() {
        raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
