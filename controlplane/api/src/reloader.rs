//! How settings are read again.

use std::fmt;
use std::sync::Arc;

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
