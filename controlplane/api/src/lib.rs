//! RPC of a node: listeners, and the methods behind one [`Dispatcher`]. The only package of the control plane that
//! knows JSON-RPC, HTTP and codes of errors.
//!
//! | listener | protocol | callers |
//! |---|---|---|
//! | `rpc.sock` | newline-delimited JSON-RPC, or HTTP/1.1 | `rpc.allow_*`, by `SO_PEERCRED` and `SO_PEERGROUPS` |
//! | TCP | JSON-RPC over HTTP/1.1 | on loopback users, identified by sock_diag; elsewhere holders of the bearer token |
//! | TCP, REST | `/api/v1` of the Mycelium network | the same |
//! | bus | messages on the topic `mycelium.admin` | keys and methods of admin.toml |
//!
//! ```text
//!  rpc.sock ─ credentials ─┬──────────────────────── unix (lines) ┐
//!                          └ serve (HTTP) ─ gate ─┬─ http ────────┼─▶ dispatch ─ authorizer ─▶ methods
//!  TCP ─ peer_uid, token ─── serve (HTTP) ─ gate ─┴─ rest ────────┤
//!  bus ───────────────────────────────────────────────────────────┘
//! ```

#![forbid(unsafe_code)]

mod authorizer;
mod bus;
mod connections;
mod context;
mod credentials;
mod disconnect;
mod dispatch;
mod envelope;
mod error;
mod gate;
mod http;
mod methods;
mod metrics;
mod params;
mod peer_uid;
mod reloader;
mod reply;
mod rest;
mod rest_peers;
mod serve;
mod socket_file;
mod unix;

use std::io;

use hyphae_files::BindError;
use tokio::net::TcpListener;

use hyphae_store::files::retry_while_busy;

pub use authorizer::Admins;
pub use authorizer::Listener;
pub use bus::{REMOTE_CALLS_QUEUED, answer_remote_calls};
pub use connections::raise_descriptor_limit;
pub use context::{Dispatcher, Files, Parts};
pub use gate::checked;
pub use http::router;
pub use methods::Configuration;
pub use metrics::router as metrics_router;
pub use reloader::Reloader;
pub use rest::router as rest_router;
pub use serve::{Access, serve_tcp};
pub use socket_file::SocketFile;
pub use unix::serve_unix;

/// File name of the Unix socket.
pub const SOCKET_NAME: &str = "rpc.sock";

/// A listening socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Unix socket.
    #[error(transparent)]
    Unix(BindError),
    /// Another node.
    #[error("{0}: another node answers there; stop it or use another --socket-dir")]
    InUse(std::path::PathBuf),
    /// TCP socket.
    #[error("cannot listen on {address}: {source}; choose another address with {flag}, or 'off'")]
    Tcp {
        /// Which.
        address: std::net::SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// How.
        source: io::Error,
    },
}

/// Listens on an address. Waits on the blocking pool for one that a process killed a moment ago still holds.
///
/// # Errors
/// When it cannot be bound.
pub async fn listen_tcp(
    address: std::net::SocketAddr,
    flag: &'static str,
) -> Result<TcpListener, ListenError> {
    let fail = move |source| ListenError::Tcp {
        address,
        flag,
        source,
    };
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let bind =
        move || retry_while_busy(in_use, || std::net::TcpListener::bind(address)).map_err(fail);
    let bound = tokio::task::spawn_blocking(bind).await;
    let listener = bound.map_err(|error| fail(error.into()))??;
    listener.set_nonblocking(true).map_err(fail)?;
    TcpListener::from_std(listener).map_err(fail)
}

/// Parsers of foreign input, for the fuzz targets.
pub mod parsers {
    pub use crate::peer_uid::{Unidentified, owner_in_answer, owner_in_table};
    pub use crate::rest_peers::{numeric, spellings};
}
