//! How settings are read again, and how often that was done.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hyphae_config::{ConfigError, Settings};

type Read = dyn Fn() -> Result<Settings, ConfigError> + Send + Sync;
type SetLogLevel = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// How a control plane reads its settings again; set by the program that starts it.
#[derive(Clone)]
pub struct Reloader {
    /// Reads the file again, with the flags that the node was started with.
    pub read: Arc<Read>,
    /// Changes the level of the log of this process.
    pub set_log_level: Arc<SetLogLevel>,
    /// Notified when a signal asks for a reload.
    pub asked: Arc<tokio::sync::Notify>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reloader")
    }
}

/// Reloads since start, for metrics.
#[derive(Debug)]
pub(crate) struct Reloads {
    done: AtomicU64,
    refused: AtomicU64,
    last_unix: AtomicU64,
}

/// Reloads done and refused, and when the last was done, seconds since 1970.
pub(crate) type ReloadCounts = (u64, u64, u64);

impl Reloads {
    /// The start counts as the first success of its kind, as what is in force is from then.
    pub(crate) fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_unix: AtomicU64::new(unix_seconds()),
        }
    }

    pub(crate) fn note(&self, done: bool) {
        if done {
            self.done.fetch_add(1, Ordering::Relaxed);
            self.last_unix.store(unix_seconds(), Ordering::Relaxed);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> ReloadCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.done), of(&self.refused), of(&self.last_unix))
    }
}

/// Now, seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
