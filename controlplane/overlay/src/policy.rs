//! Admission of peers: allowed keys and limits.
//!
//! The policy applies to links only; end-to-end sessions are with the owner of an address. It is checked before
//! any state is created for a key: for a handshake initiated by another node once its third message has
//! authenticated the key, for one initiated by this node once the second has.

use std::collections::BTreeSet;

use hyphae_time::Nanos;

use hyphae_wire::PublicKey;

use crate::handshake::Carrier;
use crate::ids::Owner;
use crate::source::source_of;
use crate::{DownReason, Overlay, Refusal};

/// Who may be a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Allowed keys; `None` allows all.
    pub allow: Option<BTreeSet<PublicKey>>,
    /// Denied keys; they take precedence over `allow`.
    pub deny: BTreeSet<PublicKey>,
    /// Most inbound peers, in addition to the configured ones.
    pub inbound_max: usize,
    /// The same per underlay address (IPv6: per /64).
    pub inbound_per_source_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow: None,
            deny: BTreeSet::new(),
            inbound_max: 896,
            inbound_per_source_max: 64,
        }
    }
}

impl Policy {
    /// Whether a key may be a peer.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, key: &PublicKey) -> Result<(), Refusal> {
        if self.deny.contains(key) {
            return Err(Refusal::Denied);
        }
        match &self.allow {
            Some(allow) if !allow.contains(key) => Err(Refusal::NotAllowed),
            Some(_) | None => Ok(()),
        }
    }
}

impl Overlay {
    /// Who may be a peer.
    pub fn policy(&self) -> &Policy {
        &self.config.policy
    }

    /// Replaces the policy: links with keys that it refuses end, entries that it refused are tried again.
    pub fn set_policy(&mut self, now: Nanos, policy: Policy) {
        self.config.policy = policy;
        self.enforce_policy(now);
        let targets: Vec<_> = self.targets.keys().copied().collect();
        for id in targets {
            let refused =
                |refusal: &Refusal| matches!(refusal, Refusal::Denied | Refusal::NotAllowed);
            let target = self.targets.get_mut(&id);
            if let Some(target) = target.filter(|t| t.refusal.as_ref().is_some_and(refused)) {
                target.refusal = None;
                self.connect_target(now, id);
            }
        }
    }

    /// Ends links that the policy does not allow, including those that a predecessor admitted.
    pub(crate) fn enforce_policy(&mut self, now: Nanos) {
        let refused: Vec<_> = self
            .peer_numbers
            .iter()
            .filter(|(key, _)| self.config.policy.check(key).is_err())
            .map(|(_, peer)| Owner::Peer(*peer))
            .collect();
        for owner in refused {
            if let Some(id) = self.associations.get(&owner).and_then(|a| a.outgoing) {
                self.abandon(id);
            }
            self.end_sessions(now, owner, true, DownReason::Refused);
        }
    }

    /// Admits an inbound peer. In a full table one of the largest source is evicted.
    pub(crate) fn admit(
        &mut self,
        now: Nanos,
        key: PublicKey,
        carrier: Carrier,
    ) -> Result<(), Refusal> {
        match self.admitted(key, carrier) {
            Err(Refusal::PeersMax | Refusal::InboundMax) if self.inbound_room(now, carrier) => {
                self.admitted(key, carrier)
            }
            decided => decided,
        }
    }

    /// The same without eviction.
    pub(crate) fn admitted(&self, key: PublicKey, carrier: Carrier) -> Result<(), Refusal> {
        self.config.policy.check(&key)?;
        if self.peer_numbers.contains_key(&key) || self.targets_of(key).next().is_some() {
            return Ok(());
        }
        if self.peer_numbers.len() >= self.config.peers_max {
            return Err(Refusal::PeersMax);
        }
        let configured: BTreeSet<_> = self
            .targets
            .values()
            .filter_map(|target| target.key.or(target.peer))
            .collect();
        // One pass over the peers per finished inbound handshake.
        let source = carrier.source();
        let (mut inbound, mut here) = (0, 0);
        for (owner, association) in self.associations.range(Owner::Peer(0)..) {
            if !matches!(owner, Owner::Peer(_)) {
                break;
            }
            if association.key.is_some_and(|key| configured.contains(&key)) {
                continue;
            }
            inbound += 1;
            here += usize::from(source_of(association.endpoint) == source);
        }
        if inbound >= self.config.policy.inbound_max {
            return Err(Refusal::InboundMax);
        }
        if here >= self.config.policy.inbound_per_source_max {
            return Err(Refusal::SourceMax);
        }
        Ok(())
    }
}
