//! State of an attach: what the workers have reported so far.

use std::collections::{BTreeMap, BTreeSet};

use hyphae_time::Nanos;
use hyphae_wire::guard::Token;
use hyphae_wire::{AddressPair, PublicKey, SessionIndex, Suite, WorkerId};

use crate::event::Direction;
use crate::ids::Owner;

/// Progress of the attach.
pub(crate) enum AttachPhase {
    /// No dataplane yet.
    Idle,
    Collecting(Box<Collected>),
    Resync(u64),
    Attached,
}

/// Snapshot so far.
pub(crate) struct Collected {
    pub(crate) generation: u64,
    pub(crate) attempts: u32,
    pub(crate) missing: BTreeSet<WorkerId>,
    pub(crate) peers: BTreeMap<u32, PublicKey>,
    /// Lanes by session: owner and epoch, then by lane number.
    pub(crate) sessions: BTreeMap<(Owner, u32), BTreeMap<u16, Adopted>>,
    /// Keys of the nodes of end-to-end sessions, and their MTU.
    pub(crate) remotes: BTreeMap<Owner, (PublicKey, u16)>,
}

/// Lane of a snapshot record of either kind.
pub(crate) struct Adopted {
    pub(crate) receive: SessionIndex,
    pub(crate) send: SessionIndex,
    pub(crate) reset: Token,
    pub(crate) suite: Suite,
    pub(crate) role: u8,
    pub(crate) direction: Direction,
    pub(crate) addresses: AddressPair,
    pub(crate) created: Nanos,
}
