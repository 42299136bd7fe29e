//! JSON-RPC 2.0 as Hyphae speaks it: messages, the method table with its types, and a client.
//!
//! Names and shapes of methods that the Mycelium network has are its own, so that clients of either
//! work with both; what goes beyond it is under `node.` and `route.`.

#![forbid(unsafe_code)]

mod client;
pub mod message;
pub mod method;

pub use client::{Client, ClientError};
pub use message::{Error, Request, Response, code};
