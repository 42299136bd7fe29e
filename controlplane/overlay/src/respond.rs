//! Handshakes initiated by others: the answer to a first message, and what a third message proves.
//!
//! A first message creates bounded state and nothing else. Only a third message that completes the
//! transcript reaches sessions; one that is repeated, late or lost to a glare never replaces a
//! session that is in use.

use hyphae_time::Nanos;
use hyphae_wire::control::{self, ControlKind};
use hyphae_wire::handshake::{HandshakeStep, Message, Offer};

use hyphae_wire::{Lane, PublicKey, SessionIndex, Suite, SuiteSet};

use crate::association::Association;
use crate::engine::Timer;
use crate::event::Direction;
use crate::handshake::{Carrier, HalfOpen, Stage};
use crate::ids::Owner;
use crate::index::{Class, half_open_max};
use crate::install::NewSession;
use crate::keys::Kind;
use crate::offer::{check_lanes, fit_resets, parse_offer};
use crate::{DownReason, Overlay, Refusal};

/// A new link session before this share of the renewal age (in percent) is not a renewal: the peer
/// was restarted, or lost its sessions otherwise.
const RENEWAL_PERCENT: u32 = 85;
impl Overlay {
    /// Handles a first message.
    pub(crate) fn on_init(&mut self, now: Nanos, carrier: Carrier, message: &Message<'_>) {
        let kind = carrier.kind();
        let sender = message.header.sender.get();
        if !self.may_answer(carrier, message) {
            return;
        }
        let digest = carrier.digest(sender, message.noise);
        if let Some(half) = self.half_opens.find(&digest) {
            let response = half.response.clone();
            self.send_handshake(carrier, &response);
            return;
        }
        if message.header.receiver.get() != 0 || sender == 0 {
            return;
        }
        let mut noise = self.noise(kind, false);
        let Some(payload) = noise.read(message.noise) else {
            return;
        };
        let (offer, suite) = match self.agree(kind, &payload) {
            Ok((offer, _)) if !offer.lanes.is_empty() => return,
            Ok(agreed) => agreed,
            Err(reason) => {
                self.refuse(None, carrier, reason);
                return;
            }
        };
        let (lanes, class) = (Lane::count(self.workers, offer.workers), carrier.class());
        let (order, weight, indices) = match self.reserve(now, carrier, lanes) {
            Ok(reserved) => reserved,
            Err(reason) => {
                self.refuse(None, carrier, reason);
                return;
            }
        };
        let mut choice = self.offer(kind, SuiteSet::only(suite), indices.clone());
        fit_resets(&mut choice, carrier, message.len);
        let Some(answer) = noise.write(&choice.encode()) else {
            self.release_unused(now, kind, class, &indices);
            return;
        };
        let id = self.handshake_number();
        let response = self.frame(kind, HandshakeStep::Response, id, sender, &answer);
        self.send_handshake(carrier, &response);
        let half = HalfOpen {
            carrier,
            digest,
            order,
            created: now,
            noise,
            offer,
            suite,
            indices,
            weight,
            response,
        };
        self.half_opens.insert(id, half);
        self.schedule_half_opens();
    }

    /// The offer of a first message, and the suite to use with it.
    fn agree(&self, kind: Kind, payload: &[u8]) -> Result<(Offer, Suite), Refusal> {
        let offer = parse_offer(payload, kind)?;
        let suite = self.config.suites.agree(offer.suites);
        let suite = suite.ok_or(Refusal::Suite(offer.suites.0))?;
        Ok((offer, suite))
    }

    /// Takes slots for a half-open handshake: its arrival number, slots of one worker, receiver indices.
    fn reserve(
        &mut self,
        now: Nanos,
        carrier: Carrier,
        lanes: u16,
    ) -> Result<(u64, u32, Vec<SessionIndex>), Refusal> {
        let class = carrier.class();
        if class == Class::Renewal && !self.renews(carrier, lanes) {
            return Err(Refusal::Offer);
        }
        let room = self.half_open_room(now, carrier, lanes);
        let (order, weight) = room.ok_or(Refusal::Slots)?;
        if let Carrier::Sealed { owner, .. } = carrier
            && !self.live_room(now, owner, lanes, class)
        {
            return Err(Refusal::Slots);
        }
        let indices = self.allocate(now, carrier.kind(), lanes, class);
        Ok((order, weight, indices.ok_or(Refusal::Slots)?))
    }

    fn schedule_half_opens(&mut self) {
        let at = self.half_opens.next_expiry().unwrap_or(Nanos::NEVER);
        self.timers.set(Timer::HalfOpens, at);
    }

