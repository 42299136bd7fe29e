//! The message bus: messages of up to 64 MiB between nodes, once and whole, sans-I/O.
//!
//! A [`Bus`] is a state machine. Time and randomness come in as arguments; what it wants done comes
//! out as packets and events. One mutation, then drain:
//!
//! ```text
//! packets, time     ──▶ handle_packet, handle_timeout ──▶ poll_transmit (bounded per turn)
//! callers           ──▶ push, reply, accepted, …      ──▶ poll_event    (before the packets)
//! sessions          ──▶ session_up, session_down      ──▶ poll_timeout  (call handle_timeout then)
//! ```
//!
//! Packets travel sealed end to end, so the key of their sender is authentic, and all state is kept
//! by (key of the peer, id). Between messages no order is promised. How it works is told in
//! docs/internals/message-bus.md.

#![forbid(unsafe_code)]

mod buffer;
mod completed;
pub mod config;
mod engine;
mod held;
mod incoming;
mod kept;
mod oldest;
mod outgoing;
mod path;
mod receipts;
mod receiving;
mod rng;
mod sending;
mod sends;
mod shares;
mod stats;
pub mod topics;
mod types;

pub use buffer::{Buffer, Pool};
pub use config::Config;
pub use engine::Bus;
pub use hyphae_wire::message::ReplyFailure;
pub use stats::Stats;
pub use types::{
    AbortReason, DeliveryKey, Destination, Event, Inbound, InvalidMessageId, InvalidTopic,
    MessageId, MessageInfo, MessageState, Outgoing, Progress, PushError, Refuse, Rejection, Room,
    Topic, Transmit,
};
