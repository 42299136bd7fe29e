//! Handshakes initiated by this node: first message, retransmission, answer, and the wait for confirmation.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::handshake::{HandshakeError, HandshakeStep, Message, Offer};

use hyphae_wire::{
    Endpoint, Lane, LocalAddress, NetworkId, PublicKey, Suite, SuiteSet, on_wiped_stack,
};

use crate::engine::Timer;
use crate::event::{Direction, HandshakeSource};
use crate::handshake::{
    CONFIRM_TIMEOUT, Carrier, Fallback, Goal, LINK_TIMEOUT, Outgoing, PROBE_TIMEOUT,
    RETRANSMIT_MAX, RETRANSMIT_MIN, RetransmitSchedule, SESSION_TIMEOUT, Stage,
};
use crate::ids::Owner;
use crate::index::Class;
use crate::install::NewSession;
use crate::keys::Kind;
use crate::noise::Noise;
use crate::offer::{check_lanes, fit_resets, parse_offer};
use crate::{ConfiguredPeer, DownReason, Event, Overlay, Refusal};

/// A second message that passed all checks.
struct AcceptedResponse {
    owner: Owner,
    key: PublicKey,
    offer: Offer,
    suite: Suite,
    /// Round-trip time; `None` where a repetition makes it ambiguous.
    rtt: Option<Duration>,
}

impl Outgoing {
    /// Repeats the third message from now on, until the other end confirms the session.
    fn await_confirmation(&mut self, now: Nanos, stage: Stage, carrier: Carrier, message: Vec<u8>) {
        self.stage = stage;
        self.message = message;
        self.carriers = vec![carrier];
        self.fallback = Fallback::NONE;
        self.next_at = now;
        self.interval = RETRANSMIT_MIN;
        self.interval_max = RETRANSMIT_MAX;
        self.expires_at = now + CONFIRM_TIMEOUT;
    }
}

impl Overlay {
    /// Begins a handshake. `None` without a carrier, or without randomness.
    pub(crate) fn begin(
        &mut self,
        now: Nanos,
        goal: Goal,
        carriers: Vec<Carrier>,
        pace: RetransmitSchedule,
    ) -> Option<u32> {
        let kind = carriers.first()?.kind();
        let offer = self.offer(kind, self.config.suites, Vec::new());
        let (noise, message) = on_wiped_stack(|| {
            let mut noise = self.noise(kind, true);
            let message = noise.write(&offer.encode())?;
            Some((noise, message))
        })?;
        let id = self.handshake_number();
        let timeout = match (goal, kind) {
            (Goal::Probe { .. }, _) => PROBE_TIMEOUT,
            (_, Kind::Link) => LINK_TIMEOUT,
            (_, Kind::EndToEnd) => SESSION_TIMEOUT,
        };
        let outgoing = Outgoing {
            goal,
            stage: Stage::Response(noise),
            message: self.frame(kind, HandshakeStep::Init, id, 0, &message),
            carriers,
            attempts: 0,
            cookie: None,
            cookie_for: 0,
            began: now,
            next_at: now,
            interval: pace.first,
            interval_max: pace.max,
            expires_at: now + timeout,
            fallback: self.fallback(now, goal),
        };
        self.outgoing.insert(id, outgoing);
        self.outgoing_due(now, id);
        Some(id)
    }

