//! The real engine as a node of the world.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyphae_routing::babel::{Config, Counters, Speaker, Verifier, Xeddsa};
use hyphae_time::Nanos;
use hyphae_wire::babel::Origin;

use hyphae_wire::{PublicKey, SecretKey};

use crate::engine::{Effects, Engine};

/// Results of signature checks.
type Answers = HashMap<(PublicKey, [u8; 64], [u8; Origin::MESSAGE_LEN]), bool>;

/// Verifies every distinct signature once for all nodes: a thousand nodes see the same thousand signatures.
#[derive(Clone, Debug, Default)]
pub struct VerifyCache(Arc<Mutex<Answers>>);

impl VerifyCache {
    /// Distinct signatures checked.
    pub fn checked(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Verifier for VerifyCache {
    fn verify(&mut self, origin: &Origin, message: &[u8]) -> bool {
        let Ok(asked) = message.try_into() else {
            return Xeddsa.verify(origin, message);
        };
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *answers
            .entry((origin.key, origin.signature.0, asked))
            .or_insert_with(|| Xeddsa.verify(origin, message))
    }
}

/// A node that runs [`Speaker`].
pub struct RoutingNode(Speaker);

impl RoutingNode {
    /// A node with the default configuration. `epoch` is the start's, as in [`Config::epoch`].
    pub fn new(secret: &SecretKey, epoch: u32, now: Nanos, seed: u64, cache: &VerifyCache) -> Self {
        let config = Config::new(secret.clone(), epoch);
        Self(Speaker::new(now, config, seed, Box::new(cache.clone())))
    }

    /// Withdraws all announcements: the node is only a relay.
    pub fn withdraw_all(&mut self, now: Nanos) {
        let announced: Vec<_> = self.0.announced().collect();
        for prefix in announced {
            self.0.withdraw(now, prefix);
        }
    }

    /// Limits the destinations that it knows.
    pub fn limit_routes(&mut self, now: Nanos, max: usize) {
        self.0.set_routes_max(now, max);
    }

    /// Counters of the engine.
    pub fn counters(&self) -> &Counters {
        self.0.counters()
    }

    /// The engine.
    pub fn speaker(&self) -> &Speaker {
        &self.0
    }
}

impl Engine for RoutingNode {
    fn peer_up(&mut self, now: Nanos, peer: u32, key: PublicKey) {
        self.0.link_up(now, peer, key);
    }

    fn peer_down(&mut self, now: Nanos, peer: u32, _: PublicKey) {
        self.0.link_down(now, peer);
    }

    fn handle_packet(&mut self, now: Nanos, peer: u32, packet: &[u8]) {
        self.0.handle_packet(now, peer, now, packet);
    }

    fn handle_timeout(&mut self, now: Nanos) {
        self.0.handle_timeout(now);
    }

    fn drain(&mut self, _: Nanos, effects: &mut Effects) {
        while let Some(transmit) = self.0.poll_transmit() {
            effects.packets.push((transmit.link, transmit.packet));
        }
        while let Some(change) = self.0.poll_route() {
            let hops = change.route.map(|route| route.next_hops);
            let peers = hops.into_iter().flatten().map(|hop| hop.link).collect();
            effects.routes.push((change.prefix, peers));
        }
        while self.0.poll_refusal().is_some() {}
    }

    fn poll_timeout(&self) -> Option<Nanos> {
        self.0.poll_timeout()
    }
}
