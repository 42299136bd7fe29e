//! Errors of listening.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use hyphae_files::BindError;

/// A listener could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Unix socket.
    #[error(transparent)]
    Unix(BindError),
    /// Another node listens.
    #[error("{0}: another node answers there; stop it or use another --socket-dir")]
    InUse(PathBuf),
    /// TCP socket.
    #[error("cannot listen on {address}: {source}; choose another address with {flag}, or 'off'")]
    Tcp {
        /// Address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Cause.
        source: io::Error,
    },
}
