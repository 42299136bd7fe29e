//! Payloads of handshakes: what is valid, and what fits.

use std::collections::BTreeSet;

use hyphae_wire::Lane;
use hyphae_wire::guard::TOKEN_LEN;
use hyphae_wire::handshake::{HandshakeError, HandshakeHeader, Offer};

use crate::Refusal;
use crate::handshake::Carrier;
use crate::keys::Kind;

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

/// Whether an offer lists a distinct index for each lane, at the worker that owns it.
pub(crate) fn lanes_valid(offer: &Offer, lanes: u16) -> bool {
    let distinct: BTreeSet<_> = offer.lanes.iter().collect();
    offer.lanes.len() == usize::from(lanes)
        && distinct.len() == offer.lanes.len()
        && (0..lanes)
            .zip(&offer.lanes)
            .all(|(lane, index)| index.0 != 0 && index.worker() == Lane(lane).worker(offer.workers))
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
