//! All sessions of one kind with one node: which one is in use, which one ends when.
//!
//! Invariant: `sessions` is in ascending order of epoch, and what is in it is installed in the
//! workers.

use std::collections::VecDeque;
use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, OverlayAddress, PublicKey, SessionIndex};

use crate::config::Config;
use crate::duplicate::Starts;
use crate::handshake::{CONFIRM_TIMEOUT, Carrier};
use crate::ids::Owner;
use crate::keys::Kind;
use crate::link_mtu::LinkMtuSearch;
use crate::liveness::{Liveness, MISSED_MAX, PING_RETRY, PING_TIMEOUT, Ping};
use crate::path::Path;
use crate::path_mtu::PathLimit;
use crate::session::Session;
use hyphae_random::Rng;

/// First interval between attempts to activate the lanes beyond the first.
const ACTIVATE_MIN: Duration = Duration::from_millis(250);
/// Attempts before only the regular probes are left.
const ACTIVATIONS_MAX: u32 = 5;
/// Sessions with one node, of one kind: in use, replaced, unconfirmed, lost to a glare.
pub(crate) const SESSIONS_MAX: usize = 4;

/// All sessions of one kind with one node.
#[derive(Debug)]
pub(crate) struct Association {
    /// Its key; for an end-to-end association unknown until the first handshake is through.
    pub(crate) key: Option<PublicKey>,
    /// Overlay address that handshakes go to.
    pub(crate) address: OverlayAddress,
    /// Underlay address of the node (links).
    pub(crate) endpoint: Endpoint,
    pub(crate) sessions: Vec<Session>,
    epoch_last: u32,
    /// Arrival number of the first message of the newest handshake of theirs that finished.
    pub(crate) order: u64,
    /// Starts of its dataplane that were seen.
    pub(crate) starts: Starts,
    /// The neighbour that forwarded its last handshake message (end to end).
    pub(crate) through: Option<u32>,
    /// Time until which handshakes that it began inside of a session have used up their rate limit.
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
    /// Time until which accepted resets have used up their rate limit.
    pub(crate) resets_paid: Nanos,
    pub(crate) liveness: Liveness,
    pub(crate) pings: VecDeque<Ping>,
    pub(crate) handshakes: u64,
    /// Addresses of the entries that lead here (links).
    pub(crate) paths: Vec<Path>,
    /// Largest inner packet of the other end, as it offered last; 0 while unknown.
    pub(crate) mtu: u16,
    /// MTU search of the link.
    pub(crate) search: LinkMtuSearch,
    /// MTU limit of the path (end to end).
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
            search: LinkMtuSearch::default(),
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

    /// Our index of the first lane of that session.
    pub(crate) fn first_lane(&self) -> Option<SessionIndex> {
        Some(self.current()?.lanes.first()?.receive)
    }

    /// The carrier inside of that session.
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

    /// Retires the sessions before `epoch`, which the other end uses: they end at `at`.
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

    /// Earliest deadline.
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

