//! What the world needs of a routing engine. The real one is in `speaker.rs`; the tests of the
//! checkers bring one that is wrong on purpose.

use hyphae_time::Nanos;

use hyphae_wire::{Prefix, PublicKey};

/// What an engine wants done after it was given something.
#[derive(Debug, Default)]
pub struct Effects {
    /// Packets, each for one peer.
    pub packets: Vec<(u32, Vec<u8>)>,
    /// Entries of the FIB: the peers that packets for a prefix go to, none when there is no route.
    pub routes: Vec<(Prefix, Vec<u32>)>,
}

/// A routing engine without clock, sockets or randomness of its own. Peers have the numbers of
/// the nodes that they are.
pub trait Engine {
    /// A session with a peer has begun.
    fn peer_up(&mut self, now: Nanos, peer: u32, key: PublicKey);
    /// The session with a peer has ended.
    fn peer_down(&mut self, now: Nanos, peer: u32, key: PublicKey);
    /// A peer sent a packet.
    fn handle_packet(&mut self, now: Nanos, peer: u32, packet: &[u8]);
    /// The time that was asked for has come.
    fn handle_timeout(&mut self, now: Nanos);
    /// Takes what is to be done.
    fn drain(&mut self, now: Nanos, effects: &mut Effects);
    /// When to call `handle_timeout`.
    fn poll_timeout(&self) -> Option<Nanos>;
}
