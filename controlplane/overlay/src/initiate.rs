//! Handshakes begun here: first message, its repetition, the answer, and the wait for confirmation.

use std::collections::BTreeSet;

use hyphae_time::Nanos;
use hyphae_wire::guard;
use hyphae_wire::handshake::{HandshakeError, Message, Offer, RESETS_MAX, Step};

use hyphae_wire::{
    Endpoint, Lane, LocalAddress, NetworkId, PublicKey, SessionIndex, Suite, SuiteSet,
    on_wiped_stack,
};

use crate::engine::Timer;
use crate::event::{Direction, Origin};
use crate::handshake::{
    CONFIRM_TIMEOUT, Carrier, Fallback, Goal, LINK_TIMEOUT, Outgoing, PROBE_TIMEOUT, Pace,
    RETRANSMIT_MAX, RETRANSMIT_MIN, SESSION_TIMEOUT, Stage,
};
use crate::index::Class;
use crate::install::NewSession;
use crate::keys::Kind;
use crate::noise::Noise;
use crate::respond::fit_resets;
use crate::session::Owner;
use crate::{ConfiguredPeer, Ephemerals, Event, Overlay, Refusal};

/// Smallest inner packet that every end must take: the IPv6 minimum.
const MTU_MIN: u16 = 1280;

