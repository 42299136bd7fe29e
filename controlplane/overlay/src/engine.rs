//! The engine.

use hyphae_shm::record::Punt;
use hyphae_wire::{Endpoint, Nanos, OverlayAddress, PublicKey, WorkerId};

use crate::program::Output;
use crate::{Config, ConfiguredPeer, Event, OwnedProgram, PeerConfig, PeerStatus, SessionStatus};

/// Peering, handshakes and sessions of one node.
pub struct Overlay {
    config: Config,
    output: Output,
}

impl Overlay {
    /// An engine that knows nobody yet. `seed` must be random.
    ///
    /// # Panics
    /// When `config` names no port, or more than 64.
    pub fn new(config: Config, _seed: [u8; 32]) -> Self {
        Self {
            config,
            output: Output::default(),
        }
    }

    /// This node's key.
    pub fn key(&self) -> PublicKey {
        self.config.identity.public_key()
    }
    /// This node's overlay address.
    pub fn address(&self) -> OverlayAddress {
        self.key().address()
    }

    /// Takes over what the workers of a dataplane have: asks for snapshots, keeps what they name,
    /// and goes through a resync. Call it once per attach, before anything else.
    pub fn begin_attach(&mut self, _now: Nanos, _generation: u64) {}
    /// Ends the resync; call it when every FIB entry is pushed after [`Event::ResyncFib`].
    pub fn finish_resync(&mut self, _now: Nanos) {}
    /// Whether the engine has taken over the workers' state, and the resync has ended.
    pub fn is_attached(&self) -> bool {
        true
    }
    /// Keeps connecting to a peer. A known handle replaces the entry.
    pub fn add_peer(&mut self, _now: Nanos, _peer: PeerConfig) {}
    /// New addresses of a configured peer (its name resolves differently now).
    pub fn set_addresses(&mut self, _now: Nanos, _id: ConfiguredPeer, _addresses: Vec<Endpoint>) {}
    /// Forgets a configured peer; its link ends when no other entry leads to it. False when unknown.
    pub fn remove_peer(&mut self, _now: Nanos, _id: ConfiguredPeer) -> bool {
        false
    }
    /// Ends the link with a peer by its key, configured or inbound. False when there is none.
    pub fn remove_peer_by_key(&mut self, _now: Nanos, _key: &PublicKey) -> bool {
        false
    }
    /// Takes a record of a worker.
    pub fn handle_punt(&mut self, _now: Nanos, _worker: WorkerId, _punt: &Punt<'_>) {}
    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Nanos) {}
    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        None
    }
    /// The next record to push to the ring of a worker, in order.
    pub fn poll_program(&mut self) -> Option<(WorkerId, OwnedProgram)> {
        self.output.poll_program()
    }
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.output.poll_event()
    }
    /// Sends an end-to-end probe, making a session first if there is none. The answer is
    /// [`Event::EchoReply`] with `id`; there may be none, so the caller keeps a deadline.
    pub fn ping(&mut self, _now: Nanos, _address: OverlayAddress, _id: u64) {}
    /// Says good-bye to every peer and session. Drain the programs afterwards.
    pub fn shutdown(&mut self, _now: Nanos) {}
    /// Peers, and configured addresses that have not answered yet.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        std::iter::empty()
    }
    /// End-to-end sessions.
    pub fn sessions(&self) -> impl Iterator<Item = SessionStatus> {
        std::iter::empty()
    }
    /// Key of a node that this one has a link or session with.
    pub fn key_of(&self, _address: OverlayAddress) -> Option<PublicKey> {
        None
    }
}