    /// Whether a handshake with this number of lanes renews the session that carries it: one with more lanes is
    /// another session without a claim to the renewal quota.
    pub(crate) fn renews(&self, carrier: Carrier, lanes: u16) -> bool {
        let renewed = carrier.sealed_in().and_then(|o| self.associations.get(&o));
        let session = renewed.and_then(Association::current);
        session.is_some_and(|session| lanes <= session.lane_count())
    }

    /// Makes room for a half-open handshake: its arrival number, and the slots that it takes of one worker.
    /// `None` when its source has the largest share.
    fn half_open_room(&mut self, now: Nanos, carrier: Carrier, lanes: u16) -> Option<(u64, u32)> {
        let kind = carrier.kind();
        let weight = u32::from(lanes.div_ceil(self.workers));
        let weight_max = half_open_max(match kind {
            Kind::Link => self.config.link_slots(),
            Kind::EndToEnd => self.config.session_slots,
        });
        let (order, evicted) = self.half_opens.make_room(carrier, weight, weight_max);
        for half in evicted {
            self.handshakes.crowded += 1;
            self.forget_half_open(now, &half);
        }
        Some((order?, weight))
    }

    /// Ends the half-open renewals of a session, for eviction or with the session.
    pub(crate) fn forget_renewals(&mut self, now: Nanos, owner: Owner) -> u64 {
        let mut count = 0;
        for half in self.half_opens.remove_renewals(owner) {
            self.forget_half_open(now, &half);
            count += 1;
        }
        count
    }

    /// The same for eviction.
    pub(crate) fn crowd_renewals(&mut self, now: Nanos, owner: Owner) {
        self.handshakes.crowded += self.forget_renewals(now, owner);
    }

    fn forget_half_open(&mut self, now: Nanos, half: &HalfOpen) {
        let (kind, class) = (half.carrier.kind(), half.carrier.class());
        self.release_unused(now, kind, class, &half.indices);
    }

    /// Expires first messages without a third one.
    pub(crate) fn expire_half_opens(&mut self, now: Nanos) {
        while let Some(half) = self.half_opens.expire(now) {
            self.handshakes.abandoned += 1;
            self.forget_half_open(now, &half);
        }
        self.schedule_half_opens();
    }

    /// Handles a third message.
    pub(crate) fn on_finish(&mut self, now: Nanos, carrier: Carrier, message: &Message<'_>) {
        let id = message.header.receiver.get();
        let kind = carrier.kind();
        if let Some((owner, epoch)) = self.finished.get(&id).copied() {
            // The confirmation was lost. It is sent to the authenticated end, not to the sender of this
            // message.
            if owner.kind() == kind {
                self.confirm_again(owner, epoch);
            }
            return;
        }
        let Some(half) = self.half_opens.get_mut(id) else {
            return;
        };
        // A handshake begun in a session ends in it, or another node could use slots charged to the
        // first.
        if half.carrier.kind() != kind || half.carrier.sealed_in() != carrier.sealed_in() {
            return;
        }
        let Some(payload) = half.noise.read(message.noise) else {
            return;
        };
        let (Some(key), Some(half)) = (half.noise.remote_key(), self.half_opens.remove(id)) else {
            return;
        };
        let (indices, class) = (half.indices.clone(), half.carrier.class());
        if let Err(reason) = self.accept(now, carrier, id, half, key, &payload) {
            self.release_unused(now, kind, class, &indices);
            if let Some(reason) = reason {
                self.refuse(Some(key), carrier, reason);
            }
        }
    }

    /// Installs the session of a finished handshake. `Err(None)`: a newer handshake has overtaken it.
    fn accept(
        &mut self,
        now: Nanos,
        carrier: Carrier,
        id: u32,
        mut half: HalfOpen,
        key: PublicKey,
        payload: &[u8],
    ) -> Result<(), Option<Refusal>> {
        let kind = carrier.kind();
        let offer = self.check_finish(&half, key, payload).map_err(Some)?;
        let lanes = Lane::count(self.workers, offer.workers);
        let owner = self.owner_of_carrier(now, carrier, key).map_err(Some)?;
        let class = half.carrier.class();
        if class == Class::HalfOpen && !self.live_room(now, owner, lanes, Class::Live) {
            self.settle(now, owner, DownReason::Dead);
            return Err(Some(Refusal::Slots));
        }
        let own_key = self.key;
        let association = self.associations.get_mut(&owner).ok_or(None)?;
        if association.key.is_some_and(|known| known != key) && association.up {
            return Err(Some(Refusal::Address));
        }
        if half.order < association.order {
            return Err(None);
        }
        association.order = half.order;
        association.key = Some(key);
        let receive_only = loses_glare(association, own_key, key, half.created);
        let fresh = !association.up
            || association.current().is_none_or(|session| {
                now.since(session.created) < self.config.rekey_after * RENEWAL_PERCENT / 100
            });
        if !receive_only {
            association.address = key.address();
            self.yield_to(now, owner, key);
        }
        let endpoints = self.lane_endpoints(owner, carrier, &offer, lanes, false);
        let session = NewSession {
            owner,
            key,
            direction: Direction::Inbound,
            receive_only,
            suite: half.suite,
            secrets: half.noise.secrets(),
            ours: &half.indices,
            theirs: &offer.lanes,
            resets: &offer.resets,
            endpoints: &endpoints,
            local: carrier.local(),
            mtu: offer.mtu,
            handshake: Some(id),
        };
        let epoch = self.install(now, session).ok_or(None)?;
        // Not earlier: on an error the caller releases the slots as half-open ones.
        if class == Class::HalfOpen {
            self.indices(kind).promote(&half.indices);
        }
        if receive_only {
            self.schedule(owner);
            return Ok(());
        }
        let endpoint = endpoints.first().copied().unwrap_or_default();
        self.use_endpoint(owner, endpoint);
        self.record_instance(now, owner, offer.instance, endpoint);
        self.confirm_again(owner, epoch);
        self.confirmed(now, owner, epoch, fresh);
        Ok(())
    }

