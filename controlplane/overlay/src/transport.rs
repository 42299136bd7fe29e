//! Transport of a link: datagrams, or a stream where UDP is blocked.
//!
//! A peer with a datagram address is tried by datagram first. After some silence the same first message is sent
//! on a stream to that address too, and the first answer wins, so no state of the path is stored. While the link
//! is on a stream, the datagram address is a candidate like any other and measured every
//! [`crate::Config::stream_upgrade_every`]; when it answers, the link moves as in every renewal, without loss
//! (see [`crate::paths`]).

use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::Endpoint;

use crate::Overlay;
use crate::handshake::{Carrier, Fallback, Goal, RETRANSMIT_MAX, Stage};
use crate::ids::Owner;

/// Head start of datagrams over streams for a peer that failed to answer before.
const HEAD_START: Duration = Duration::from_secs(1);
/// Shortest retransmission interval on a stream, which retransmits itself: a missing answer means that the
/// connection was not established.
const AGAIN: Duration = Duration::from_secs(2);

impl Overlay {
    /// Streams that a handshake may fall back to, and from which time on.
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

    /// Sends the first message of a handshake on a stream when it is due.
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
