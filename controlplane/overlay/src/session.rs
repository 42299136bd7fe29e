//! Sessions with one node, of one kind: which lanes exist, which session is in use, which one ends
//! when.
//!
//! ```text
//!   begun here:   unconfirmed ──first frame on it──▶ confirmed ──newer one confirmed──▶ retiring ──grace──▶ gone
//!   begun there:                                     confirmed ─────────────────────────┘
//!   lost a glare: receive only, retiring from the start
//! ```
//!
//! Invariant: `sessions` is in ascending order of epoch, and what is in it is installed in the
//! workers.

use std::collections::VecDeque;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::guard::Token;

use hyphae_wire::{Endpoint, LocalAddress, OverlayAddress, PublicKey, SessionIndex, Suite};

use crate::duplicate::Starts;
use crate::event::Direction;
use crate::handshake::Carrier;
use crate::keys::Kind;
use crate::limit::PathLimit;
use crate::liveness::PING_TIMEOUT;
use crate::paths::Path;
use crate::pmtu::Search;

/// Which association: a link with a peer, by its number, or end-to-end sessions with a node, by the
/// first 64 bits of its address.
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

/// One lane of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneState {
    /// Index of frames to us.
    pub(crate) receive: SessionIndex,
    /// Index of frames to the other end.
    pub(crate) send: SessionIndex,
    /// What proves that the other end lost the lane; zero for none.
    pub(crate) reset: Token,
    /// Where its frames go, as far as known (links).
    pub(crate) endpoint: Endpoint,
    /// It carries traffic.
    pub(crate) active: bool,
    /// When something authentic was last heard on it.
    pub(crate) heard: Nanos,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) epoch: u32,
    pub(crate) direction: Direction,
    pub(crate) suite: Suite,
    pub(crate) created: Nanos,
    /// In use since; `None` until the other end has shown that it has the keys.
    pub(crate) confirmed: Option<Nanos>,
    pub(crate) receive_only: bool,
    /// When it goes: after its grace, or at its age limit.
    pub(crate) remove_at: Nanos,
    pub(crate) retiring: bool,
    pub(crate) lanes: Vec<LaneState>,
    /// The address of this host that the other end began it with (links).
    pub(crate) local: LocalAddress,
    /// Our number of the handshake, when the other side began it: a repeated third message finds
    /// it.
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

/// Probes and their answers.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// When the next probe goes out; also the deadline of the previous one while it is unanswered.
    pub(crate) probe_at: Nanos,
    /// Unanswered probes, oldest first.
    pub(crate) outstanding: VecDeque<(u64, Nanos)>,
    pub(crate) missed: u32,
    /// Probes sent, to space what is not done each time.
    pub(crate) count: u64,
    pub(crate) heard: Nanos,
    pub(crate) rtt: Rtt,
    pub(crate) loss: Loss,
    /// Frames that this engine had sent to the peer (links).
    pub(crate) own_sent: u64,
    /// The last reading of the workers' counters: when, and frames sent that were not ours.
    pub(crate) reading: Option<(Nanos, u64)>,
    /// Since when frames have left and nothing has come back.
    pub(crate) unanswered: Option<Nanos>,
    /// That has lasted too long: probes go out fast.
    pub(crate) urgent: bool,
}

/// Smoothed share of probes that stayed unanswered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss(Option<u16>);

impl Loss {
    pub(crate) fn sample(&mut self, lost: bool) {
        let sample = if lost { 1000 } else { 0 };
        self.0 = Some(self.0.map_or(sample, |smoothed| {
            // Rounded towards the sample, so that it reaches both ends.
            let rounding = if lost { 15 } else { 0 };
            (smoothed * 15 + sample + rounding) / 16
        }));
    }

    pub(crate) fn permille(self) -> Option<u16> {
        self.0
    }
}

/// Smoothed round-trip time (RFC 6298, without its timeout).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rtt(Option<Duration>);

impl Rtt {
    pub(crate) fn sample(&mut self, rtt: Duration) {
        self.0 = Some(self.0.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
    }

    pub(crate) fn smoothed(self) -> Option<Duration> {
        self.0
    }
}

/// A ping that waits for a session or for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ping {
    /// The caller's number.
    pub(crate) id: u64,
    /// Probe number and time, once sent.
    pub(crate) probe: Option<(u64, Nanos)>,
    pub(crate) asked: Nanos,
    /// When silence calls for a new session.
    pub(crate) retry_at: Nanos,
}

