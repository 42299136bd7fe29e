//! JSON-RPC 2.0 as Hyphae speaks it: messages, the method table with its types, the OpenRPC document
//! made from them, and a client.
//!
//! Names and shapes of methods that the Mycelium network has are its own, so that clients of either
//! work with both; what goes beyond it is under `node.` and `route.`.

#![forbid(unsafe_code)]

mod base64;
mod client;
mod connection;
pub mod message;
pub mod method;
mod openrpc;
mod table;

pub use base64::{Base64, InvalidBase64};
pub use client::{Client, ClientError};
pub use connection::{Answers, BATCH_MAX, BatchId, Connection};
pub use message::{Error, Request, Response, code};
pub use openrpc::document as openrpc;
pub use table::{METHODS, Method, NoParams, cause, method as find, parse_params};
