//! Packets that a neighbour has not acknowledged.

use hyphae_time::Nanos;
use hyphae_wire::Prefix;
use hyphae_wire::babel::{Serial, Tlv};

/// What a packet advertises of a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Advertised {
    /// A route, with the serial of the proof in the packet, if any.
    Route(Option<Serial>),
    /// No route.
    Retraction,
}

/// An unacknowledged packet.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Prefixes in it.
    pub(super) advertised: Vec<(Prefix, Advertised)>,
    /// TLVs of the opening of a link, which are retransmitted unchanged.
    pub(super) opening: Option<Vec<Tlv>>,
    pub(super) deadline: Nanos,
    pub(super) tries: u32,
}
