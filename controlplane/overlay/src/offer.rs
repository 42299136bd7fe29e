//! Payloads of handshakes: what is valid, and what fits.

use std::collections::BTreeSet;

use hyphae_wire::guard::{self, TOKEN_LEN};
use hyphae_wire::handshake::{HandshakeError, HandshakeHeader, Offer, RESETS_MAX};
use hyphae_wire::{Endpoint, Lane, SessionIndex, SuiteSet};

use crate::handshake::Carrier;
use crate::ids::Owner;
use crate::keys::Kind;
use crate::noise::Noise;
use crate::{Ephemerals, Overlay, Refusal};

/// Smallest inner packet that every end must take: the IPv6 minimum.
const MTU_MIN: u16 = 1280;

/// Bytes of a second Noise message beside its payload: a key, a sealed key, the payload's seal. A third
/// one has no more.
const ANSWER_OVERHEAD: usize = 32 + 48 + 16;

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

/// Checks that an offer lists a distinct index for each lane, at the worker that owns it.
pub(crate) fn check_lanes(offer: &Offer, required: u16) -> Result<(), Refusal> {
    let listed = offer.lanes.len();
    if listed != usize::from(required) {
        return Err(Refusal::Lanes { listed, required });
    }
    let distinct: BTreeSet<_> = offer.lanes.iter().collect();
    let owned = |(lane, index): (u16, &SessionIndex)| {
        index.0 != 0 && index.worker() == Lane(lane).worker(offer.workers)
    };
    let valid = distinct.len() == listed && (0..).zip(&offer.lanes).all(owned);
    if valid { Ok(()) } else { Err(Refusal::Offer) }
}

/// Drops reset tokens from an answer until it is no longer than the message that it answers, so that it cannot
/// amplify. Inside a session, where first messages have no padding, the sender is authenticated and the limit
/// does not apply.
pub(crate) fn fit_resets(choice: &mut Offer, carrier: Carrier, len: usize) {
    if let Carrier::Sealed { .. } = carrier {
        return;
    }
    let tokens = choice.resets.len() * TOKEN_LEN;
    let without = size_of::<HandshakeHeader>() + ANSWER_OVERHEAD + choice.encode().len() - tokens;
    choice
        .resets
        .truncate(len.saturating_sub(without) / TOKEN_LEN);
}

impl Overlay {
    /// The payload of a message of this node.
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

    /// Underlay address of each lane of a new session. Lane 0 follows the handshake. The others follow the
    /// addresses of the session in use, else the ports that the peer advertises, shifted as a port forwarding
    /// shifts lane 0.
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
            // One connection carries all lanes.
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
}
