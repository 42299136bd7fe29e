//! What a link carries: packetization layer path MTU discovery (RFC 8899) with padded probes.
//!
//! ```text
//!            answered                        not answered, small probes are
//!   First ───────────────▶ Idle ◀──────┐  First ──▶ Search   Confirm ──▶ Search from the base
//!   (the most that is      │  ▲        │
//!    ever needed)          │  │ answered, or no answer to small probes either
//!                large     ▼  │        │
//!                frames  Confirm     Search (halves the gap until it is small)
//!                pass        every 10 min: First again, without giving up what is known
//! ```
//!
//! Until the first probe is answered nothing is limited: nearly every link carries the most that is
//! needed, and one round trip tells. Sizes are bytes of a datagram (UDP payload).

use std::time::Duration;

use hyphae_shm::record::{InjectMtuProbe, LinkMtu, Program};
use hyphae_time::Nanos;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::report::{DATAGRAM_BASE, FRAME_MIN_MAX};
use zerocopy::little_endian::{U16, U32, U64};

use crate::Overlay;
use crate::session::Owner;

/// Probes of a size before it counts as too large (RFC 8899, `MAX_PROBES`).
const TRIES: u32 = 3;
/// Time between searches for more (RFC 8899, `PMTU_RAISE_TIMER`).
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// Time between proofs of what is in use, while large frames are sent.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// When everything is silent, the size is not to blame: the next attempt.
const SILENT_RETRY: Duration = Duration::from_secs(1);
/// The search ends when it is this close.
const STEP: u16 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Idle,
    First,
    Search,
    Confirm,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    size: u16,
    tries: u32,
    first_sent: Nanos,
    /// Numbers of its probes; an answer to any will do.
    ids: [u64; TRIES as usize],
}

/// What the search wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send a probe of this size, and call [`Search::sent`].
    Probe(u16),
    /// Send a small probe: is the link alive?
    Small,
    /// Tell the workers.
    Tell(u16),
}

/// The search on one link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    goal: Goal,
    max: u16,
    /// Largest size known to pass, or the base.
    passes: u16,
    /// Smallest size known not to pass.
    fails: u16,
    probe: Option<InFlight>,
    due: Nanos,
    raise_at: Nanos,
    confirmed_at: Nanos,
    told: Option<u16>,
    /// To be told next.
    tell: Option<u16>,
    small: bool,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            goal: Goal::Idle,
            max: FRAME_MIN_MAX,
            passes: DATAGRAM_BASE,
            fails: u16::MAX,
            probe: None,
            due: Nanos::NEVER,
            raise_at: Nanos::NEVER,
            confirmed_at: Nanos(0),
            told: None,
            tell: None,
            small: false,
        }
    }
}

impl Search {
    /// Begins with nothing known; `max` is the most that is ever needed.
    pub(crate) fn begin(now: Nanos, max: u16) -> Self {
        Self {
            goal: Goal::First,
            max: max.max(FRAME_MIN_MAX),
            due: now,
            ..Self::default()
        }
    }

    /// When [`Self::poll`] wants to be called.
    pub(crate) fn due(&self) -> Nanos {
        self.due.min(if self.goal == Goal::Idle {
            self.raise_at
        } else {
            Nanos::NEVER
        })
    }

    /// The next thing to do. `patience` is how long an answer may take, `heard` when something
    /// authentic came last. Call it until there is none.
    pub(crate) fn poll(&mut self, now: Nanos, patience: Duration, heard: Nanos) -> Option<Step> {
        if let Some(mtu) = self.tell.take()
            && self.told != Some(mtu)
        {
            self.told = Some(mtu);
            return Some(Step::Tell(mtu));
        }
        if std::mem::take(&mut self.small) {
            return Some(Step::Small);
        }
        if self.goal == Goal::Idle && now >= self.raise_at {
            self.goal = Goal::First;
            self.fails = u16::MAX;
            self.raise_at = Nanos::NEVER;
            self.due = now;
        }
        if now < self.due {
            return None;
        }
        let Some(probe) = self.probe else {
            return self.next_size(now, patience);
        };
        if probe.tries < TRIES {
            // The first was lost: is anything alive? Then do not stall what is being sent.
            self.small = true;
            if probe.tries == 2 && self.goal == Goal::First && heard > probe.first_sent {
                self.tell = Some(
                    self.told
                        .map_or(DATAGRAM_BASE, |told| told.min(self.passes)),
                );
            }
            self.due = now + patience;
            return Some(Step::Probe(probe.size));
        }
        if heard <= probe.first_sent {
            self.probe = None;
            if self.goal == Goal::Confirm {
                self.goal = Goal::Idle;
                self.due = Nanos::NEVER;
            } else {
                self.due = now + SILENT_RETRY;
            }
            return None;
        }
        self.failed(now);
        self.poll(now, patience, heard)
    }

    /// A probe that [`Step::Probe`] asked for has gone under this number.
    pub(crate) fn sent(&mut self, id: u64) {
        if let Some(probe) = &mut self.probe
            && let Some(place) = probe.ids.get_mut(probe.tries as usize)
        {
            *place = id;
            probe.tries += 1;
        }
    }

    /// A probe was answered; false when it is none of these.
    pub(crate) fn answered(&mut self, now: Nanos, id: u64) -> bool {
        let Some(probe) = self
            .probe
            .filter(|probe| probe.ids[..probe.tries as usize].contains(&id))
        else {
            return false;
        };
        self.probe = None;
        self.passes = self.passes.max(probe.size);
        if self.goal == Goal::Confirm {
            self.goal = Goal::Idle;
            self.due = Nanos::NEVER;
        } else {
            self.due = now;
        }
        true
    }

