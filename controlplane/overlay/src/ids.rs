//! Names of peers, associations and lanes.

use hyphae_wire::WorkerId;

use crate::keys::Kind;

/// Handle of a configured peer, given by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfiguredPeer(pub u32);

/// An association: the link with a peer, by its number, or end-to-end sessions with a node, by the first 64
/// bits of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    Peer(u32),
    Remote(u64),
}

impl Owner {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Peer(_) => Kind::Link,
            Self::Remote(_) => Kind::EndToEnd,
        }
    }
}

/// Lane of a receiver index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneRef {
    pub(crate) owner: Owner,
    pub(crate) epoch: u32,
    pub(crate) lane: u16,
}

/// The worker that sends what is not bound to a lane.
pub(crate) const FIRST_WORKER: WorkerId = WorkerId(0);
