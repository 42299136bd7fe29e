//! RPC of a node: [`Listeners`], and the methods behind one [`Dispatcher`]. The only package of the control plane with
//! JSON-RPC, HTTP and error codes.
//!
//! | listener | protocol | callers |
//! |---|---|---|
//! | `rpc.sock` | newline-delimited JSON-RPC, or HTTP/1.1 | `rpc.allow_*`, by `SO_PEERCRED` and `SO_PEERGROUPS` |
//! | TCP | JSON-RPC over HTTP/1.1 | on loopback users, identified by sock_diag; elsewhere holders of the bearer token |
//! | TCP, REST | `/api/v1` of the Mycelium network | the same |
//! | bus | messages on the topic `mycelium.admin` | keys and methods of admin.toml |
//!
//! ```text
//!  rpc.sock ─ credentials ─┬──────────────── unix (lines) ┐
//!                          └ HTTP ─ gate ─┬─ http ────────┼─▶ envelope ─▶ dispatch ─ authorizer ─▶ methods
//!  TCP ─ peer_uid, token ─── HTTP ─ gate ─┴─ rest ────────┤
//!  bus ───────────────────────────────────────────────────┘
//! ```

#![forbid(unsafe_code)]

mod authorizer;
mod context;
mod disconnect;
mod dispatch;
mod envelope;
mod error;
mod listeners;
mod methods;
mod params;
mod reloader;
mod reply;

pub use authorizer::Admins;
pub use context::{Dispatcher, Files, Parts};
pub use listeners::{ListenError, Listeners, SOCKET_NAME, SocketFile, raise_descriptor_limit};
pub use reloader::{Configuration, Reloader};

/// Parsers of untrusted input, for the fuzz targets.
pub mod parsers {
    pub use crate::listeners::peer_uid::{Unidentified, owner_in_answer, owner_in_table};
    pub use crate::listeners::rest::peers::{numeric, spellings};
}
