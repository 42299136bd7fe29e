//! Connections of a listener: how many, for whom, and how long they may keep silent.
//!
//! | held by | slots |
//! |---|---|
//! | root and the node's own user | half of the listener's |
//! | other users; callers that have yet to present the token | the other half, one of them at most half of it |
//! | callers that are being refused | [`REFUSED_AT_ONCE`] |
//!
//! Descriptors of all listeners together stay below two thirds of the process's limit; `rpc.sock` has a
//! [`Reserve`] of its own on top, for when something else has used them up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::authorizer::Authority;

/// Callers of a listener that are being told that they are refused.
pub(super) const REFUSED_AT_ONCE: usize = 16;
/// Descriptors that are set aside for `rpc.sock`.
const RESERVED: usize = 16;
/// How often failures to accept are logged.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Pause after a failure that the next attempt would meet again.
const PAUSE: Duration = Duration::from_millis(100);

/// Raises the soft limit of descriptors to the hard one.
pub(crate) fn raise_descriptor_limit() {
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

/// Slots of a listener.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    node: Arc<Semaphore>,
    others: Arc<Semaphore>,
    /// By user; `None` for those who have not proven anything yet.
    used: Arc<Mutex<BTreeMap<Option<u32>, usize>>>,
    each_max: usize,
}

/// A connection's slot.
#[derive(Debug)]
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// A user's part of [`Slots::used`].
#[derive(Debug)]
struct Share {
    used: Arc<Mutex<BTreeMap<Option<u32>, usize>>>,
    user: Option<u32>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = used.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.user);
            }
        }
    }
}

impl Slots {
    pub(super) fn new(connections: usize) -> Self {
        let half = (connections / 2).max(1);
        Self {
            node: Arc::new(Semaphore::new(half)),
            others: Arc::new(Semaphore::new(half)),
            used: Arc::default(),
            each_max: (half / 2).max(1),
        }
    }

    /// A slot, while there is one.
    pub(super) fn take(&self, authority: Authority) -> Option<Slot> {
        let user = match authority {
            Authority::Node => {
                let permit = Arc::clone(&self.node).try_acquire_owned().ok()?;
                return Some(Slot {
                    _permit: permit,
                    _share: None,
                });
            }
            Authority::User(uid) => Some(uid),
            Authority::Remote => None,
        };
        let permit = Arc::clone(&self.others).try_acquire_owned().ok()?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let count = used.entry(user).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        drop(used);
        let share = Share {
            used: Arc::clone(&self.used),
            user,
        };
        Some(Slot {
            _permit: permit,
            _share: Some(share),
        })
    }
}

/// Descriptors that are given up when there are no others.
#[derive(Debug, Default)]
pub(super) struct Reserve(Vec<OwnedFd>);

impl Reserve {
    /// Sets descriptors aside until it is full, as far as there are any.
    pub(super) fn fill(&mut self) {
        while self.0.len() < RESERVED {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file.into()),
                Err(_) => return,
            }
        }
    }

    /// Gives one up; false when none is left.
    pub(super) fn release(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

/// Whether the process, or the host, is out of descriptors.
pub(super) fn out_of_descriptors(error: &io::Error) -> bool {
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
        // Others are about one connection, such as one that was reset.
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

    #[test]
    fn no_user_takes_the_slots_of_another_and_none_those_of_the_node() {
        let slots = Slots::new(16);
        let take = |authority| {
            let taken = std::iter::from_fn(|| slots.take(authority));
            taken.collect::<Vec<_>>()
        };
        let first = take(Authority::User(1));
        assert_eq!(first.len(), 4);
        let (second, third) = (take(Authority::User(2)), take(Authority::Remote));
        assert_eq!((second.len(), third.len()), (4, 0));
        assert_eq!(take(Authority::Node).len(), 8);
        drop(second);
        assert_eq!(take(Authority::Remote).len(), 4);
        drop(first);
        assert!(slots.used.lock().unwrap().is_empty());
    }

    #[test]
    fn the_soft_limit_of_descriptors_is_the_hard_one() {
        raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
