//! RPC: listeners, and the methods behind one [`Dispatcher`].
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
mod params;
pub(crate) mod peer_uid;
mod reply;
mod rest;
pub(crate) mod rest_peers;
mod serve;
mod socket_file;
mod unix;

use std::io;

use hyphae_files::BindError;
use tokio::net::TcpListener;

use hyphae_store::files::retry_while_busy;

#[cfg(test)]
pub(crate) use authorizer::Admins;
pub(crate) use authorizer::Listener;
pub(crate) use bus::{REMOTE_CALLS_QUEUED, answer_remote_calls};
pub(crate) use connections::raise_descriptor_limit;
pub(crate) use context::{Dispatcher, Files, Parts};
pub(crate) use gate::checked;
pub(crate) use http::router;
pub(crate) use methods::Configuration;
pub(crate) use rest::router as rest_router;
pub(crate) use serve::{Access, serve_tcp};
pub(crate) use socket_file::SocketFile;
pub(crate) use unix::serve_unix;

/// File name of the Unix socket.
pub(crate) const SOCKET_NAME: &str = "rpc.sock";

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

/// Listens on an address.
pub(crate) fn listen_tcp(
    address: std::net::SocketAddr,
    flag: &'static str,
) -> Result<TcpListener, ListenError> {
    let fail = |source| ListenError::Tcp {
        address,
        flag,
        source,
    };
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let listener = retry_while_busy(in_use, || std::net::TcpListener::bind(address));
    let listener = listener.map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    TcpListener::from_std(listener).map_err(fail)
}
