//! Idle connections to local servers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyphae_bus::topics::Authority;
use hyphae_wire::PublicKey;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// Idle timeout; shorter than that of common servers.
const REST: Duration = Duration::from_secs(1);
/// Idle connections to one socket; the least recently used is evicted.
const PER_SOCKET_MAX: usize = 64;

/// Socket, authority and sender of a connection. Connections are not shared between senders: state that one sender
/// left on it must not affect another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) set_by: Authority,
    pub(super) sender: PublicKey,
}

/// Idle connections by socket, most recently used last.
#[derive(Default)]
pub(super) struct Idle(Mutex<HashMap<PathBuf, Vec<Resting>>>);

struct Resting {
    place: Place,
    stream: UnixStream,
    since: Instant,
}

impl Idle {
    /// A connection that its server has neither closed nor written to.
    pub(super) fn take(&self, place: &Place) -> Option<UnixStream> {
        let mut all = self.lock();
        let found = all.get_mut(&place.path)?;
        let next = || {
            let at = found.iter().rposition(|one| one.place == *place)?;
            Some(found.remove(at).stream)
        };
        std::iter::from_fn(next).find(is_quiet)
    }

    /// Stores a connection until its next request or the idle timeout.
    pub(super) fn rest(self: &Arc<Self>, place: &Place, stream: UnixStream) {
        let mut all = self.lock();
        if all.is_empty() {
            tokio::spawn(Arc::clone(self).sweep());
        }
        let found = all.entry(place.path.clone()).or_default();
        if found.len() >= PER_SOCKET_MAX {
            found.remove(0);
        }
        found.push(Resting {
            place: place.clone(),
            stream,
            since: Instant::now(),
        });
    }

    /// Closes connections past the idle timeout, until none is left.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REST).await;
            let mut all = self.lock();
            all.retain(|_, found| {
                found.retain(|one| one.since.elapsed() < REST);
                !found.is_empty()
            });
            if all.is_empty() {
                return;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Vec<Resting>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes before a request cannot be its answer.
fn is_quiet(stream: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0; 1], flags) == Err(Errno::AGAIN)
}
