//! Reloads of the configuration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Reloads since start, for metrics.
#[derive(Debug)]
pub struct Reloads {
    done: AtomicU64,
    refused: AtomicU64,
    last_unix: AtomicU64,
}

/// Reloads done and refused, and the time of the last one done, seconds since 1970.
pub type ReloadCounts = (u64, u64, u64);

impl Default for Reloads {
    fn default() -> Self {
        Self::new()
    }
}

impl Reloads {
    /// The start counts as the first success: the settings in force are from then.
    pub fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_unix: AtomicU64::new(unix_seconds()),
        }
    }

    /// A reload was done, or refused.
    pub fn note(&self, done: bool) {
        if done {
            self.done.fetch_add(1, Ordering::Relaxed);
            self.last_unix.store(unix_seconds(), Ordering::Relaxed);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All counts.
    pub fn read(&self) -> ReloadCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.done), of(&self.refused), of(&self.last_unix))
    }
}

/// Now, seconds since 1970.
pub fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
