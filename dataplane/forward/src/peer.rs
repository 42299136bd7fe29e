//! Adjacencies: per peer, which lanes to send on, and what passed.

use hyphae_wire::PublicKey;

use crate::session::LaneSet;

/// A directly reachable node.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// Its /64, which is a hash of its key: every packet asks for it.
    pub(crate) subnet: u64,
    pub(crate) lanes: LaneSet,
    /// What a datagram to it may hold, as far as known.
    pub(crate) mtu: u16,
    /// A frame that needs more than the least MTU was sent since the last report of that.
    pub(crate) large: bool,
    pub(crate) traffic: Traffic,
    /// Traffic of this turn has been noted in the list of dirty peers.
    pub(crate) dirty: bool,
    /// Generation of the resync that named it last.
    pub(crate) mark: u64,
}

/// What passed since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes of frames received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes of frames sent.
    pub tx_bytes: u64,
}
