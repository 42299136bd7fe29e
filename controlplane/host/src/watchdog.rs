//! Reports the progress of the engine task to the service manager. The watchdog is fed only from the loop of that task:
//! it expires when the loop hangs, or anything else occupies its thread.

use std::time::Duration;

use hyphae_notify::Notifier;
use hyphae_time::Nanos;

/// Interval of status updates, unless the watchdog requires a shorter one.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// The engine task's side of the service manager.
pub struct Watchdog {
    notifier: Notifier,
    interval: Duration,
    next: Nanos,
    ready: bool,
}

impl Watchdog {
    /// `notifier` is the socket of the service manager, if the process has one.
    pub fn new(notifier: Notifier) -> Self {
        let interval = notifier.watchdog_interval();
        let next = if notifier.is_enabled() {
            Nanos(0)
        } else {
            Nanos::NEVER
        };
        Self {
            notifier,
            interval: interval.unwrap_or(STATUS_INTERVAL).min(STATUS_INTERVAL),
            next,
            ready: false,
        }
    }

    /// Reports that the node is ready, once.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.notifier.ready();
        }
    }

    /// Latest time of the next [`Self::progress`].
    pub fn poll_timeout(&self) -> Nanos {
        self.next
    }

    /// Records progress of the loop: feeds the watchdog and updates the status when due.
    pub fn progress(&mut self, now: Nanos, status: impl FnOnce() -> String) {
        if now < self.next {
            return;
        }
        self.next = now + self.interval;
        if self.ready {
            self.notifier.watchdog();
        }
        self.notifier.status(&status());
    }

    /// Sets the status before the loop runs.
    pub fn status(&mut self, text: &str) {
        self.notifier.status(text);
    }

    /// Reports that the node is stopping.
    pub fn stopping(&mut self) {
        self.notifier.stopping();
    }
}
