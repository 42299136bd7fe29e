//! State of a configured peer.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::{Endpoint, PublicKey};

use crate::Refusal;
use crate::handshake::RETRY_FIRST;

/// A configured peer.
pub(crate) struct Target {
    pub(crate) addresses: Vec<Endpoint>,
    /// Pinned key.
    pub(crate) key: Option<PublicKey>,
    /// Key of the peer that it last led to.
    pub(crate) peer: Option<PublicKey>,
    pub(crate) outgoing: Option<u32>,
    /// Failed attempts since the last success.
    pub(crate) failures: u32,
    pub(crate) refusal: Option<Refusal>,
    /// Time between attempts, growing.
    pub(crate) backoff: Duration,
    /// When its peer was last known to be up.
    pub(crate) up_at: Option<Nanos>,
}

impl Target {
    /// Resets the back-off after a change.
    pub(crate) fn start_over(&mut self) {
        self.failures = 0;
        self.backoff = RETRY_FIRST;
    }

    pub(crate) fn leads_to(&self, key: PublicKey) -> bool {
        self.key.or(self.peer) == Some(key)
    }
}
