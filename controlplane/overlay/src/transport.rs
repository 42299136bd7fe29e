//! Which transport a link uses: datagrams where they pass, a stream where they do not.
//!
//! A peer that is given as a datagram address is tried by datagram first. When nothing answers for a
//! while, the same first message goes to a stream with that address too, and the first answer
//! wins: there is no state of a path that has to be right, only what works now. While the link is
//! on a stream, the datagram address is a candidate like any other address of the peer, and
//! measured every [`crate::Config::stream_upgrade_every`]; when it answers the link moves over as
//! it does with every renewal, so nothing is lost (see [`crate::paths`]).

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::Endpoint;

use crate::Overlay;
use crate::handshake::{Carrier, Fallback, Goal, RETRANSMIT_MAX, Stage};
use crate::session::Owner;

/// Start of datagrams over streams with a peer that has not answered for long.
const HEAD_START: Duration = Duration::from_secs(1);
/// First interval between repetitions over a stream, which repeats what is lost itself: after this
/// time it is the connection that did not come about.
const AGAIN: Duration = Duration::from_secs(2);

impl Overlay {
    /// Streams that a handshake may fall back to, and from when on.
    pub(crate) fn fallback(&self, now: Nanos, goal: Goal) -> Fallback {
        let Some(after) = self.config.stream_fallback_after else {
            return Fallback::NONE;
        };
        let (addresses, after) = match goal {
            Goal::Target(id) => match self.targets.get(&id) {
                Some(target) if target.failures > 0 => {
                    (target.addresses.clone(), after.min(HEAD_START))
                }
                Some(target) => (target.addresses.clone(), after),
                None => (Vec::new(), after),
            },
            Goal::Node { owner, .. } => (self.configured_addresses(owner), after),
            Goal::Probe { .. } => (Vec::new(), after),
        };
        let carriers: Vec<_> = addresses
            .into_iter()
            .filter(|address| !address.is_stream() && !address.is_unset())
            .map(|address| Carrier::to(address.stream()))
            .collect();
        if carriers.is_empty() {
            return Fallback::NONE;
        }
        Fallback {
            carriers,
            sent: 0,
            next_at: now + after,
        }
    }

    /// Sends the first message of a handshake over a stream, when it is time.
    pub(crate) fn fall_back(&mut self, now: Nanos, id: u32) {
        let Some(outgoing) = self.outgoing.get_mut(&id) else {
            return;
        };
        let again = outgoing.interval.clamp(AGAIN, RETRANSMIT_MAX);
        let fallback = &mut outgoing.fallback;
        if now < fallback.next_at || !matches!(outgoing.stage, Stage::Response(_)) {
            return;
        }
        let turn = usize::try_from(fallback.sent).unwrap_or(0) % fallback.carriers.len().max(1);
        let Some(stream) = fallback.carriers.get(turn).copied() else {
            return;
        };
        fallback.sent = fallback.sent.wrapping_add(1);
        fallback.next_at = now + self.rng.jitter(again, 75, 125);
        let message = outgoing.message_to(stream, 0);
        self.send_handshake(stream, &message);
    }

    /// Addresses of the entries that lead to a peer.
    fn configured_addresses(&self, owner: Owner) -> Vec<Endpoint> {
        let association = self.associations.get(&owner);
        let key = association.and_then(|a| a.key);
        let (Owner::Peer(_), Some(key)) = (owner, key) else {
            return Vec::new();
        };
        let targets = self.targets_of(key).filter_map(|id| self.targets.get(&id));
        let addresses = targets.flat_map(|target| target.addresses.iter().copied());
        addresses.collect()
    }
}
