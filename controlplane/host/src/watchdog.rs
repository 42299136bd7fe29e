//! Tells the service manager how the engine task is doing. The watchdog is fed from its loop and from nowhere
//! else: a loop that hangs, or anything that keeps its thread, lets the watchdog starve.

use std::time::Duration;

use hyphae_notify::Notifier;
use hyphae_time::Nanos;

/// How often the status is brought up to date where no watchdog sets the pace.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// The engine task's side of the service manager.
pub struct Watchdog {
    notifier: Notifier,
    every: Duration,
    next: Nanos,
    ready: bool,
}

impl Watchdog {
    /// `notifier` is the socket of the service manager, if the process has one.
    pub fn new(notifier: Notifier) -> Self {
        let asked = notifier.watchdog_interval();
        let next = if notifier.is_enabled() {
            Nanos(0)
        } else {
            Nanos::NEVER
        };
        Self {
            notifier,
            every: asked.unwrap_or(STATUS_EVERY).min(STATUS_EVERY),
            next,
            ready: false,
        }
    }

    /// The node serves.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.notifier.ready();
        }
    }

    /// When the loop has to come round again at the latest.
    pub fn at(&self) -> Nanos {
        self.next
    }

    /// The loop came round.
    pub fn round(&mut self, now: Nanos, status: impl FnOnce() -> String) {
        if now < self.next {
            return;
        }
        self.next = now + self.every;
        if self.ready {
            self.notifier.watchdog();
        }
        self.notifier.status(&status());
    }

    /// Before there is a loop.
    pub fn status(&mut self, text: &str) {
        self.notifier.status(text);
    }

    /// The end begins.
    pub fn stopping(&mut self) {
        self.notifier.stopping();
    }
}