impl Overlay {
    /// Begins a handshake. `None` when there is no way to the other side, or no randomness.
    pub(crate) fn begin(
        &mut self,
        now: Nanos,
        goal: Goal,
        carriers: Vec<Carrier>,
        pace: Pace,
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
            message: self.frame(kind, Step::Init, id, 0, &message),
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

    /// Repeats the message of a handshake, or gives it up.
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

    /// Forgets a handshake begun here without judging it.
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

    /// A handshake begun here came to nothing.
    pub(crate) fn fail(&mut self, now: Nanos, id: u32, refusal: Option<Refusal>) {
        let Some(outgoing) = self.abandon(id) else {
            return;
        };
        if let Stage::Confirm { owner, epoch } = outgoing.stage {
            // The third message may have come through and only the confirmations not: then the
            // other end sends on this session now. So it goes on receiving, and a late frame
            // confirms it.
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

    /// Takes a second message.
    pub(crate) fn on_response(&mut self, now: Nanos, carrier: Carrier, message: &Message<'_>) {
        let id = message.header.receiver.get();
        let kind = carrier.kind();
        let Some(outgoing) = self.outgoing.get_mut(&id) else {
            return;
        };
        let Stage::Response(noise) = &mut outgoing.stage else {
            return;
        };
        if outgoing.carriers.first().map(|c| c.kind()) != Some(kind) {
            return;
        }
        // Nor does the inside of a session answer what was not asked there.
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
        let goal = outgoing.goal;
        // A time that a repetition may have blurred says nothing.
        let once =
            outgoing.attempts == 1 && outgoing.cookie.is_none() && outgoing.fallback.sent == 0;
        let rtt = Some(now.since(outgoing.began)).filter(|_| once);
        if let (Goal::Probe { owner }, Carrier::Underlay { endpoint, .. }) = (goal, carrier) {
            let (probed, took) = (
                outgoing.carriers.first().copied(),
                now.since(outgoing.began),
            );
            self.abandon(id);
            if self.associations.get(&owner).and_then(|a| a.key) != Some(key) {
                self.path_foreign(now, owner, endpoint);
            } else if probed.is_some_and(|probed| probed.leads_to(carrier)) {
                self.path_answered(now, owner, endpoint, took);
            }
            return;
        }
        let checked = self.check_response(carrier, goal, key, &payload);
        let (offer, suite) = match checked {
            Ok(checked) => checked,
            Err(reason) => {
                self.refuse(Some(key), carrier, reason);
                self.fail(now, id, Some(reason));
                return;
            }
        };
        let Some(owner) = self.owner_of(goal, key) else {
            self.refuse(Some(key), carrier, Refusal::PeersMax);
            self.fail(now, id, Some(Refusal::PeersMax));
            return;
        };
        if let Goal::Target(target) = goal
            && self.bind_target(now, target, key)
        {
            // Another entry, or the peer itself, was faster: one link is enough.
            self.abandon(id);
            return;
        }
        let lanes = Lane::count(self.workers, offer.workers);
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
            self.settle(now, owner, crate::DownReason::Dead);
            return;
        };
        let mut choice = self.offer(kind, SuiteSet::only(suite), ours.clone());
        // What came is what the path is known to carry.
        fit_resets(&mut choice, carrier, message.len);
        let Some((mut noise, finish)) = self.third_message(id, owner, &choice) else {
            self.give_back(now, id, owner, class, &ours);
            return;
        };
        let endpoints = self.lane_endpoints(owner, carrier, &offer, lanes, true);
        let epoch = self.install(
            now,
            NewSession {
                owner,
                key,
                direction: Direction::Outbound,
                receive_only: false,
                suite,
                secrets: noise.secrets(),
                ours: &ours,
                theirs: &offer.lanes,
                resets: &offer.resets,
                endpoints: &endpoints,
                local: LocalAddress::UNSET,
                mtu: offer.mtu,
                handshake: None,
            },
        );
        let Some(epoch) = epoch else {
            self.give_back(now, id, owner, class, &ours);
            return;
        };
        if let Some(association) = self.associations.get_mut(&owner) {
            association.key = Some(key);
            association.outgoing = Some(id);
            if !association.up {
                association.endpoint = endpoints.first().copied().unwrap_or_default();
            }
            if let Some(rtt) = rtt {
                association.liveness.rtt.sample(rtt);
            }
        }
        let message = self.frame(kind, Step::Finish, id, message.header.sender.get(), &finish);
        let place = endpoints.first().copied().unwrap_or_default();
        self.note_start(now, owner, offer.instance, place);
        let Some(outgoing) = self.outgoing.get_mut(&id) else {
            return;
        };
        outgoing.stage = Stage::Confirm { owner, epoch };
        outgoing.message = message;
        outgoing.carriers = vec![carrier];
        outgoing.fallback = Fallback::NONE;
        outgoing.next_at = now;
        outgoing.interval = RETRANSMIT_MIN;
        outgoing.interval_max = RETRANSMIT_MAX;
        outgoing.expires_at = now + CONFIRM_TIMEOUT;
        self.schedule(owner);
        self.outgoing_due(now, id);
    }

    /// The third message of a handshake that was answered, which waits for its confirmation from now on.
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

    /// No session comes of an answer after all: gives back the slots of its lanes.
    fn give_back(
        &mut self,
        now: Nanos,
        id: u32,
        owner: Owner,
        class: Class,
        ours: &[SessionIndex],
    ) {
        self.release_unused(now, owner.kind(), class, ours);
        self.fail(now, id, None);
        self.settle(now, owner, crate::DownReason::Dead);
    }

    /// Whether a second message is what this handshake may accept.
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
        let valid = offer.suites == SuiteSet::only(suite) && lanes_valid(&offer, lanes);
        if valid {
            Ok((offer, suite))
        } else {
            Err(Refusal::Offer)
        }
    }

    /// Dispatches a handshake message, or refuses what is not one.
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
                    Step::Init => self.on_init(now, carrier, &message),
                    Step::Response => self.on_response(now, carrier, &message),
                    Step::Finish => self.on_finish(now, carrier, &message),
                }
            }
            Err(HandshakeError::Version(version)) => {
                self.refuse(None, carrier, Refusal::Version(version));
            }
            Err(HandshakeError::Short | HandshakeError::Step(_) | HandshakeError::Offer) => {}
        }
    }

    /// Refuses a message of another network. One that begins a handshake is answered with the number
    /// of this node's network and nothing else, so that the other side can say why. Nobody has
    /// proved anything here: an answer of that kind is noted for the operator, and the handshake
    /// goes on as if it had not come.
    fn on_foreign(&mut self, carrier: Carrier, message: &Message<'_>, theirs: NetworkId) {
        let (sender, receiver) = (message.header.sender.get(), message.header.receiver.get());
        let reason = Refusal::Network {
            theirs,
            ours: self.network(),
        };
        match message.step {
            Step::Init if sender != 0 && receiver == 0 => {
                self.refuse(None, carrier, reason);
                let number = self.handshake_number();
                let answer = self.frame(carrier.kind(), Step::Response, number, sender, &[]);
                self.send_handshake(carrier, &answer);
            }
            Step::Response => {
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
            Step::Init | Step::Finish => {}
        }
    }

    pub(crate) fn refuse(&mut self, key: Option<PublicKey>, carrier: Carrier, reason: Refusal) {
        let from = match carrier {
            Carrier::Underlay { endpoint, .. } => Origin::Underlay(endpoint),
            Carrier::Overlay { address, .. } => Origin::Overlay(address),
            Carrier::Sealed { owner, endpoint } => match self.associations.get(&owner) {
                Some(end) if owner.kind() == Kind::EndToEnd => Origin::Overlay(end.address),
                Some(_) | None => Origin::Underlay(endpoint),
            },
        };
        self.handshakes.refused += 1;
        self.output.event(Event::Refused { key, from, reason });
    }

    /// A payload of ours.
    pub(crate) fn offer(&self, kind: Kind, suites: SuiteSet, lanes: Vec<SessionIndex>) -> Offer {
        let ports = match kind {
            Kind::Link => self.config.ports.clone(),
            Kind::EndToEnd => Vec::new(),
        };
        let token = match kind {
            Kind::Link => guard::link_token,
            Kind::EndToEnd => guard::session_token,
        };
        let covered = lanes.iter().take(RESETS_MAX);
        let resets = covered
            .map(|lane| token(&self.node_secret, *lane))
            .collect();
        Offer {
            suites,
            workers: self.workers,
            mtu: self.config.mtu,
            ports,
            instance: if lanes.is_empty() { 0 } else { self.instance },
            lanes,
            resets,
        }
    }

    pub(crate) fn noise(&mut self, kind: Kind, initiator: bool) -> Box<Noise> {
        let seed = match self.config.ephemerals {
            Ephemerals::System => None,
            Ephemerals::Seeded => Some(self.rng.array()),
        };
        let network = self.config.network.as_ref();
        Noise::new(&self.config.identity, kind, initiator, network, seed)
    }

    /// A random number for a handshake that none of ours has.
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

    /// Where each lane of a new session leads. Lane 0 follows the handshake. The other lanes follow
    /// what the peer's own frames have said on the session in use, else the ports that it
    /// states, moved by as much as a port forwarding moves lane 0.
    pub(crate) fn lane_endpoints(
        &self,
        owner: Owner,
        carrier: Carrier,
        offer: &Offer,
        lanes: u16,
        initiator: bool,
    ) -> Vec<Endpoint> {
        let from = match carrier {
            Carrier::Underlay { endpoint, .. } | Carrier::Sealed { endpoint, .. } => endpoint,
            Carrier::Overlay { .. } => Endpoint::default(),
        };
        if from.is_unset() {
            return vec![Endpoint::default(); usize::from(lanes)];
        }
        if from.is_stream() {
            // One connection carries them all.
            return vec![from; usize::from(lanes)];
        }
        let current = self.associations.get(&owner).and_then(|a| a.current());
        let known = current.filter(|session| session.lane_count() == lanes);
        let here = from.port.get();
        let first = offer.ports.first().copied().unwrap_or(here);
        let shift = if offer.ports.contains(&here) {
            0
        } else {
            here.wrapping_sub(first)
        };
        let lane_endpoint = |lane: u16| {
            let learnt = known
                .and_then(|session| session.lanes.get(usize::from(lane)))
                .filter(|state| state.active && state.endpoint.with_port(here) == from);
            if let Some(state) = learnt.filter(|_| lane > 0) {
                return state.endpoint;
            }
            if lane == 0 && !initiator {
                return from;
            }
            let worker = Lane(lane).worker(offer.workers).as_usize();
            let stated = offer.ports.get(worker).copied().unwrap_or(here);
            from.with_port(stated.wrapping_add(shift))
        };
        (0..lanes).map(lane_endpoint).collect()
    }

    /// The association that a handshake of ours leads to, made when there is none.
    fn owner_of(&mut self, goal: Goal, key: PublicKey) -> Option<Owner> {
        match goal {
            Goal::Node { owner, .. } | Goal::Probe { owner } => Some(owner),
            Goal::Target(_) => self.ensure_peer(key),
        }
    }

    /// The handshake that leads to a configured peer, if it has no answer yet.
    pub(crate) fn unanswered(&self, target: ConfiguredPeer) -> Option<u32> {
        let id = self.targets.get(&target)?.outgoing?;
        matches!(self.outgoing.get(&id)?.stage, Stage::Response(_)).then_some(id)
    }
}

/// Reads a payload and checks what does not depend on its step.
pub(crate) fn parse_offer(payload: &[u8], kind: Kind) -> Result<Offer, Refusal> {
    let offer = Offer::parse(payload).map_err(|error| match error {
        HandshakeError::Version(version) => Refusal::Version(version),
        HandshakeError::Short | HandshakeError::Step(_) | HandshakeError::Offer => Refusal::Offer,
    })?;
    let ports = match kind {
        Kind::Link => usize::from(offer.workers),
        Kind::EndToEnd => 0,
    };
    let valid = offer.mtu >= MTU_MIN && offer.ports.len() == ports && !offer.ports.contains(&0);
    if valid {
        Ok(offer)
    } else {
        Err(Refusal::Offer)
    }
}

/// Whether an offer lists a distinct index for each lane, at the worker that owns it.
pub(crate) fn lanes_valid(offer: &Offer, lanes: u16) -> bool {
    let distinct: BTreeSet<_> = offer.lanes.iter().collect();
    offer.lanes.len() == usize::from(lanes)
        && distinct.len() == offer.lanes.len()
        && (0..lanes)
            .zip(&offer.lanes)
            .all(|(lane, index)| index.0 != 0 && index.worker() == Lane(lane).worker(offer.workers))
}
