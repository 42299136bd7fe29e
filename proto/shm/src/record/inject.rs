//! Records of packets that the control plane sends.

use hyphae_wire::{AddressPair, OverlayAddress};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

record! {
    /// A padded probe for a neighbour.
    InjectMtuProbe[32] {
        /// Peer number.
        peer: U32,
        /// Own receiver index of the lane to use; 0 for the one in use on this worker.
        receive_index: U32,
        /// Names the probe.
        id: U64,
        /// Time of sending, nanoseconds of the monotonic clock.
        sent: U64,
        /// Bytes of the whole datagram.
        len: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

record! {
    /// A padded probe for the other end of a session.
    InjectPathProbe[48] {
        /// Overlay address of the receiver.
        destination: OverlayAddress,
        /// Names the probe.
        id: U64,
        /// Time of sending, nanoseconds of the monotonic clock.
        sent: U64,
        /// Own receiver index of the session lane to use; 0 for the one in use.
        receive_index: U32,
        /// Bytes of the inner packet that it stands for.
        len: U16,
        /// Zero.
        reserved: [u8; 10],
    }
}

record! {
    /// A frame that requests a report.
    InjectTrace[32] {
        /// Overlay address to trace.
        destination: OverlayAddress,
        /// Random number that the report will quote.
        nonce: U64,
        /// Hop limit.
        hop_limit: u8,
        /// Zero.
        reserved: [u8; 7],
    }
}

record! {
    /// Send bytes to an underlay address.
    InjectRaw[48] {
        /// Destination, and source address of this host.
        addresses: AddressPair,
    }
}

record! {
    /// Send a control message to a neighbour.
    InjectLinkLocal[16] {
        /// Peer number.
        peer: U32,
        /// Own receiver index of the lane to use; 0 for the one in use on this worker.
        receive_index: U32,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// Send a payload through the overlay.
    InjectRouted[24] {
        /// Overlay address of the receiver.
        destination: OverlayAddress,
        /// Service code; `Handshake` goes out unsealed, the others need a session.
        service: u8,
        /// Zero.
        reserved: [u8; 3],
        /// Own receiver index of the session lane to use; 0 for the one in use.
        receive_index: U32,
    }
}
