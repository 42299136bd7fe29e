//! Watches that every thread that serves packets makes progress, and tells the service manager.
//!
//! The main thread, which has nothing else to do, asks: it rings a thread's doorbell, and looks a while later
//! whether that thread has gone round its loop. So the watchdog is fed by the workers' progress: one
//! worker that hangs is enough for it to starve, however well the others and the main thread are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyphae_notify::Notifier;
use hyphae_shm::Doorbell;

/// Counts the rounds of one thread's loop.
#[derive(Debug)]
pub(crate) struct Pulse {
    rounds: AtomicU64,
    /// Rung in the first round.
    begun: Arc<Doorbell>,
}

impl Pulse {
    pub(crate) fn new(begun: Arc<Doorbell>) -> Self {
        let rounds = AtomicU64::new(0);
        Self { rounds, begun }
    }

    /// One more round. Only the thread itself calls this: a store, no read-modify-write.
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

/// A thread that is watched.
pub(crate) struct Watched {
    pub(crate) name: String,
    pub(crate) pulse: Arc<Pulse>,
    /// Makes it go round.
    pub(crate) bell: Arc<Doorbell>,
}

/// What the main thread knows of the others.
pub(crate) struct Vigil {
    notifier: Notifier,
    watched: Vec<(Watched, u64)>,
    begun: Arc<Doorbell>,
    ready: bool,
    /// When to look again, where a watchdog wants to be fed.
    next: Option<Instant>,
    /// Threads that were found stuck the last time.
    stuck: Vec<usize>,
}

impl Vigil {
    pub(crate) fn new(notifier: Notifier, watched: Vec<Watched>, begun: Arc<Doorbell>) -> Self {
        Self {
            notifier,
            watched: watched.into_iter().map(|watched| (watched, 0)).collect(),
            begun,
            ready: false,
            next: None,
            stuck: Vec::new(),
        }
    }

    /// Readable when a thread has begun.
    pub(crate) fn begun(&self) -> &Doorbell {
        &self.begun
    }

    /// How long the main thread may wait for other things; `None` for ever.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.next.map(|at| at.saturating_duration_since(now))
    }

    /// Something happened, or the wait is over.
    pub(crate) fn look(&mut self, now: Instant) {
        self.begun.clear();
        if !self.ready {
            self.ready = self.watched.iter().all(|(it, _)| it.pulse.rounds() > 0);
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
            let rounds = watched.pulse.rounds();
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
        // A status before READY would be one of a service that does not work yet.
        if self.ready {
            self.notifier.status(text);
        }
    }

    pub(crate) fn stopping(&mut self) {
        self.notifier.stopping();
    }
}