    /// Large frames are being sent: is it true that they pass?
    pub(crate) fn confirm(&mut self, now: Nanos) {
        let proven = self.goal == Goal::Idle && self.passes > DATAGRAM_BASE;
        if proven && now.since(self.confirmed_at) >= CONFIRM_AFTER {
            self.confirmed_at = now;
            self.goal = Goal::Confirm;
            self.due = now;
        }
    }

    /// The kernel refused a datagram as too large for its interface.
    pub(crate) fn refused(&mut self, now: Nanos) {
        match self.goal {
            // No need to wait. While searching, it may be an echo of a larger probe before.
            Goal::First | Goal::Confirm if self.probe.is_some() => self.failed(now),
            Goal::Idle => {
                self.confirmed_at = Nanos(0);
                self.confirm(now);
            }
            Goal::First | Goal::Confirm | Goal::Search => {}
        }
    }

    /// The size in flight does not pass.
    fn failed(&mut self, now: Nanos) {
        let Some(probe) = self.probe.take() else {
            return;
        };
        self.fails = probe.size;
        if self.goal == Goal::Confirm {
            self.passes = DATAGRAM_BASE;
        }
        if self.goal != Goal::Search {
            self.tell = Some(self.passes);
        }
        self.goal = Goal::Search;
        self.due = now;
    }

    fn next_size(&mut self, now: Nanos, patience: Duration) -> Option<Step> {
        let size = match self.goal {
            Goal::Idle => {
                self.due = Nanos::NEVER;
                return None;
            }
            Goal::Confirm => self.passes,
            _ if self.passes >= self.max || self.fails - self.passes <= STEP => {
                return self.finish(now);
            }
            Goal::First => self.max,
            Goal::Search => self.passes.midpoint(self.fails),
        };
        self.probe = Some(InFlight {
            size,
            tries: 0,
            first_sent: now,
            ids: [0; TRIES as usize],
        });
        self.due = now + patience;
        Some(Step::Probe(size))
    }

    fn finish(&mut self, now: Nanos) -> Option<Step> {
        self.goal = Goal::Idle;
        self.due = Nanos::NEVER;
        self.raise_at = if self.passes < self.max {
            now + RAISE_AFTER
        } else {
            Nanos::NEVER
        };
        let told = self.told.replace(self.passes);
        (told != Some(self.passes)).then_some(Step::Tell(self.passes))
    }
}

impl Overlay {
    /// A link is up: finds out what it carries.
    pub(crate) fn begin_search(&mut self, now: Nanos, owner: Owner) {
        let own = self.config.mtu;
        if let (Owner::Peer(_), Some(association)) = (owner, self.associations.get_mut(&owner)) {
            // The most that either end, and so whoever sends through them, was set up for.
            let most = usize::from(own.max(association.mtu)) + OVERHEAD;
            let most = u16::try_from(most).unwrap_or(u16::MAX - STEP);
            association.search = Search::begin(now, most);
        }
    }

    /// Does what the search on a link wants.
    pub(crate) fn search_due(&mut self, now: Nanos, owner: Owner) {
        let Owner::Peer(peer) = owner else { return };
        loop {
            let Some(association) = self.associations.get_mut(&owner).filter(|a| a.up) else {
                return;
            };
            let Some(lane) = association.current().and_then(|s| s.lanes.first()) else {
                return;
            };
            let receive = lane.receive;
            let (patience, heard) = (
                patience(association.liveness.rtt.smoothed()),
                association.liveness.heard,
            );
            let before = association.search.told;
            match association.search.poll(now, patience, heard) {
                None => return,
                Some(Step::Small) => {
                    self.send_probe(now, owner, receive);
                }
                Some(Step::Probe(size)) => {
                    let id = self.next_probe();
                    if let Some(association) = self.associations.get_mut(&owner) {
                        association.search.sent(id);
                    }
                    let inject = InjectMtuProbe {
                        peer: U32::new(peer),
                        receive_index: U32::new(receive.0),
                        id: U64::new(id),
                        sent: U64::new(now.0),
                        len: U16::new(size),
                        reserved: [0; 6],
                    };
                    self.output
                        .program(receive.worker(), &Program::InjectMtuProbe(&inject));
                }
                Some(Step::Tell(mtu)) => {
                    let limit = LinkMtu {
                        peer: U32::new(peer),
                        mtu: U16::new(mtu),
                        reserved: U16::ZERO,
                    };
                    self.output
                        .program_all(self.workers, &Program::LinkMtu(&limit));
                    if before.is_some_and(|before| mtu > before) {
                        self.test_limits(now);
                    }
                }
            }
        }
    }

    /// A worker sends large frames to a peer, or the kernel refuses them.
    pub(crate) fn large_frames(&mut self, now: Nanos, peer: u32, refused: bool) {
        let owner = Owner::Peer(peer);
        if let Some(association) = self.associations.get_mut(&owner) {
            if refused {
                association.search.refused(now);
            } else {
                association.search.confirm(now);
            }
            self.search_due(now, owner);
            self.schedule(owner);
        }
    }
}

/// How long to wait for the answer to a probe.
pub(crate) fn patience(rtt: Option<Duration>) -> Duration {
    rtt.map_or(Duration::from_millis(300), |rtt| {
        (rtt * 2 + Duration::from_millis(50))
            .clamp(Duration::from_millis(150), Duration::from_secs(1))
    })
}
