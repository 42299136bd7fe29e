//! Connections to local servers that wait for their next request.

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

/// How long one waits: less than servers let connections rest.
const REST: Duration = Duration::from_secs(1);
/// Connections to one socket that wait; the one used longest ago makes room.
const PER_SOCKET_MAX: usize = 64;

/// Where a connection leads, on whose authority, and whose requests it carries: whatever one sender has made of
/// it, another one's request is not part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) set_by: Authority,
    pub(super) sender: PublicKey,
}

/// The connections, by the socket they lead to, those used last at the end.
#[derive(Default)]
pub(super) struct Idle(Mutex<HashMap<PathBuf, Vec<Resting>>>);

struct Resting {
    place: Place,
    stream: UnixStream,
    since: Instant,
}

impl Idle {
    /// One that its server has neither closed nor said anything on.
    pub(super) fn take(&self, place: &Place) -> Option<UnixStream> {
        let mut all = self.lock();
        let found = all.get_mut(&place.path)?;
        let next = || {
            let at = found.iter().rposition(|one| one.place == *place)?;
            Some(found.remove(at).stream)
        };
        std::iter::from_fn(next).find(is_quiet)
    }

    /// Lets one wait for its next request, but not for long.
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

    /// Closes those that have waited long enough, until there are none.
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

/// What comes before a request is no answer to it.
fn is_quiet(stream: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0; 1], flags) == Err(Errno::AGAIN)
}
