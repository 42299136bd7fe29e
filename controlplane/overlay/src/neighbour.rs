//! Packets of the routing protocol between this node and a neighbour.

use hyphae_wire::control::{self, ControlKind};

use crate::Overlay;
use crate::ids::Owner;

impl Overlay {
    /// Sends a packet of the routing protocol to a peer that is up, by its number. False when there
    /// is no session with it.
    pub fn send_routing(&mut self, peer: u32, packet: &[u8]) -> bool {
        let owner = Owner::Peer(peer);
        let lane = self
            .associations
            .get(&owner)
            .and_then(|association| association.current()?.lanes.first());
        let Some(receive) = lane.map(|lane| lane.receive) else {
            return false;
        };
        let mut message = control::message(ControlKind::Routing).to_vec();
        message.extend_from_slice(packet);
        self.send_control(owner, receive, &message);
        true
    }
}
