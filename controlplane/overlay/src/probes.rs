//! Probes, and the control messages that answer them.
//!
//! Links are probed continuously, on every lane: that keeps NAT mappings open, measures the round-trip time and
//! detects failure. A missed answer is followed by faster probes; after two, a new handshake begins while the
//! old session stays; after [`crate::Config::dead_after`] the peer is down. A link that carries traffic and
//! receives nothing is probed faster and abandoned sooner (`traffic`).
//!
//! End-to-end sessions are probed from both ends at three times the interval, only up to three quarters of the
//! renewal age. Probes therefore never make an idle session look used: it ends at its age limit. A node that
//! lost its sessions is detected within seconds; an older session that carries traffic is about to be renewed
//! anyway.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind, Probe};
use hyphae_wire::handshake::{HandshakeStep, Message};

use hyphae_wire::SessionIndex;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use crate::association::{Association, ProbeRound};
use crate::ids::Owner;
use crate::keys::Kind;
use crate::liveness::MISSED_MAX;
use crate::{DownReason, Event, Overlay};

/// Rate limit of first messages of one node inside its session: one per this time in the long run,
const RENEWAL_EVERY: Duration = Duration::from_millis(500);
/// and a burst of this many more.
const RENEWALS_EXTRA: u32 = 10;
/// Number of nodes from which on probes are due together at multiples of [`TOGETHER`], nanoseconds, because
/// waking up is most of the cost of one.
const TOGETHER_FROM: usize = 128;
const TOGETHER: u64 = 100_000_000;

impl Overlay {
    /// Time between probes.
    pub(crate) fn probe_interval(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Link => self.config.keepalive,
            Kind::EndToEnd => self.config.keepalive * 3,
        }
    }

    /// Handles an authentic control message.
    pub(crate) fn handle_control(
        &mut self,
        now: Nanos,
        kind: Kind,
        index: u32,
        received: Nanos,
        message: &[u8],
    ) {
        let Some(lane) = self.lanes.get(&(kind, index)).copied() else {
            return;
        };
        self.heard(now, kind, index, received);
        match control::parse(message) {
            Some((ControlKind::ProbeReply, body)) => {
                if let Ok((probe, _)) = Probe::read_from_prefix(body) {
                    self.probe_answered(now, lane.owner, probe, received);
                }
            }
            Some((ControlKind::Close, _)) => {
                self.remove_session(now, lane.owner, lane.epoch, false);
                self.settle(now, lane.owner, DownReason::Closed);
            }
            Some((ControlKind::Duplicate, body)) => self.own_duplicate(now, lane.owner, body),
            Some((ControlKind::Handshake, body)) => self.handshake_inside(now, lane.owner, body),
            Some((ControlKind::Keepalive | ControlKind::Probe | ControlKind::Routing, _))
            | None => {}
        }
    }

    /// Handles a handshake message inside of a session. First messages are limited, because each costs a
    /// Diffie-Hellman.
    fn handshake_inside(&mut self, now: Nanos, owner: Owner, body: &[u8]) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let Some(carrier) = association.sealed(owner) else {
            return;
        };
        let message = Message::parse(body);
        if message.is_ok_and(|message| message.step == HandshakeStep::Init) {
            if association.renewals_paid > now + RENEWAL_EVERY * RENEWALS_EXTRA {
                return;
            }
            association.renewals_paid = association.renewals_paid.max(now) + RENEWAL_EVERY;
        }
        self.handle_handshake(now, carrier, message);
    }

    /// The number of the next probe.
    pub(crate) fn next_probe(&mut self) -> u64 {
        self.probe_last = self.probe_last.wrapping_add(1);
        self.probe_last
    }

    /// Sends a probe on one lane; returns its number.
    pub(crate) fn send_probe(&mut self, now: Nanos, owner: Owner, receive: SessionIndex) -> u64 {
        let id = self.next_probe();
        let probe = Probe {
            id: U64::new(id),
            sent: U64::new(now.0),
        };
        self.send_control(owner, receive, &control::probe(ControlKind::Probe, probe));
        id
    }

    /// Evaluates the previous probe and sends the next.
    pub(crate) fn probe_due(&mut self, now: Nanos, owner: Owner) {
        let kind = owner.kind();
        let association = self.associations.get_mut(&owner);
        let round = association.map(|a| a.probe_round(now, kind, &self.config));
        let (lanes, mute) = match round {
            None | Some(ProbeRound::Idle) => return,
            Some(ProbeRound::Dead) => {
                self.end_sessions(now, owner, false, DownReason::Dead);
                return;
            }
            Some(ProbeRound::Send { lanes, mute }) => (lanes, mute),
        };
        let mut first = None;
        for lane in lanes {
            let id = self.send_probe(now, owner, lane);
            first.get_or_insert(id);
        }
        let (interval, unanswered_interval) =
            (self.probe_interval(kind), self.config.keepalive / 5);
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let alternate = association.has_alternate();
        let liveness = &mut association.liveness;
        let missed = liveness.missed;
        let wait = if kind == Kind::EndToEnd && missed > MISSED_MAX {
            interval
        } else if liveness.urgent {
            liveness.probe_fast()
        } else {
            unanswered_interval
        };
        liveness.sent(now, first, wait);
        // With an alternate address the first sign is enough.
        let fail_over = liveness.urgent && alternate && missed > 0;
        if missed >= MISSED_MAX || fail_over || (kind == Kind::Link && mute) {
            self.renew(now, owner, missed >= MISSED_MAX);
        }
    }

    fn probe_answered(&mut self, now: Nanos, owner: Owner, probe: Probe, received: Nanos) {
        let asked = self.associations.get_mut(&owner);
        if asked.is_some_and(|a| a.search.answered(now, probe.id.get()))
            || self.limit_refuted(now, owner, probe.id.get())
        {
            self.search_due(now, owner);
            self.schedule(owner);
            return;
        }
        let interval = self.probe_interval(owner.kind());
        let mut next = now + self.rng.jitter(interval, 90, 110);
        if self.associations.len() >= TOGETHER_FROM {
            next.0 -= next.0 % TOGETHER;
        }
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let id = probe.id.get();
        association.liveness.answered(id, received, next);
        let ping = association
            .pings
            .iter()
            .position(|p| p.probe.is_some_and(|(known, _)| known == id));
        if let Some(ping) = ping.and_then(|at| association.pings.remove(at))
            && let Some((_, sent)) = ping.probe
        {
            let rtt = received.since(sent);
            association.liveness.rtt.sample(rtt);
            let address = association.address;
            self.output.event(Event::EchoReply {
                id: ping.id,
                address,
                rtt,
            });
        }
        self.schedule(owner);
    }

    /// Sends waiting pings, and again those that the previous session did not answer.
    pub(crate) fn send_pings(&mut self, now: Nanos, owner: Owner) {
        let association = self.associations.get(&owner);
        let Some((receive, pings)) = association.and_then(Association::unsent_pings) else {
            return;
        };
        for at in pings {
            let probe = self.send_probe(now, owner, receive);
            if let Some(association) = self.associations.get_mut(&owner) {
                association.ping_sent(now, at, probe);
            }
        }
    }

    /// Removes overdue pings; the first overdue one begins a new session.
    pub(crate) fn pings_due(&mut self, now: Nanos, owner: Owner) {
        let association = self.associations.get_mut(&owner);
        let overdue = association.is_some_and(|a| a.expire_pings(now));
        if overdue {
            self.renew(now, owner, true);
        }
    }
}
