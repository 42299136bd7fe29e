//! The node: a task that drives the engines of the control plane (overlay, routing, message bus).
//!
//! A [`Builder`] builds the [`Task`] and hands out clients: a [`NodeClient`] sends [requests](request) and receives
//! plain values ([`views`], [`snapshot`]), a [`Client`] uses the message bus. The node parses no JSON, knows no RPC and
//! opens no state files but the inbox.

#![forbid(unsafe_code)]

mod alarm;
mod apply;
mod attachment;
mod builder;
mod client;
mod command;
mod event_log;
mod fib_hold;
mod handle_request;
mod host_side;
mod inspect;
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
pub use builder::{Builder, Built, StoredSettings, UnusableRoute};
pub use client::{NodeClient, NodeStopped};
use node::Node;
pub use services::bus::{
    BusError, BusParts, Client, DIGEST_APART, Delivered, Delivery, DeliveryNote, LeaseToken,
    ReplyOutcome,
};
pub use task::Task;