    /// Retransmits the message of a handshake, or abandons it.
    pub(crate) fn outgoing_due(&mut self, now: Nanos, id: u32) {
        let Some(outgoing) = self.outgoing.get_mut(&id) else {
            return;
        };
        if now >= outgoing.expires_at {
            self.handshakes.unanswered += 1;
            self.fail(now, id, None);
            return;
        }
        if now >= outgoing.next_at {
            let turn = usize::try_from(outgoing.attempts).unwrap_or(0) % outgoing.carriers.len();
            let carrier = outgoing.carriers[turn];
            let message = outgoing.message_to(carrier, outgoing.attempts);
            outgoing.attempts = outgoing.attempts.wrapping_add(1);
            let round = u32::try_from(outgoing.carriers.len()).unwrap_or(1).max(1);
            outgoing.next_at = now + self.rng.jitter(outgoing.interval / round, 75, 125);
            if outgoing.attempts.is_multiple_of(round) {
                outgoing.interval = (outgoing.interval * 2).min(outgoing.interval_max);
            }
            self.send_handshake(carrier, &message);
        }
        self.fall_back(now, id);
        if let Some(outgoing) = self.outgoing.get(&id) {
            let due = outgoing.next_at.min(outgoing.expires_at);
            let due = due.min(outgoing.fallback.next_at);
            self.timers.set(Timer::Outgoing(id), due);
        }
    }

    /// Drops a handshake initiated by this node without further effects.
    pub(crate) fn abandon(&mut self, id: u32) -> Option<Outgoing> {
        self.timers.set(Timer::Outgoing(id), Nanos::NEVER);
        let outgoing = self.outgoing.remove(&id)?;
        let mut owners = Vec::new();
        match outgoing.goal {
            Goal::Target(target) => {
                if let Some(target) = self.targets.get_mut(&target) {
                    target.outgoing = None;
                }
            }
            Goal::Node { owner, .. } => owners.push(owner),
            Goal::Probe { .. } => {}
        }
        if let Stage::Confirm { owner, .. } = outgoing.stage {
            owners.push(owner);
        }
        for owner in owners {
            if let Some(association) = self.associations.get_mut(&owner)
                && association.outgoing == Some(id)
            {
                association.outgoing = None;
            }
        }
        Some(outgoing)
    }

    /// A handshake initiated by this node failed.
    pub(crate) fn fail(&mut self, now: Nanos, id: u32, refusal: Option<Refusal>) {
        let Some(outgoing) = self.abandon(id) else {
            return;
        };
        if let Stage::Confirm { owner, epoch } = outgoing.stage {
            // Only the confirmation may be lost, and the other end uses this session. So it still receives,
            // and a late frame confirms it.
            let until = now + self.config.grace;
            if let Some(session) = self
                .associations
                .get_mut(&owner)
                .and_then(|a| a.session(epoch))
            {
                session.retiring = true;
                session.remove_at = session.remove_at.min(until);
            }
            self.schedule(owner);
        }
        match outgoing.goal {
            Goal::Target(target) => {
                let unanswered = matches!(outgoing.stage, Stage::Response(_));
                if let Some(target) = self.targets.get_mut(&target).filter(|_| unanswered) {
                    target.backoff = outgoing.interval;
                }
                self.target_failed(now, target, refusal, outgoing.next_at);
            }
            Goal::Node { owner, .. } => self.renewal_failed(now, owner),
            Goal::Probe { owner } => {
                if let Some(Carrier::Underlay { endpoint, .. }) = outgoing.carriers.first() {
                    self.path_failed(owner, *endpoint);
                }
            }
        }
    }

    /// Handles a second message.
    pub(crate) fn on_response(&mut self, now: Nanos, carrier: Carrier, message: &Message<'_>) {
        let id = message.header.receiver.get();
        let Some(outgoing) = self.outgoing.get_mut(&id) else {
            return;
        };
        let Stage::Response(noise) = &mut outgoing.stage else {
            return;
        };
        if outgoing.carriers.first().map(|c| c.kind()) != Some(carrier.kind()) {
            return;
        }
        // A session carries answers only to what was sent inside of it.
        let asked = |carrier: Carrier| outgoing.carriers.iter().any(|c| c.leads_to(carrier));
        if carrier.sealed_in().is_some() && !asked(carrier) {
            return;
        }
        let Some(payload) = noise.read(message.noise) else {
            return;
        };
        let Some(key) = noise.remote_key() else {
            return;
        };
        if let (Goal::Probe { owner }, Carrier::Underlay { endpoint, .. }) =
            (outgoing.goal, carrier)
        {
            self.probe_response(now, id, owner, (carrier, endpoint), key);
            return;
        }
        match self.accept_response(now, id, carrier, key, &payload) {
            Ok(Some(accepted)) => self.finish(now, id, carrier, message, accepted),
            Ok(None) => {
                self.abandon(id);
            }
            Err(reason) => {
                self.refuse(Some(key), carrier, reason);
                self.fail(now, id, Some(reason));
            }
        }
    }

