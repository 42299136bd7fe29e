//! The node: a task that drives the engines of the control plane (overlay, routing, message bus).
//!
//! Other tasks send it [requests](request) and receive plain values ([`views`], [`snapshot`]); [`Client`] is their
//! access to the message bus. [`Builder`] has the parts of a [`Node`], [`Task`] runs one. It parses no JSON, knows no
//! RPC and opens no state files but the inbox.

#![forbid(unsafe_code)]

mod alarm;
mod apply;
mod attachment;
mod event_log;
mod fib_hold;
mod handle_request;
mod host_side;
mod links;
mod memory;
mod neighbours;
mod node;
mod peers;
mod probes;
pub mod request;
mod resolve;
mod routing;
mod services;
pub mod snapshot;
mod task;
pub mod views;

pub use apply::live;
pub use attachment::{Attachment, DATAPLANE_SOCKET, wait_for_dataplane};
pub use node::{Builder, Node};
pub use services::bus::{
    BusError, BusParts, BusService, Client, DIGEST_APART, Delivery, Handed, Note, ReplyOutcome,
    Token,
};
pub use task::Task;
