//! The message bus: messages of up to 64 MiB between nodes, delivered exactly once and complete. Sans-I/O.
//!
//! A [`Bus`] is a state machine. Time and randomness are arguments; effects are packets and events. Drain both after
//! every mutation:
//!
//! ```text
//! packets, time     ──▶ handle_packet, handle_timeout ──▶ poll_transmit (bounded per turn)
//! callers           ──▶ push, reply, accepted, …      ──▶ poll_event    (before the packets)
//! sessions          ──▶ session_up, session_down      ──▶ poll_timeout  (call handle_timeout then)
//! ```
//!
//! Packets are encrypted end to end, so the key of their sender is authentic. All state is indexed by (key of the peer,
//! id). Messages are not ordered. The protocol is described in docs/internals/message-bus.md.

#![forbid(unsafe_code)]

mod age_queue;
mod batch_ack;
mod buffer;
mod completed;
pub mod config;
mod deferred;
mod engine;
mod incoming;
mod path;
mod receipts;
mod stats;
pub mod topics;
mod transfer;
mod transfers;
mod types;
mod usage;

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