    /// Whether no session, handshake or ping is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.outgoing.is_none() && self.pings.is_empty()
    }

    /// The oldest session that is not the one in use.
    pub(crate) fn spare(&self) -> Option<u32> {
        let current = self.current().map(|session| session.epoch);
        let mut epochs = self.sessions.iter().map(|session| session.epoch);
        epochs.find(|epoch| current.is_some_and(|current| current != *epoch))
    }

    /// Time of the next measurement of an address that is not in use.
    pub(crate) fn path_deadline(&self) -> Nanos {
        let idle = self.paths.iter().filter(|p| p.endpoint != self.endpoint);
        let at = idle.map(|path| path.probe_at).min();
        at.filter(|_| self.up).unwrap_or(Nanos::NEVER)
    }

    /// Whether the peer has an address that is not in use.
    pub(crate) fn has_alternate(&self) -> bool {
        self.paths.iter().any(|p| p.endpoint != self.endpoint)
    }

    pub(crate) fn path(&mut self, endpoint: Endpoint) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.endpoint == endpoint)
    }

    /// Marks session `epoch` as confirmed. If it is the newest, takes it into use, retires the older ones and
    /// returns whether this node began it, and when.
    pub(crate) fn confirm(
        &mut self,
        now: Nanos,
        epoch: u32,
        config: &Config,
    ) -> Option<(bool, Nanos)> {
        let newest = self.current().is_none_or(|current| current.epoch < epoch);
        let session = self.session(epoch)?;
        session.confirmed = Some(now);
        if !newest {
            return None;
        }
        session.retiring = false;
        session.remove_at = session.created + config.reject_after;
        let (outbound, created) = (session.outbound(), session.created);
        let activate = outbound && session.lane_count() > 1;
        // The initiator may learn only from a repetition that the session works, and uses the previous one
        // until then.
        let late = if outbound {
            Duration::ZERO
        } else {
            CONFIRM_TIMEOUT
        };
        self.retire_older(epoch, now + config.grace + late);
        self.handshakes += 1;
        self.hold_until = Nanos(0);
        self.activations = 0;
        self.activate_at = if activate { now } else { Nanos::NEVER };
        Some((outbound, created))
    }

    /// Goes down: no session is in use any more.
    pub(crate) fn down(&mut self, now: Nanos) {
        self.up = false;
        self.since = Some(now);
        self.rekey_at = Nanos::NEVER;
        self.activate_at = Nanos::NEVER;
        self.liveness.probe_at = Nanos::NEVER;
        self.search = LinkMtuSearch::default();
    }

    /// Sessions to remove now: epoch, and whether each was retiring. A replaced one stays while its successor has
    /// lanes that are not active yet.
    pub(crate) fn expire(&mut self, now: Nanos, config: &Config) -> Vec<(u32, bool)> {
        let partial = self
            .current()
            .is_some_and(|s| s.lanes_active() < s.lane_count());
        let mut ended = Vec::new();
        for session in self.sessions.iter_mut().filter(|s| s.remove_at <= now) {
            let limit = session.created + config.reject_after;
            let replaced = session.retiring && session.confirmed.is_some() && !session.receive_only;
            if partial && replaced && now < limit {
                session.remove_at = limit.min(now + config.grace);
            } else {
                ended.push((session.epoch, session.retiring));
            }
        }
        ended
    }

    /// Lanes on standby to send a first frame on now. Schedules the next attempt.
    pub(crate) fn activate(&mut self, now: Nanos, rng: &mut Rng) -> Vec<SessionIndex> {
        if self.activate_at > now {
            return Vec::new();
        }
        let lanes = self.current().into_iter().flat_map(|s| s.lanes.iter());
        let idle: Vec<_> = lanes
            .skip(1)
            .filter(|lane| !lane.active)
            .map(|lane| lane.receive)
            .collect();
        self.activations += 1;
        self.activate_at = if idle.is_empty() || self.activations > ACTIVATIONS_MAX {
            Nanos::NEVER
        } else {
            let wait = ACTIVATE_MIN * (1 << self.activations.min(5)) / 2;
            now + rng.jitter(wait, 75, 125)
        };
        idle
    }

    /// Pings that the session in use has not carried yet, and the lane for them.
    pub(crate) fn unsent_pings(&self) -> Option<(SessionIndex, Vec<usize>)> {
        let (session, lane) = (self.current()?, self.first_lane()?);
        let waits = |ping: &Ping| ping.probe.is_none_or(|(_, sent)| sent < session.created);
        let pings = (0..).zip(&self.pings).filter(|(_, ping)| waits(ping));
        Some((lane, pings.map(|(at, _)| at).collect()))
    }

    /// Ping number `at` was sent as this probe.
    pub(crate) fn ping_sent(&mut self, now: Nanos, at: usize, probe: u64) {
        if let Some(ping) = self.pings.get_mut(at) {
            ping.probe = Some((probe, now));
            ping.retry_at = now + PING_RETRY;
        }
    }

    /// Removes pings that stayed unanswered; true when one calls for a new session.
    pub(crate) fn expire_pings(&mut self, now: Nanos) -> bool {
        self.pings.retain(|ping| ping.asked + PING_TIMEOUT > now);
        let mut overdue = false;
        for ping in self.pings.iter_mut().filter(|p| p.retry_at <= now) {
            ping.retry_at = Nanos::NEVER;
            overdue = true;
        }
        overdue
    }

    /// A lane's frames come from a new address.
    pub(crate) fn move_lane(&mut self, lane: u16, endpoint: Endpoint) {
        for session in &mut self.sessions {
            if let Some(state) = session.lanes.get_mut(usize::from(lane)) {
                state.endpoint = endpoint;
            }
        }
    }

    /// Evaluates the previous probe and chooses the lanes of the next.
    pub(crate) fn probe_round(&mut self, now: Nanos, kind: Kind, config: &Config) -> ProbeRound {
        if self.liveness.probe_at > now {
            return ProbeRound::Idle;
        }
        self.liveness.count_missed();
        let liveness = &self.liveness;
        let (missed, silence) = (liveness.missed, now.since(liveness.heard));
        let lost_after = config.lost_after.min(config.dead_after);
        let lost = liveness.urgent
            && missed > MISSED_MAX
            && liveness.unanswered_for(now) >= lost_after.max(liveness.probe_fast() * 4);
        let all_lanes = liveness.count.is_multiple_of(2) && !liveness.urgent;
        let Some(session) = self.current() else {
            self.liveness.probe_at = Nanos::NEVER;
            return ProbeRound::Idle;
        };
        let (age, outbound) = (now.since(session.created), session.outbound());
        match kind {
            Kind::Link if lost || (missed >= MISSED_MAX && silence >= config.dead_after) => {
                return ProbeRound::Dead;
            }
            Kind::EndToEnd if age >= config.rekey_after * 3 / 4 => {
                self.liveness.stop();
                return ProbeRound::Idle;
            }
            Kind::Link | Kind::EndToEnd => {}
        }
        let (mut lanes, mut mute) = (Vec::new(), false);
        for (number, lane) in (0u16..).zip(&session.lanes) {
            if number == 0 || (outbound && (all_lanes || !lane.active)) {
                lanes.push(lane.receive);
            }
            let silence = now.since(lane.heard);
            mute |= number > 0 && outbound && lane.active && silence > config.dead_after * 2;
        }
        ProbeRound::Send { lanes, mute }
    }
}

/// What a due probe leads to.
pub(crate) enum ProbeRound {
    Idle,
    /// The peer is down.
    Dead,
    /// Probes on these lanes; `mute` when an active lane beyond the first is silent.
    Send {
        lanes: Vec<SessionIndex>,
        mute: bool,
    },
}
