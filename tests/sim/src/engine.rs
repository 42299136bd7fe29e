//! Interface of a routing engine to the world. `speaker.rs` implements it for the real one; the tests of the
//! checkers use deliberately faulty engines.

use hyphae_time::Nanos;

use hyphae_wire::{Prefix, PublicKey};

/// Effects of an engine after an input.
#[derive(Debug, Default)]
pub struct Effects {
    /// Packets, each for one peer.
    pub packets: Vec<(u32, Vec<u8>)>,
    /// FIB entries: next hops of a prefix, none for no route.
    pub routes: Vec<(Prefix, Vec<u32>)>,
}

/// A sans-I/O routing engine. Peers have the numbers of their nodes.
pub trait Engine {
    /// A session with a peer has begun.
    fn peer_up(&mut self, now: Nanos, peer: u32, key: PublicKey);
    /// The session with a peer has ended.
    fn peer_down(&mut self, now: Nanos, peer: u32, key: PublicKey);
    /// A peer sent a packet.
    fn handle_packet(&mut self, now: Nanos, peer: u32, packet: &[u8]);
    /// The requested deadline has passed.
    fn handle_timeout(&mut self, now: Nanos);
    /// Collects the effects.
    fn drain(&mut self, now: Nanos, effects: &mut Effects);
    /// When to call `handle_timeout`.
    fn poll_timeout(&self) -> Option<Nanos>;
}
