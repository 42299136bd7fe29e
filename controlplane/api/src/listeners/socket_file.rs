//! The file `rpc.sock`: bound at start, bound again after a deletion, removed at the end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyphae_files::{BindError, Directory, Socket};
use tokio::net::UnixListener;

use super::error::ListenError;
use hyphae_config::Allowed;
use hyphae_store::files::prepare_directory;

/// File name of the Unix socket.
pub const SOCKET_NAME: &str = "rpc.sock";

/// The socket file. Clones share it.
#[derive(Clone)]
pub struct SocketFile {
    path: PathBuf,
    socket: Arc<Mutex<Option<Socket>>>,
}

impl SocketFile {
    /// Binds `rpc.sock`; a stale socket of this user is replaced.
    ///
    /// # Errors
    /// When another node listens there, or it cannot be bound.
    pub fn listen(
        directory: &Directory,
        allowed: &Allowed,
    ) -> Result<(Self, UnixListener), ListenError> {
        let (socket, listener) = listen(directory, allowed)?;
        let place = Self {
            path: socket.path(),
            socket: Arc::new(Mutex::new(Some(socket))),
        };
        Ok((place, listener))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Binds the socket again after its file was deleted.
    pub(crate) fn restore(&self, allowed: &Allowed) -> Option<UnixListener> {
        let mut socket = self.lock();
        if socket.as_ref().is_some_and(Socket::exists) || self.path.symlink_metadata().is_ok() {
            return None;
        }
        let directory = self.path.parent()?;
        // Releases the lock file, which the new socket needs.
        *socket = None;
        let made = prepare_directory(directory).map_err(|error| error.to_string());
        let made = made
            .and_then(|directory| listen(&directory, allowed).map_err(|error| error.to_string()));
        match made {
            Ok((made, listener)) => {
                *socket = Some(made);
                tracing::warn!(path = %self.path.display(), "the socket was deleted and is bound again");
                Some(listener)
            }
            Err(error) => {
                tracing::debug!(error, "the socket was deleted and could not be bound again");
                None
            }
        }
    }

    /// Removes the socket, when the node ends.
    pub fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Socket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(directory: &Directory, allowed: &Allowed) -> Result<(Socket, UnixListener), ListenError> {
    let fail = |source: io::Error| {
        let path = directory.path_of(SOCKET_NAME);
        ListenError::Unix(BindError::System { path, source })
    };
    // Listed users need access to the socket file; its credentials check then applies. The other socket in this
    // directory checks its callers too.
    let mode = if allowed.is_empty() {
        0o660
    } else {
        let mode = directory.mode().map_err(fail)?;
        directory.set_mode(mode | 0o011).map_err(fail)?;
        0o666
    };
    let (socket, listener) =
        Socket::bind(directory, SOCKET_NAME, mode, true).map_err(|error| match error {
            BindError::Live(path) => ListenError::InUse(path),
            error @ (BindError::NotASocket(_)
            | BindError::NotOurs(_)
            | BindError::TooLong(_)
            | BindError::System { .. }) => ListenError::Unix(error),
        })?;
    let listener = UnixListener::from_std(listener).map_err(fail)?;
    Ok((socket, listener))
}
