//! What the control plane is to hear of.

use hyphae_wire::{Endpoint, OverlayAddress};

/// Something that the worker reports through the punt ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// Packets wait for an end-to-end session.
    NeedSession(OverlayAddress),
    /// A peer's frames come from a new address.
    EndpointMoved {
        /// The peer.
        peer: u32,
        /// The lane.
        lane: u16,
        /// The address.
        endpoint: Endpoint,
    },
    /// A lane that was standing by is in use.
    LaneActive {
        /// `record::LANE_LINK` or `record::LANE_SESSION`.
        kind: u32,
        /// Our index of it.
        receive_index: u32,
    },
    /// The neighbour lost the session of a link lane.
    LaneReset {
        /// Our index of it.
        receive_index: u32,
    },
    /// A lane in use is due for renewal.
    RekeyDue {
        /// `record::LANE_LINK` or `record::LANE_SESSION`.
        kind: u32,
        /// Our index of it.
        receive_index: u32,
    },
    /// Frames that need more than the least MTU were sent to a peer lately.
    LargeFrames {
        /// The peer.
        peer: u32,
    },
    /// The kernel refused a datagram to a peer as too large.
    LinkTooBig {
        /// The peer.
        peer: u32,
    },
    /// Packets of the host to an address may not be longer than this.
    PathTooBig {
        /// The address.
        address: OverlayAddress,
        /// Bytes of the inner packet.
        mtu: u16,
    },
}