    /// The payload of a third message, if it agrees with the first one.
    fn check_finish(
        &self,
        half: &HalfOpen,
        key: PublicKey,
        payload: &[u8],
    ) -> Result<Offer, Refusal> {
        if key == self.key {
            return Err(Refusal::OwnKey);
        }
        let offer = parse_offer(payload, half.carrier.kind())?;
        let lanes = Lane::count(self.workers, offer.workers);
        let agrees =
            offer.workers == half.offer.workers && offer.suites == SuiteSet::only(half.suite);
        if !agrees {
            return Err(Refusal::Offer);
        }
        check_lanes(&offer, lanes)?;
        Ok(offer)
    }

    /// The association that a handshake initiated by another node is for, created where it is missing.
    fn owner_of_carrier(
        &mut self,
        now: Nanos,
        carrier: Carrier,
        key: PublicKey,
    ) -> Result<Owner, Refusal> {
        match carrier {
            Carrier::Underlay { .. } => {
                self.admit(now, key, carrier)?;
                self.ensure_peer(key).ok_or(Refusal::PeersMax)
            }
            Carrier::Overlay {
                address, through, ..
            } => {
                if key.address().subnet_id() != address.subnet_id() {
                    return Err(Refusal::Address);
                }
                self.ensure_remote(now, key.address(), through)
                    .ok_or(Refusal::SessionsMax)
            }
            Carrier::Sealed { owner, .. } => {
                let expected = self.associations.get(&owner).and_then(|a| a.key);
                match expected.filter(|expected| *expected != key) {
                    Some(expected) => Err(Refusal::Pinned { expected }),
                    None => Ok(owner),
                }
            }
        }
    }

    /// Abandons own handshakes with an end whose inbound session is used. One without an answer is dropped; the
    /// lanes of one that waits for confirmation, which the other end has refused, receive for the grace time.
    fn yield_to(&mut self, now: Nanos, owner: Owner, key: PublicKey) {
        let ours = self.associations.get(&owner).and_then(|a| a.outgoing);
        let unanswered: Vec<_> = match owner {
            Owner::Peer(_) => self
                .targets_of(key)
                .filter_map(|t| self.unanswered(t))
                .collect(),
            Owner::Remote(_) => Vec::new(),
        };
        for id in ours.into_iter().chain(unanswered) {
            if let Some(outgoing) = self.abandon(id)
                && let Stage::Confirm { epoch, .. } = outgoing.stage
                && let Some(session) = self
                    .associations
                    .get_mut(&owner)
                    .and_then(|a| a.session(epoch))
            {
                session.retiring = true;
                session.remove_at = session.remove_at.min(now + self.config.grace);
            }
        }
    }

    /// Confirms the session to the initiator.
    fn confirm_again(&mut self, owner: Owner, epoch: u32) {
        let Some(session) = self
            .associations
            .get_mut(&owner)
            .and_then(|a| a.session(epoch))
        else {
            return;
        };
        if let Some(lane) = session.lanes.first().filter(|_| !session.receive_only) {
            let receive = lane.receive;
            self.send_control(owner, receive, &control::message(ControlKind::Keepalive));
        }
    }
}

/// Whether a handshake of the other end loses against one of ours. One of ours that waits for confirmation wins
/// when our key is smaller; both ends decide alike. One confirmed after theirs began always wins: the other end
/// has used it since, so theirs is late.
fn loses_glare(
    association: &Association,
    own_key: PublicKey,
    their_key: PublicKey,
    began: Nanos,
) -> bool {
    association
        .sessions
        .iter()
        .filter(|s| s.outbound() && !s.retiring)
        .any(|s| match s.confirmed {
            None => own_key < their_key,
            Some(at) => at >= began,
        })
}
