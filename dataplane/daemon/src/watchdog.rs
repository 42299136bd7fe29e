//! Watchdog: checks that every thread that serves packets makes progress, and notifies the service manager.
//!
//! The main thread rings a thread's doorbell and checks one interval later whether its loop has made a round since.
//! So the service manager's watchdog is fed by progress of the workers: one worker that hangs starves it, whatever
//! the main thread and the others do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyphae_notify::Notifier;
use hyphae_shm::Doorbell;

/// Counts the rounds of one thread's loop.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    rounds: AtomicU64,
    /// Rung in the first round.
    begun: Arc<Doorbell>,
}

impl Heartbeat {
    pub(crate) fn new(begun: Arc<Doorbell>) -> Self {
        let rounds = AtomicU64::new(0);
        Self { rounds, begun }
    }

    /// Counts a round. Only the thread itself calls this: a store, no read-modify-write.
    pub(crate) fn beat(&self) {
        let rounds = self.rounds.load(Ordering::Relaxed);
        self.rounds.store(rounds.wrapping_add(1), Ordering::Relaxed);
        if rounds == 0 {
            self.begun.ring();
        }
    }

    fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }
}

/// A thread under supervision.
pub(crate) struct WatchedThread {
    pub(crate) name: String,
    pub(crate) heartbeat: Arc<Heartbeat>,
    /// Wakes it for a round.
    pub(crate) bell: Arc<Doorbell>,
}

/// The main thread's view of the others.
pub(crate) struct Watchdog {
    notifier: Notifier,
    watched: Vec<(WatchedThread, u64)>,
    begun: Arc<Doorbell>,
    ready: bool,
    /// Next check; `None` without a watchdog.
    next: Option<Instant>,
    /// Threads without progress at the last check.
    stuck: Vec<usize>,
}

impl Watchdog {
    pub(crate) fn new(
        notifier: Notifier,
        watched: Vec<WatchedThread>,
        begun: Arc<Doorbell>,
    ) -> Self {
        Self {
            notifier,
            watched: watched.into_iter().map(|watched| (watched, 0)).collect(),
            begun,
            ready: false,
            next: None,
            stuck: Vec::new(),
        }
    }

    /// Readable when a thread has started its loop.
    pub(crate) fn begun(&self) -> &Doorbell {
        &self.begun
    }

    /// Time until the next check; `None` without a watchdog.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.next.map(|at| at.saturating_duration_since(now))
    }

    /// Checks progress if that is due; reports READY once all threads have started.
    pub(crate) fn poll(&mut self, now: Instant) {
        self.begun.clear();
        if !self.ready {
            self.ready = self
                .watched
                .iter()
                .all(|(thread, _)| thread.heartbeat.rounds() > 0);
            if !self.ready {
                return;
            }
            self.notifier.ready();
            self.next = self.notifier.watchdog_interval().map(|_| now);
        }
        let due = self.next.is_some_and(|at| now >= at);
        let Some(every) = self.notifier.watchdog_interval().filter(|_| due) else {
            return;
        };
        self.next = Some(now + every);
        let mut stuck = Vec::new();
        for (n, (watched, seen)) in self.watched.iter_mut().enumerate() {
            let rounds = watched.heartbeat.rounds();
            if rounds == *seen {
                stuck.push(n);
                if !self.stuck.contains(&n) {
                    tracing::error!(
                        thread = watched.name,
                        "makes no progress; the service manager will end this process if it goes on"
                    );
                }
            }
            *seen = rounds;
            watched.bell.ring();
        }
        if stuck.is_empty() {
            self.notifier.watchdog();
        }
        self.stuck = stuck;
    }

    pub(crate) fn status(&mut self, text: &str) {
        // A status before READY would describe a service that does not work yet.
        if self.ready {
            self.notifier.status(text);
        }
    }

    pub(crate) fn stopping(&mut self) {
        self.notifier.stopping();
    }
}
