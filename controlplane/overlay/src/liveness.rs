//! Probes and the control messages that answer them.
//!
//! Links are probed all the time, on every lane: that keeps NATs open, measures the round-trip
//! time and finds a peer that is gone. A missed answer is followed by quicker probes; after two, a
//! new handshake begins while the old session stays; after [`crate::Config::dead_after`] the peer
//! is down. A link that carries traffic and hears nothing is probed faster and given up sooner
//! (`traffic`).
//!
//! End-to-end sessions are probed from both ends at three times the interval, only while they are
//! young (under three quarters of the renewal age). So probes never make an idle session look
//! used: it ends at its age limit. A node that lost its sessions is noticed so within seconds; an
//! older session that carries traffic is about to be renewed anyway.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind, Probe};
use hyphae_wire::handshake::{Message, Step};

use hyphae_wire::SessionIndex;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use crate::keys::Kind;
use crate::session::Owner;
use crate::{DownReason, Event, Overlay};

/// How long a ping is remembered.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a ping makes a new session and is sent again.
const PING_RETRY: Duration = Duration::from_secs(2);
/// Unanswered probes after which a new handshake begins.
const MISSED_MAX: u32 = 2;
/// First messages of one node inside of its session are heeded this often in the long run,
const RENEWAL_EVERY: Duration = Duration::from_millis(500);
/// and this many more at once.
const RENEWALS_EXTRA: u32 = 10;
/// Probe numbers kept to recognise late answers.
const OUTSTANDING_MAX: usize = 8;
/// From so many nodes on, probes are due together at multiples of this time, nanoseconds, rather than
/// each at its own: what one costs is mostly to be woken for it.
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

    /// Takes an authentic control message.
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

    /// A handshake message inside of a session. The other end may begin a few at once and then one in a
    /// while: each costs a Diffie-Hellman, as a stranger's does.
    fn handshake_inside(&mut self, now: Nanos, owner: Owner, body: &[u8]) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let Some(carrier) = association.sealed(owner) else {
            return;
        };
        let message = Message::parse(body);
        if message.is_ok_and(|message| message.step == Step::Init) {
            if association.renewals_paid > now + RENEWAL_EVERY * RENEWALS_EXTRA {
                return;
            }
            association.renewals_paid = association.renewals_paid.max(now) + RENEWAL_EVERY;
        }
        self.handle_handshake(now, carrier, message);
    }

    /// A number for a probe.
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

    /// Judges the previous probe and sends the next.
    pub(crate) fn probe_due(&mut self, now: Nanos, owner: Owner) {
        let kind = owner.kind();
        let (interval, dead_after) = (self.probe_interval(kind), self.config.dead_after);
        let lost_after = self.config.lost_after.min(dead_after);
        let young = self.config.rekey_after * 3 / 4;
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let alternate = association.has_alternate();
        let liveness = &mut association.liveness;
        if liveness.probe_at > now {
            return;
        }
        if !liveness.outstanding.is_empty() {
            liveness.missed += 1;
            liveness.loss.sample(true);
        }
        let (missed, silence) = (liveness.missed, now.since(liveness.heard));
        let (urgent, unanswered) = (liveness.urgent, liveness.unanswered_for(now));
        let fast = liveness.probe_fast();
        let lost = urgent && missed > MISSED_MAX && unanswered >= lost_after.max(fast * 4);
        liveness.count += 1;
        let all_lanes = liveness.count.is_multiple_of(2) && !urgent;
        let Some(session) = association.current() else {
            association.liveness.probe_at = Nanos::NEVER;
            return;
        };
        let (age, outbound) = (now.since(session.created), session.outbound());
        let (mut lanes, mut mute) = (Vec::new(), false);
        for (number, lane) in (0u16..).zip(&session.lanes) {
            if number == 0 || (outbound && (all_lanes || !lane.active)) {
                lanes.push(lane.receive);
            }
            mute |= number > 0 && outbound && lane.active && now.since(lane.heard) > dead_after * 2;
        }
        match kind {
            Kind::Link if lost || (missed >= MISSED_MAX && silence >= dead_after) => {
                self.end_sessions(now, owner, false, DownReason::Dead);
                return;
            }
            Kind::EndToEnd if age >= young => {
                association.liveness.probe_at = Nanos::NEVER;
                association.liveness.outstanding.clear();
                association.liveness.missed = 0;
                return;
            }
            Kind::Link | Kind::EndToEnd => {}
        }
        let mut ids = lanes
            .into_iter()
            .map(|lane| self.send_probe(now, owner, lane));
        let first = ids.next();
        ids.for_each(drop);
        if let Some(association) = self.associations.get_mut(&owner) {
            let liveness = &mut association.liveness;
            liveness.outstanding.extend(first.map(|id| (id, now)));
            if liveness.outstanding.len() > OUTSTANDING_MAX {
                liveness.outstanding.pop_front();
            }
            // Until it is answered: this is when it counts as missed.
            let patient = kind == Kind::EndToEnd && missed > MISSED_MAX;
            liveness.probe_at = now
                + if patient {
                    interval
                } else if urgent {
                    fast
                } else {
                    self.config.keepalive / 5
                };
        }
        // With another address to go to the first sign is enough.
        let fail_over = urgent && alternate && missed > 0;
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
        let liveness = &mut association.liveness;
        if let Some((_, sent)) = liveness
            .outstanding
            .iter()
            .find(|(known, _)| *known == id)
            .copied()
        {
            liveness.rtt.sample(received.since(sent));
            liveness.loss.sample(false);
            liveness.outstanding.clear();
            liveness.missed = 0;
            liveness.probe_at = next;
        }
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

    /// Sends the pings that wait, and again those that the previous session has not answered.
    pub(crate) fn send_pings(&mut self, now: Nanos, owner: Owner) {
        let Some(association) = self.associations.get(&owner) else {
            return;
        };
        let Some(lane) = association.current().and_then(|s| s.lanes.first()) else {
            return;
        };
        let receive = lane.receive;
        let created = association.current().map_or(now, |s| s.created);
        for at in 0..association.pings.len() {
            let ping = self
                .associations
                .get(&owner)
                .and_then(|a| a.pings.get(at).copied());
            if ping.is_none_or(|p| p.probe.is_some_and(|(_, sent)| sent >= created)) {
                continue;
            }
            let probe = self.send_probe(now, owner, receive);
            let pings = self.associations.get_mut(&owner).map(|a| &mut a.pings);
            if let Some(ping) = pings.and_then(|pings| pings.get_mut(at)) {
                ping.probe = Some((probe, now));
                ping.retry_at = now + PING_RETRY;
            }
        }
    }

    /// Forgets pings that stay unanswered; the first sign of that makes a new session.
    pub(crate) fn pings_due(&mut self, now: Nanos, owner: Owner) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        association
            .pings
            .retain(|ping| ping.asked + PING_TIMEOUT > now);
        let mut overdue = false;
        for ping in association
            .pings
            .iter_mut()
            .filter(|ping| ping.retry_at <= now)
        {
            ping.retry_at = Nanos::NEVER;
            overdue = true;
        }
        if overdue {
            self.renew(now, owner, true);
        }
    }
}
