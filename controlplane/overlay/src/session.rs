//! Sessions with one node, of one kind: which lanes exist, which session is in use, which one ends
//! when.
//!
//! ```text
//!   outbound:     unconfirmed ──first frame on it──▶ confirmed ──newer one confirmed──▶ retiring ──grace──▶ removed
//!   inbound:                                         confirmed ─────────────────────────┘
//!   lost a glare: receive only, retiring from the start
//! ```

use hyphae_time::Nanos;
use hyphae_wire::guard::Token;

use hyphae_wire::{Endpoint, LocalAddress, SessionIndex, Suite};

use crate::event::Direction;

/// One lane of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneState {
    /// Index of frames to us.
    pub(crate) receive: SessionIndex,
    /// Index of frames to the other end.
    pub(crate) send: SessionIndex,
    /// Token that proves that the other end lost the lane; zero for none.
    pub(crate) reset: Token,
    /// Underlay address of its frames, as far as known (links).
    pub(crate) endpoint: Endpoint,
    /// It carries traffic.
    pub(crate) active: bool,
    /// Time of the last authentic frame.
    pub(crate) heard: Nanos,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) epoch: u32,
    pub(crate) direction: Direction,
    pub(crate) suite: Suite,
    pub(crate) created: Nanos,
    /// Confirmation time; `None` until the other end has proved that it has the keys.
    pub(crate) confirmed: Option<Nanos>,
    pub(crate) receive_only: bool,
    /// Removal time: after its grace, or at its age limit.
    pub(crate) remove_at: Nanos,
    pub(crate) retiring: bool,
    pub(crate) lanes: Vec<LaneState>,
    /// Local address that the other end began it with (links).
    pub(crate) local: LocalAddress,
    /// Our number of a handshake initiated by the other end, which a repeated third message refers to.
    pub(crate) handshake: Option<u32>,
}

impl Session {
    pub(crate) fn outbound(&self) -> bool {
        self.direction == Direction::Outbound
    }

    pub(crate) fn lanes_active(&self) -> u16 {
        u16::try_from(self.lanes.iter().filter(|lane| lane.active).count()).unwrap_or(u16::MAX)
    }

    pub(crate) fn lane_count(&self) -> u16 {
        u16::try_from(self.lanes.len()).unwrap_or(u16::MAX)
    }
}