    /// Handles the answer to a probe of another address of a peer.
    fn probe_response(
        &mut self,
        now: Nanos,
        id: u32,
        owner: Owner,
        (carrier, endpoint): (Carrier, Endpoint),
        key: PublicKey,
    ) {
        let Some(outgoing) = self.abandon(id) else {
            return;
        };
        let probed = outgoing.carriers.first().copied();
        if self.associations.get(&owner).and_then(|a| a.key) != Some(key) {
            self.path_foreign(now, owner, endpoint);
        } else if probed.is_some_and(|probed| probed.leads_to(carrier)) {
            self.path_answered(now, owner, endpoint, now.since(outgoing.began));
        }
    }

    /// Checks a second message and finds the association that it is for. `None` when another entry, or the peer
    /// itself, was faster: one link is enough.
    fn accept_response(
        &mut self,
        now: Nanos,
        id: u32,
        carrier: Carrier,
        key: PublicKey,
        payload: &[u8],
    ) -> Result<Option<AcceptedResponse>, Refusal> {
        let Some(outgoing) = self.outgoing.get(&id) else {
            return Ok(None);
        };
        let goal = outgoing.goal;
        // The round trip of a repeated message is ambiguous.
        let once =
            outgoing.attempts == 1 && outgoing.cookie.is_none() && outgoing.fallback.sent == 0;
        let rtt = Some(now.since(outgoing.began)).filter(|_| once);
        let (offer, suite) = self.check_response(carrier, goal, key, payload)?;
        let owner = self.owner_of(goal, key).ok_or(Refusal::PeersMax)?;
        if let Goal::Target(target) = goal
            && self.bind_target(now, target, key)
        {
            return Ok(None);
        }
        Ok(Some(AcceptedResponse {
            owner,
            key,
            offer,
            suite,
            rtt,
        }))
    }

    /// Installs the session that an accepted answer leads to and sends the third message.
    fn finish(
        &mut self,
        now: Nanos,
        id: u32,
        carrier: Carrier,
        message: &Message<'_>,
        accepted: AcceptedResponse,
    ) {
        let (owner, key) = (accepted.owner, accepted.key);
        let kind = carrier.kind();
        let lanes = Lane::count(self.workers, accepted.offer.workers);
        let class = match self.renews(carrier, lanes) {
            true => Class::Renewal,
            false => Class::Live,
        };
        if let (Carrier::Overlay { through, .. }, Some(association)) =
            (carrier, self.associations.get_mut(&owner))
        {
            association.through = through;
        }
        let room = self.live_room(now, owner, lanes, class);
        let ours = Some(lanes).filter(|_| room);
        let Some(ours) = ours.and_then(|lanes| self.allocate(now, kind, lanes, class)) else {
            self.refuse(Some(key), carrier, Refusal::Slots);
            self.fail(now, id, Some(Refusal::Slots));
            self.settle(now, owner, DownReason::Dead);
            return;
        };
        let mut choice = self.offer(kind, SuiteSet::only(accepted.suite), ours.clone());
        // The path carries what has just arrived.
        fit_resets(&mut choice, carrier, message.len);
        let endpoints = self.lane_endpoints(owner, carrier, &accepted.offer, lanes, true);
        let Some((epoch, finish)) = self.complete(now, id, &accepted, &choice, &endpoints) else {
            self.release_unused(now, kind, class, &ours);
            self.fail(now, id, None);
            self.settle(now, owner, DownReason::Dead);
            return;
        };
        let endpoint = endpoints.first().copied().unwrap_or_default();
        if let Some(association) = self.associations.get_mut(&owner) {
            association.key = Some(key);
            association.outgoing = Some(id);
            if !association.up {
                association.endpoint = endpoint;
            }
            if let Some(rtt) = accepted.rtt {
                association.liveness.rtt.sample(rtt);
            }
        }
        let message = self.frame(
            kind,
            HandshakeStep::Finish,
            id,
            message.header.sender.get(),
            &finish,
        );
        self.record_instance(now, owner, accepted.offer.instance, endpoint);
        if let Some(outgoing) = self.outgoing.get_mut(&id) {
            outgoing.await_confirmation(now, Stage::Confirm { owner, epoch }, carrier, message);
            self.schedule(owner);
            self.outgoing_due(now, id);
        }
    }

