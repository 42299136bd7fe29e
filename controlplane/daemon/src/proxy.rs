//! Socket proxies: programs that speak over Unix sockets talk through the message bus, and neither
//! knows.
//!
//! ```text
//! program ── Unix socket ── outbound ── message (dst, topic) ── forward ── Unix socket ── server
//!        ◀──── answer ────           ◀── reply, same id ────           ◀──── answer ────
//! ```
//!
//! [`framing`] says where requests and answers end and is pure; [`outbound`] and [`forward`] are its two
//! ends. Both know the bus as a [`Courier`] only.

mod budget;
pub mod forward;
pub mod framing;
mod gate;
mod idle;
pub mod outbound;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::topics::TopicConfig;
use hyphae_bus::{DeliveryKey, Outgoing, Refuse, ReplyFailure, Topic};

pub use framing::Failure;
pub use gate::{Gate, GateError, Plane};
pub use stats::{Side, Stats};

/// How long a program at an outbound socket waits for its answer.
pub const REPLY_WAIT: Duration = Duration::from_secs(300);

/// What proxies ask of the bus.
pub trait Courier: Clone + Send + Sync + 'static {
    /// Sends a message and waits for its reply.
    fn request(
        &self,
        message: Outgoing,
        within: Duration,
    ) -> impl Future<Output = Result<Bytes, Failure>> + Send;

    /// Sends a message that nobody answers.
    fn tell(&self, message: Outgoing) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Answers a message that was settled, which counts as read with that; false when the answer cannot be sent.
    fn answer(&self, key: DeliveryKey, message: Outgoing) -> impl Future<Output = bool> + Send;

    /// Tells the sender of a message that was settled why it gets no answer. The message does not count as read.
    fn fail(&self, key: DeliveryKey, failure: ReplyFailure) -> impl Future<Output = ()> + Send;

    /// Tells the sender of a delivered message what became of it.
    fn settle(
        &self,
        key: DeliveryKey,
        verdict: Result<(), Refuse>,
    ) -> impl Future<Output = ()> + Send;

    /// Tells the sender that its message was read.
    fn read(&self, key: DeliveryKey) -> impl Future<Output = ()> + Send;
}

/// The settings of a topic, as they are at the moment.
pub type Settings = Arc<dyn Fn(&Topic) -> Option<TopicConfig> + Send + Sync>;
