//! What is to happen to a packet.

use hyphae_shm::stats::DropReason;
use hyphae_wire::{OverlayAddress, Service, WorkerId};

/// A link lane of this worker, by position; valid until the next control record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkSlot(pub u32);

/// Outcome of one segment. Offsets count from the start of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more to do; counted.
    Drop(DropReason),
    /// Consumed by the engine; counted.
    Done,
    /// Ready to leave, whole, on this lane.
    Transmit(LinkSlot),
    /// The first bytes, rewritten, go back to where the segment came from; nothing else happens to it.
    Reply {
        /// Bytes of the answer.
        len: u32,
        /// Why the segment itself ends here; counted.
        reason: DropReason,
    },
    /// As [`Self::Transmit`], but only this many bytes.
    TransmitPart(LinkSlot, u32),
    /// An IPv6 packet for the host.
    Deliver {
        /// Where it begins.
        offset: u32,
        /// Its length.
        len: u32,
        /// Its transport checksum is to be completed.
        partial_checksum: bool,
    },
    /// As it came, for the worker that owns its link session.
    Handoff(WorkerId),
    /// Link part opened, for the worker that owns its end-to-end session.
    HandoffOpened {
        /// That worker.
        worker: WorkerId,
        /// The neighbour it came from.
        peer: u32,
    },
    /// Link part opened, for whichever other worker sent the frame that it is about.
    HandoffAll {
        /// The neighbour it came from.
        peer: u32,
    },
    /// Link part open and routed, or built here: the first `len` bytes, for
    /// [`Engine::forward_handed`](crate::Engine::forward_handed) of a worker with a lane to the next hop.
    HandoffEgress {
        /// That worker.
        worker: WorkerId,
        /// The neighbour it came from; 0 for a frame of this node.
        peer: u32,
        /// Bytes of the frame.
        len: u32,
    },
    /// A link handshake frame for the control plane.
    PuntHandshake,
    /// A neighbour's control message for the control plane.
    PuntLinkLocal {
        /// The neighbour.
        peer: u32,
        /// Our index of the lane.
        receive_index: u32,
        /// Where the message begins.
        offset: u32,
        /// Its length.
        len: u32,
    },
    /// A packet for a service of this node.
    PuntService {
        /// Where it was sent to.
        destination: OverlayAddress,
        /// Who sent it.
        source: OverlayAddress,
        /// Our index of the session lane; 0 for a handshake.
        receive_index: u32,
        /// The neighbour it came from.
        peer: u32,
        /// Which service.
        service: Service,
        /// Hops left.
        hop_limit: u8,
        /// Where the payload begins.
        offset: u32,
        /// Its length.
        len: u32,
    },
}
