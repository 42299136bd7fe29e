//! The settings in force, and how they are read again.

use std::fmt;
use std::sync::Arc;

use hyphae_config::{ConfigError, Settings};
use hyphae_wire::NetworkId;

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

/// The settings in force, and how they are read again.
pub struct Configuration {
    /// Settings.
    pub settings: Settings,
    /// How they are read again.
    pub reloader: Reloader,
    /// The private network that the node was started in.
    pub network: Option<NetworkId>,
}
