//! Settings of a node: one TOML file, flags on top.
//!
//! ```text
//! file ─▶ Settings (a value per key of the table) ─▶ Raw (typed) ─▶ Config (checked)
//! flags ─┘  diff, show, reload
//! ```
//!
//! The table of [`keys`] says what may be set; what it does not know is refused. A flag that is not
//! given is `None` in [`Overrides`] and changes nothing.

#![forbid(unsafe_code)]

mod config;
pub mod endpoint;
mod error;
mod key;
pub mod keys;
mod overrides;
pub mod page;
mod peering;
mod raw;
mod routing;
mod settings;
#[cfg(test)]
mod tests;

pub use config::{
    Allowed, Config, InboxConfig, LISTEN_DEFAULT, LogFormat, METRICS_DEFAULT, REST_DEFAULT,
    RPC_DEFAULT, SessionConfig, StreamConfig, TUN_NAME_DEFAULT,
};
pub use error::{ConfigError, Problem};
pub use overrides::Overrides;
pub use peering::{
    DISCOVERY_PORT_DEFAULT, DiscoveryConfig, DiscoveryMode, NetworkConfig, PeeringConfig,
};
pub use routing::RoutingConfig;
pub use settings::{SettingChange, Settings};
