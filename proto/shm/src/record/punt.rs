//! Records of events and received packets for the control plane.

use hyphae_wire::{AddressPair, Endpoint, OverlayAddress};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

record! {
    /// An event about the path to a peer.
    PeerEvent[8] {
        /// Peer number.
        peer: U32,
        /// Zero.
        reserved: U32,
    }
}

record! {
    /// A session is needed.
    NeedSession[16] {
        /// Destination of the packet that waits.
        address: OverlayAddress,
    }
}

record! {
    /// A peer's underlay address has changed.
    EndpointMoved[32] {
        /// Peer number.
        peer: U32,
        /// Lane number.
        lane: U16,
        /// Zero.
        reserved: U16,
        /// Its new underlay address.
        endpoint: Endpoint,
    }
}

/// [`LaneEvent::kind`]: a link lane.
pub const LANE_LINK: u32 = 1;
/// An end-to-end lane.
pub const LANE_SESSION: u32 = 2;

record! {
    /// An event of a lane.
    LaneEvent[8] {
        /// `LANE_…`.
        kind: U32,
        /// Own receiver index of the lane.
        receive_index: U32,
    }
}

record! {
    /// A received handshake frame.
    PuntHandshake[48] {
        /// Source, and destination address of this host.
        addresses: AddressPair,
    }
}

record! {
    /// A received control message of a neighbour.
    PuntLinkLocal[16] {
        /// Peer number.
        peer: U32,
        /// Own receiver index of the lane that it was received on.
        receive_index: U32,
        /// Time of receipt, nanoseconds of the monotonic clock.
        received: U64,
    }
}

record! {
    /// A received frame for a local service.
    PuntService[56] {
        /// Overlay address it was sent to.
        destination: OverlayAddress,
        /// Overlay address of its sender; authentic unless the service is the handshake.
        source: OverlayAddress,
        /// Own receiver index of the session lane; 0 for the handshake.
        receive_index: U32,
        /// Number of the peer that it was received from.
        peer: U32,
        /// Service code.
        service: u8,
        /// Hop limit left.
        hop_limit: u8,
        /// Zero.
        reserved: [u8; 6],
        /// Time of receipt, nanoseconds of the monotonic clock.
        received: U64,
    }
}
