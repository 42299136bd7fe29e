//! Detects that the other end of a local connection has closed, as opposed to finished sending.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// Watches a connection for `EPOLLHUP`: both directions are closed. A client that has only finished sending, as
/// `nc -N` does, causes `EPOLLRDHUP` and still expects its answer.
#[derive(Debug)]
pub struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    /// Watches `stream`.
    ///
    /// # Errors
    /// When its descriptor cannot be duplicated or registered.
    #[allow(
        deprecated,
        reason = "deprecated for types that do not own their descriptor; this one does, and the \
                  replacement is an unsafe function"
    )]
    pub fn watch(stream: &UnixStream) -> io::Result<Self> {
        let copy = stream.as_fd().try_clone_to_owned()?;
        // Without an interest that applies to streams the kernel reports hang-ups only.
        AsyncFd::with_interest(copy, Interest::PRIORITY).map(Self)
    }

    /// Waits until the other end has closed both directions.
    pub async fn happened(&self) {
        // An error of the watch does not mean that the client has closed; writing the answer will fail if it has.
        if self.0.ready(Interest::PRIORITY).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
