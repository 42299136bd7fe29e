//! JSON-RPC 2.0 of Hyphae: messages, the method table with its types, the OpenRPC document generated from them, and a
//! client.
//!
//! Methods of the Mycelium network have its names and shapes, so that clients of either work with both; methods of
//! Hyphae are under `node.`, `route.`, `config.` and `admin.`.
//!
//! The method table ([`METHODS`]) is the only list of methods. It generates the functions of [`Client`] and the OpenRPC
//! document ([`openrpc()`]):
//!
//! ```
//! let method = hyphae_rpc::find("node.ping").expect("in the table");
//! assert_eq!(method.params, ["address", "timeoutMs"]);
//! assert_eq!(hyphae_rpc::openrpc()["openrpc"], "1.2.6");
//! ```
//!
//! `examples/` of this package has complete programs that call a node.

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
pub use table::{
    Access, Call, Effect, METHODS, Method, MethodId, NoParams, Waits, cause, method as find,
    parse_params,
};