    /// Writes the third message and installs the session. Returns its epoch, and the message.
    fn complete(
        &mut self,
        now: Nanos,
        id: u32,
        accepted: &AcceptedResponse,
        choice: &Offer,
        endpoints: &[Endpoint],
    ) -> Option<(u32, Vec<u8>)> {
        let owner = accepted.owner;
        let (mut noise, message) = self.third_message(id, owner, choice)?;
        let session = NewSession {
            owner,
            key: accepted.key,
            direction: Direction::Outbound,
            receive_only: false,
            suite: accepted.suite,
            secrets: noise.secrets(),
            ours: &choice.lanes,
            theirs: &accepted.offer.lanes,
            resets: &accepted.offer.resets,
            endpoints,
            local: LocalAddress::UNSET,
            mtu: accepted.offer.mtu,
            handshake: None,
        };
        Some((self.install(now, session)?, message))
    }

    /// Writes the third message; the handshake then waits for confirmation.
    fn third_message(
        &mut self,
        id: u32,
        owner: Owner,
        choice: &Offer,
    ) -> Option<(Box<Noise>, Vec<u8>)> {
        let outgoing = self.outgoing.get_mut(&id)?;
        let placeholder = Stage::Confirm { owner, epoch: 0 };
        let Stage::Response(mut noise) = std::mem::replace(&mut outgoing.stage, placeholder) else {
            return None;
        };
        let message = noise.write(&choice.encode())?;
        Some((noise, message))
    }

    /// Checks a second message against the handshake.
    fn check_response(
        &self,
        carrier: Carrier,
        goal: Goal,
        key: PublicKey,
        payload: &[u8],
    ) -> Result<(Offer, Suite), Refusal> {
        if key == self.key {
            return Err(Refusal::OwnKey);
        }
        let expected = match goal {
            Goal::Target(id) => self.targets.get(&id).and_then(|target| target.key),
            Goal::Node {
                owner: owner @ Owner::Peer(_),
                ..
            }
            | Goal::Probe { owner } => self.associations.get(&owner).and_then(|a| a.key),
            Goal::Node {
                owner: Owner::Remote(subnet),
                ..
            } => {
                if key.address().subnet_id() != subnet {
                    return Err(Refusal::Address);
                }
                None
            }
        };
        if let Some(expected) = expected.filter(|expected| *expected != key) {
            return Err(Refusal::Pinned { expected });
        }
        if carrier.kind() == Kind::Link {
            self.config.policy.check(&key)?;
        }
        let offer = parse_offer(payload, carrier.kind())?;
        let suite = self
            .config
            .suites
            .agree(offer.suites)
            .ok_or(Refusal::Suite(offer.suites.0))?;
        let lanes = Lane::count(self.workers, offer.workers);
        if offer.suites != SuiteSet::only(suite) {
            return Err(Refusal::Offer);
        }
        check_lanes(&offer, lanes)?;
        Ok((offer, suite))
    }

    /// Dispatches a handshake message.
    pub(crate) fn handle_handshake(
        &mut self,
        now: Nanos,
        carrier: Carrier,
        message: Result<Message<'_>, HandshakeError>,
    ) {
        on_wiped_stack(|| self.take_handshake(now, carrier, message));
    }

