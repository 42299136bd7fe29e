//! Sees that the other end of a local connection has closed, not just finished sending.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// Watches a connection. `EPOLLHUP` means that both directions are over; a client that has only finished sending, as
/// `nc -N` does, causes `EPOLLRDHUP` and still wants its answer.
pub(crate) struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    #[allow(
        deprecated,
        reason = "deprecated for types that do not own their descriptor; this one does, and the \
                  replacement is an unsafe function"
    )]
    pub(crate) fn watch(stream: &UnixStream) -> io::Result<Self> {
        let copy = stream.as_fd().try_clone_to_owned()?;
        // Asked for nothing that a stream has, the system reports hang-ups only.
        AsyncFd::with_interest(copy, Interest::PRIORITY).map(Self)
    }

    pub(crate) async fn happened(&self) {
        // An error of the watch is no sign that the client has gone: the answer will tell.
        if self.0.ready(Interest::PRIORITY).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
