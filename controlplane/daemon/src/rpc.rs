//! RPC: doors here and in the files below, methods behind one [`Dispatcher`].
//!
//! | door | speaks | who may |
//! |---|---|---|
//! | `rpc.sock` | newline-delimited JSON-RPC, or HTTP/1.1 | [`Allowed`], by `SO_PEERCRED` and `SO_PEERGROUPS` |
//! | TCP | JSON-RPC over HTTP/1.1 | on loopback users, found by sock_diag; elsewhere who has the bearer token |
//! | TCP, REST | `/api/v1` of the Mycelium network | the same |
//! | bus | messages on the topic `mycelium.admin` | keys and methods of admin.toml |
//!
//! ```text
//!  rpc.sock ─ credentials ─┬──────────────────────── unix (lines) ┐
//!                          └ serve (HTTP) ─ gate ─┬─ http ────────┼─▶ dispatch ─ authorizer ─▶ methods
//!  TCP ─ peer_uid, token ─── serve (HTTP) ─ gate ─┴─ rest ────────┘
//! ```

mod admin;
mod authorizer;
mod connections;
mod credentials;
mod dispatch;
mod envelope;
mod gate;
mod gone;
mod http;
mod latency;
mod messages;
mod methods;
mod peer_uid;
mod reload;
mod remote;
mod rest;
mod rest_peers;
mod rows;
mod serve;
mod topics;
mod unix;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use crate::config::Allowed;
use crate::state::let_go;

pub(crate) use authorizer::Listener;
pub(crate) use connections::raise_descriptor_limit;
pub(crate) use dispatch::{Dispatcher, Parts};
pub(crate) use gate::checked;
pub(crate) use http::router;
pub(crate) use latency::Latency;
pub(crate) use methods::{Outcome, ping_params, state_name, trace_hop, trace_params, value};
pub(crate) use remote::{REMOTE_CALLS_QUEUED, answer_remote_calls};
pub(crate) use rest::router as rest_router;
pub(crate) use serve::{Access, serve_tcp};
pub(crate) use unix::serve_unix;

/// File name of the Unix socket.
pub(crate) const SOCKET_NAME: &str = "rpc.sock";

/// A listening socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Unix socket.
    #[error("{path}: {source}")]
    Unix {
        /// Which.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// Another node.
    #[error("{0}: another node answers there; stop it or use another --socket-dir")]
    InUse(PathBuf),
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

/// Takes over `rpc.sock`; a socket file that nobody listens on is replaced.
pub(crate) fn listen_unix(
    directory: &Path,
    allowed: &Allowed,
) -> Result<UnixListener, ListenError> {
    let path = directory.join(SOCKET_NAME);
    let fail = |source| ListenError::Unix {
        path: path.clone(),
        source,
    };
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(ListenError::InUse(path));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(fail)?;
    let permit = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(fail)
    };
    if allowed.is_empty() {
        permit(&path, 0o660)?;
    } else {
        // Those who are named have to get to the socket; then the lists decide. The other socket in
        // this directory checks its callers too.
        let mode = std::fs::metadata(directory)
            .map_err(fail)?
            .permissions()
            .mode();
        permit(directory, mode & 0o7777 | 0o011)?;
        permit(&path, 0o666)?;
    }
    Ok(listener)
}

/// Listens on an address.
pub(crate) async fn listen_tcp(
    address: std::net::SocketAddr,
    flag: &'static str,
) -> Result<TcpListener, ListenError> {
    let fail = |source| ListenError::Tcp {
        address,
        flag,
        source,
    };
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let listener = let_go(in_use, || std::net::TcpListener::bind(address)).await;
    let listener = listener.map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    TcpListener::from_std(listener).map_err(fail)
}
