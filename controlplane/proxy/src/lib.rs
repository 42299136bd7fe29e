//! Socket proxies: programs that use Unix sockets communicate over the message bus, unmodified.
//!
//! ```text
//! program ── Unix socket ── outbound ── message (dst, topic) ── forward ── Unix socket ── server
//!        ◀──── answer ────           ◀── reply, same id ────           ◀──── answer ────
//! ```
//!
//! [`framing`] finds the ends of requests and answers and does no I/O; [`outbound`] and [`forward`] are its two
//! ends. Both use the bus through [`BusClient`].

#![forbid(unsafe_code)]

mod budget;
mod bus_client;
pub mod forward;
pub mod framing;
mod gate;
mod hangup;
mod idle;
pub mod outbound;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use hyphae_bus::Topic;
use hyphae_bus::topics::TopicConfig;

pub use bus_client::BusClient;
pub use framing::Failure;
pub use gate::{Gate, GateError, Plane};
pub use hangup::Hangup;
pub use stats::{Side, Stats};

/// Reply timeout of an outbound socket.
pub const REPLY_WAIT: Duration = Duration::from_secs(300);

/// Lookup of the current settings of a topic.
pub type Settings = Arc<dyn Fn(&Topic) -> Option<TopicConfig> + Send + Sync>;