/// All sessions of one kind with one node.
#[derive(Debug)]
pub(crate) struct Association {
    /// Its key; for an end-to-end association unknown until the first handshake is through.
    pub(crate) key: Option<PublicKey>,
    /// Overlay address that handshakes go to.
    pub(crate) address: OverlayAddress,
    /// Where the node is (links).
    pub(crate) endpoint: Endpoint,
    pub(crate) sessions: Vec<Session>,
    epoch_last: u32,
    /// Arrival number of the first message of the newest handshake of theirs that finished.
    pub(crate) order: u64,
    /// Which of its starts have been seen.
    pub(crate) starts: Starts,
    /// The neighbour that its last handshake message came through (end to end).
    pub(crate) through: Option<u32>,
    /// When the handshakes that it began inside of a session are paid for.
    pub(crate) renewals_paid: Nanos,
    /// Our handshake in flight.
    pub(crate) outgoing: Option<u32>,
    pub(crate) up: bool,
    /// Since when it is up, or down.
    pub(crate) since: Option<Nanos>,
    pub(crate) rekey_at: Nanos,
    /// Next attempt to activate the lanes beyond the first, and how many there were.
    pub(crate) activate_at: Nanos,
    pub(crate) activations: u32,
    /// No new attempt before this time, after one that failed (end to end).
    pub(crate) hold_until: Nanos,
    /// When the resets that were heeded are paid for.
    pub(crate) resets_paid: Nanos,
    pub(crate) liveness: Liveness,
    pub(crate) pings: VecDeque<Ping>,
    pub(crate) handshakes: u64,
    /// Addresses of the entries that lead here (links).
    pub(crate) paths: Vec<Path>,
    /// Largest inner packet of the other end, as it offered last; 0 while unknown.
    pub(crate) mtu: u16,
    /// What the link carries.
    pub(crate) search: Search,
    /// What the path carries (end to end).
    pub(crate) limit: PathLimit,
}

impl Association {
    pub(crate) fn new(key: Option<PublicKey>, address: OverlayAddress, endpoint: Endpoint) -> Self {
        Self {
            key,
            address,
            endpoint,
            sessions: Vec::new(),
            epoch_last: 0,
            order: 0,
            starts: Starts::default(),
            through: None,
            renewals_paid: Nanos(0),
            outgoing: None,
            up: false,
            since: None,
            rekey_at: Nanos::NEVER,
            activate_at: Nanos::NEVER,
            activations: 0,
            hold_until: Nanos(0),
            resets_paid: Nanos(0),
            liveness: Liveness {
                probe_at: Nanos::NEVER,
                ..Liveness::default()
            },
            pings: VecDeque::new(),
            handshakes: 0,
            paths: Vec::new(),
            mtu: 0,
            search: Search::default(),
            limit: PathLimit::default(),
        }
    }

    /// The session that a new frame would be sent on.
    pub(crate) fn current(&self) -> Option<&Session> {
        self.sessions
            .iter()
            .rev()
            .find(|s| s.confirmed.is_some() && !s.receive_only)
    }

    /// The way inside of that session.
    pub(crate) fn sealed(&self, owner: Owner) -> Option<Carrier> {
        let lane = self.current()?.lanes.first()?;
        let endpoint = lane.endpoint;
        Some(Carrier::Sealed { owner, endpoint })
    }

    pub(crate) fn session(&mut self, epoch: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| s.epoch == epoch)
    }

    /// The number of the next session.
    pub(crate) fn epoch_next(&mut self) -> u32 {
        self.epoch_last = self.epoch_last.saturating_add(1);
        self.epoch_last
    }

    /// Takes a session over from a worker's snapshot; those made later are newer.
    pub(crate) fn adopt(&mut self, session: Session) {
        self.epoch_last = self.epoch_last.max(session.epoch);
        self.sessions.push(session);
        self.sessions.sort_by_key(|s| s.epoch);
    }

    /// The other end uses session `epoch`: what is older ends after its grace.
    pub(crate) fn retire_older(&mut self, epoch: u32, at: Nanos) {
        for session in self
            .sessions
            .iter_mut()
            .filter(|s| s.epoch < epoch && !s.retiring)
        {
            session.retiring = true;
            session.remove_at = session.remove_at.min(at);
        }
    }

    /// When something is due here.
    pub(crate) fn deadline(&self) -> Nanos {
        let sessions = self.sessions.iter().map(|s| s.remove_at);
        let pings = self
            .pings
            .iter()
            .map(|p| p.retry_at.min(p.asked + PING_TIMEOUT));
        let hold = Some(self.hold_until).filter(|at| *at > Nanos(0) && self.is_idle());
        let own = [
            self.rekey_at,
            self.activate_at,
            self.liveness.probe_at,
            self.search.due(),
            self.limit.due(),
        ];
        own.into_iter()
            .chain([self.path_deadline()])
            .chain(sessions)
            .chain(pings)
            .chain(hold)
            .min()
            .unwrap_or(Nanos::NEVER)
    }

    /// Nothing but its memory is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.outgoing.is_none() && self.pings.is_empty()
    }
}
