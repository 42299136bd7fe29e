//! The settings in force, and their reload.

use std::fmt;
use std::sync::Arc;

use hyphae_config::{ConfigError, Settings};
use hyphae_wire::NetworkId;

type Read = dyn Fn() -> Result<Settings, ConfigError> + Send + Sync;
type SetLogLevel = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// Reads the settings of a control plane again; provided by the program that starts it.
#[derive(Clone)]
pub struct Reloader {
    /// Reads the file again, with the flags that the node was started with.
    pub read: Arc<Read>,
    /// Sets the log level of this process.
    pub set_log_level: Arc<SetLogLevel>,
    /// Notified when a signal requests a reload.
    pub asked: Arc<tokio::sync::Notify>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reloader")
    }
}

/// The settings in force, and their reload.
pub struct Configuration {
    /// Settings.
    pub settings: Settings,
    /// Reads them again.
    pub reloader: Reloader,
    /// The private network that the node was started in.
    pub network: Option<NetworkId>,
}
