//! Configured peers, and when keys were up.

use std::collections::BTreeMap;

use hyphae_config::endpoint::PeerUrl;
use hyphae_time::Nanos;
use hyphae_wire::PublicKey;

/// A peer that this node connects to.
pub(crate) struct Configured {
    pub(crate) url: PeerUrl,
    /// Added by RPC, so stored in peers.toml.
    pub(crate) stored: bool,
    /// Found on a local network.
    pub(crate) lan: bool,
    pub(crate) since: Nanos,
    /// Why its name resolves to no usable address.
    pub(crate) error: Option<String>,
}

/// The peers of a node.
#[derive(Default)]
pub(crate) struct Peers {
    /// Peers that this node connects to, by entry.
    pub(crate) configured: BTreeMap<u32, Configured>,
    next_entry: u32,
    /// First and last time a key was seen up.
    seen: BTreeMap<PublicKey, (Nanos, Nanos)>,
}

impl Peers {
    /// Adds a configured peer; returns its entry.
    pub(crate) fn insert(&mut self, configured: Configured) -> u32 {
        let entry = self.next_entry;
        self.next_entry += 1;
        self.configured.insert(entry, configured);
        entry
    }

    pub(crate) fn note_up(&mut self, now: Nanos, key: PublicKey) {
        self.seen.entry(key).or_insert((now, now)).1 = now;
    }

    /// First and last time a key was seen up.
    pub(crate) fn seen(&self, key: &PublicKey) -> Option<(Nanos, Nanos)> {
        self.seen.get(key).copied()
    }
}