    fn take_handshake(
        &mut self,
        now: Nanos,
        carrier: Carrier,
        message: Result<Message<'_>, HandshakeError>,
    ) {
        match message {
            Ok(message) => {
                let theirs = NetworkId(message.header.network.get());
                match message.step {
                    _ if theirs != self.network() => self.on_foreign(carrier, &message, theirs),
                    HandshakeStep::Init => self.on_init(now, carrier, &message),
                    HandshakeStep::Response => self.on_response(now, carrier, &message),
                    HandshakeStep::Finish => self.on_finish(now, carrier, &message),
                }
            }
            Err(HandshakeError::Version(version)) => {
                self.refuse(None, carrier, Refusal::Version(version));
            }
            Err(HandshakeError::Short | HandshakeError::Step(_) | HandshakeError::Offer) => {}
        }
    }

    /// Refuses a message of another network. A first message is answered with the number of this node's network
    /// and nothing else, so that the other end can report the cause. Nothing is authenticated here: an answer
    /// of that kind is reported to the operator, and the handshake continues.
    fn on_foreign(&mut self, carrier: Carrier, message: &Message<'_>, theirs: NetworkId) {
        let (sender, receiver) = (message.header.sender.get(), message.header.receiver.get());
        let reason = Refusal::Network {
            theirs,
            ours: self.network(),
        };
        match message.step {
            HandshakeStep::Init if sender != 0 && receiver == 0 => {
                self.refuse(None, carrier, reason);
                let number = self.handshake_number();
                let answer =
                    self.frame(carrier.kind(), HandshakeStep::Response, number, sender, &[]);
                self.send_handshake(carrier, &answer);
            }
            HandshakeStep::Response => {
                let waits = |o: &&Outgoing| {
                    let asked = o.carriers.iter().chain(&o.fallback.carriers);
                    matches!(o.stage, Stage::Response(_))
                        && asked.into_iter().any(|c| c.leads_to(carrier))
                };
                let Some(outgoing) = self.outgoing.get(&receiver).filter(waits) else {
                    return;
                };
                if let Goal::Target(target) = outgoing.goal
                    && let Some(target) = self.targets.get_mut(&target)
                {
                    target.refusal = Some(reason);
                }
                self.refuse(None, carrier, reason);
            }
            HandshakeStep::Init | HandshakeStep::Finish => {}
        }
    }

    pub(crate) fn refuse(&mut self, key: Option<PublicKey>, carrier: Carrier, reason: Refusal) {
        let from = match carrier {
            Carrier::Underlay { endpoint, .. } => HandshakeSource::Underlay(endpoint),
            Carrier::Overlay { address, .. } => HandshakeSource::Overlay(address),
            Carrier::Sealed { owner, endpoint } => match self.associations.get(&owner) {
                Some(end) if owner.kind() == Kind::EndToEnd => {
                    HandshakeSource::Overlay(end.address)
                }
                Some(_) | None => HandshakeSource::Underlay(endpoint),
            },
        };
        self.handshakes.refused += 1;
        self.output.event(Event::Refused { key, from, reason });
    }

    /// An unused random handshake number.
    pub(crate) fn handshake_number(&mut self) -> u32 {
        loop {
            let n = self.cookies.number(u32::from_le_bytes(self.rng.array()));
            let taken = self.outgoing.contains_key(&n)
                || self.half_opens.contains(n)
                || self.finished.contains_key(&n);
            if n != 0 && !taken {
                return n;
            }
        }
    }

    /// The association of a handshake initiated by this node, created where it is missing.
    fn owner_of(&mut self, goal: Goal, key: PublicKey) -> Option<Owner> {
        match goal {
            Goal::Node { owner, .. } | Goal::Probe { owner } => Some(owner),
            Goal::Target(_) => self.ensure_peer(key),
        }
    }

    /// The unanswered handshake of a configured peer.
    pub(crate) fn unanswered(&self, target: ConfiguredPeer) -> Option<u32> {
        let id = self.targets.get(&target)?.outgoing?;
        matches!(self.outgoing.get(&id)?.stage, Stage::Response(_)).then_some(id)
    }
}
