//! Configured peers: connection attempts and their schedule.
//!
//! An entry is a list of addresses, with or without a key. Which peer it leads to is unknown until it answers;
//! entries that lead to the same key share one peer and one link.

use std::time::Duration;

use hyphae_shm::record::PEERS_MAX;
use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, PublicKey};

use crate::association::Association;
use crate::engine::Timer;
use crate::handshake::{
    CONFIRM_TIMEOUT, Carrier, Goal, RETRY_FIRST, RETRY_MAX_JUST_NOW, RETRY_MAX_RECENT,
    RetransmitSchedule,
};
use crate::ids::Owner;
use crate::target_state::Target;
use crate::{ConfiguredPeer, DownReason, Overlay, PeerConfig, Refusal};

/// Time to the next attempt at a refused entry, which rarely changes soon.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// Time since a peer was up within which it is retried at once.
const JUST_NOW: Duration = Duration::from_secs(60);
/// Time since a peer was up within which it is retried often.
const RECENT: Duration = Duration::from_secs(600);

impl Overlay {
    pub(crate) fn add_target(&mut self, now: Nanos, peer: PeerConfig) {
        self.drop_target(peer.id);
        let target = Target {
            addresses: peer.addresses,
            key: peer.key,
            peer: None,
            outgoing: None,
            failures: 0,
            refusal: None,
            backoff: RETRY_FIRST,
            up_at: None,
        };
        let key = target.key;
        self.targets.insert(peer.id, target);
        self.find_target(peer.id);
        self.refresh_paths_of(now, peer.id, key);
        self.connect_target(now, peer.id);
    }

    pub(crate) fn set_target_addresses(
        &mut self,
        now: Nanos,
        id: ConfiguredPeer,
        addresses: Vec<Endpoint>,
    ) {
        let Some(target) = self
            .targets
            .get_mut(&id)
            .filter(|t| t.addresses != addresses)
        else {
            return;
        };
        target.addresses = addresses;
        target.start_over();
        if let Some(outgoing) = self.unanswered(id) {
            self.abandon(outgoing);
        }
        self.find_target(id);
        self.refresh_paths_of(now, id, None);
        self.connect_target(now, id);
    }

    pub(crate) fn remove_target(&mut self, now: Nanos, id: ConfiguredPeer) -> bool {
        let Some(target) = self.drop_target(id) else {
            return false;
        };
        if let Some(key) = target.key.or(target.peer) {
            if self.targets_of(key).next().is_none() {
                self.end_peer(now, key);
            } else {
                self.refresh_paths(now, key);
            }
        }
        true
    }

    pub(crate) fn remove_key(&mut self, now: Nanos, key: &PublicKey) -> bool {
        let targets: Vec<_> = self.targets_of(*key).collect();
        for id in &targets {
            self.drop_target(*id);
        }
        self.end_peer(now, *key) || !targets.is_empty()
    }

    /// Updates the candidates of a peer after the addresses of an entry changed.
    pub(crate) fn refresh_paths_of(
        &mut self,
        now: Nanos,
        id: ConfiguredPeer,
        key: Option<PublicKey>,
    ) {
        let target = self.targets.get(&id);
        if let Some(key) = key.or(target.and_then(|target| target.key.or(target.peer))) {
            self.refresh_paths(now, key);
        }
    }

    /// Retries every entry without a link at once, after the host's network changed.
    pub fn retry_now(&mut self, now: Nanos) {
        let waiting: Vec<_> = self.targets.keys().copied().collect();
        for id in waiting {
            let up = |key| self.is_up(key);
            let Some(target) = self.targets.get(&id) else {
                continue;
            };
            if target.key.or(target.peer).is_some_and(up) || target.refusal.is_some() {
                continue;
            }
            if let Some(outgoing) = self.unanswered(id) {
                self.abandon(outgoing);
            }
            if let Some(target) = self.targets.get_mut(&id) {
                target.start_over();
            }
            self.connect_target(now, id);
        }
    }

    fn drop_target(&mut self, id: ConfiguredPeer) -> Option<Target> {
        let target = self.targets.remove(&id)?;
        self.timers.set(Timer::Target(id), Nanos::NEVER);
        // A handshake that waits for confirmation is about to be the peer's session, and ends with it.
        if let Some(outgoing) = target.outgoing {
            self.abandon(outgoing);
        }
        Some(target)
    }

    /// Ends the link with a peer.
    fn end_peer(&mut self, now: Nanos, key: PublicKey) -> bool {
        let Some(owner) = self.peer_numbers.get(&key).map(|peer| Owner::Peer(*peer)) else {
            return false;
        };
        if let Some(id) = self.associations.get(&owner).and_then(|a| a.outgoing) {
            self.abandon(id);
        }
        self.end_sessions(now, owner, true, DownReason::Removed);
        true
    }

    /// Entries that lead to a key.
    pub(crate) fn targets_of(&self, key: PublicKey) -> impl Iterator<Item = ConfiguredPeer> {
        self.targets
            .iter()
            .filter(move |(_, t)| t.leads_to(key))
            .map(|(id, _)| *id)
    }

    /// Finds the peer of an entry among those that are up, by address.
    pub(crate) fn find_target(&mut self, id: ConfiguredPeer) {
        let Some(target) = self.targets.get_mut(&id) else {
            return;
        };
        // A peer with a datagram address may be connected over a stream.
        let falls_back = self.config.stream_fallback_after.is_some();
        let leads = |to: Endpoint| {
            target.addresses.contains(&to)
                || falls_back && target.addresses.contains(&to.datagram())
        };
        let found = self
            .associations
            .iter()
            .filter(|(owner, a)| matches!(owner, Owner::Peer(_)) && a.up && leads(a.endpoint));
        target.peer = found
            .filter_map(|(_, a)| a.key)
            .find(|key| target.key.is_none_or(|k| k == *key));
    }

    /// Begins a handshake with a configured peer unless there is a link or a handshake.
    pub(crate) fn connect_target(&mut self, now: Nanos, id: ConfiguredPeer) {
        if !self.is_active() {
            return;
        }
        let Some(target) = self.targets.get(&id).filter(|t| t.outgoing.is_none()) else {
            return;
        };
        if target
            .key
            .or(target.peer)
            .is_some_and(|key| self.is_up(key))
        {
            return;
        }
        if target.key == Some(self.key) {
            self.target_failed(now, id, Some(Refusal::OwnKey), now);
            return;
        }
        let pinned = target.key.map(|key| (key, self.config.policy.check(&key)));
        let carriers = target
            .addresses
            .iter()
            .filter(|endpoint| !endpoint.is_unset());
        let carriers: Vec<_> = carriers.map(|endpoint| Carrier::to(*endpoint)).collect();
        let Some(first) = carriers.first() else {
            return;
        };
        if let Some((key, Err(reason))) = pinned {
            self.refuse(Some(key), *first, reason);
            self.target_failed(now, id, Some(reason), now);
            return;
        }
        let recent = |at: Nanos| now.since(at) < RECENT;
        let max = match target.up_at {
            Some(at) if now.since(at) < JUST_NOW => RETRY_MAX_JUST_NOW,
            Some(at) if recent(at) => RETRY_MAX_RECENT,
            Some(_) | None => self.config.retry_max.max(RETRY_MAX_RECENT),
        };
        let first = target.backoff.min(max);
        let outgoing = self.begin(
            now,
            Goal::Target(id),
            carriers,
            RetransmitSchedule { first, max },
        );
        if let Some(target) = self.targets.get_mut(&id) {
            target.outgoing = outgoing;
        }
        if outgoing.is_none() {
            self.target_failed(now, id, None, now);
        }
    }

    /// An attempt failed. The next one is not due before `next_at`.
    pub(crate) fn target_failed(
        &mut self,
        now: Nanos,
        id: ConfiguredPeer,
        refusal: Option<Refusal>,
        next_at: Nanos,
    ) {
        let Some(target) = self.targets.get_mut(&id) else {
            return;
        };
        target.failures = target.failures.saturating_add(1);
        // Silence does not clear the refusal of another network.
        target.refusal = refusal.or(target
            .refusal
            .filter(|r| matches!(r, Refusal::Network { .. })));
        let wait = if refusal.is_some() {
            REFUSED_RETRY
        } else {
            RETRY_FIRST
        };
        let at = now + self.rng.jitter(wait, 50, 150);
        self.timers.set(Timer::Target(id), at.max(next_at));
    }

    /// Retries every entry of a peer that went down, with jitter.
    pub(crate) fn reconnect_targets(&mut self, now: Nanos, key: PublicKey) {
        let targets: Vec<_> = self.targets_of(key).collect();
        for id in targets {
            let at = now + self.rng.jitter(RETRY_FIRST, 0, 100);
            if let Some(target) = self.targets.get_mut(&id) {
                target.start_over();
                target.up_at = Some(now);
            }
            self.timers.set(Timer::Target(id), at);
        }
    }

    /// Records the peer that an entry leads to. True when that peer has a link or a handshake already.
    pub(crate) fn bind_target(&mut self, now: Nanos, id: ConfiguredPeer, key: PublicKey) -> bool {
        let served = self.is_up(key)
            || self
                .peer(key)
                .is_some_and(|association| association.outgoing.is_some());
        if let Some(target) = self.targets.get_mut(&id) {
            target.peer = Some(key);
            target.refusal = None;
        }
        if served {
            self.refresh_paths(now, key);
            self.timers
                .set(Timer::Target(id), now + CONFIRM_TIMEOUT * 2);
        }
        served
    }

    /// Ends the attempts of a peer that is up.
    pub(crate) fn satisfy_targets(&mut self, now: Nanos, key: PublicKey) {
        let targets: Vec<_> = self.targets_of(key).collect();
        for id in targets {
            if let Some(outgoing) = self.targets.get(&id).and_then(|target| target.outgoing) {
                self.abandon(outgoing);
            }
            if let Some(target) = self.targets.get_mut(&id) {
                target.start_over();
                target.refusal = None;
                target.up_at = Some(now);
            }
        }
    }

    pub(crate) fn peer(&self, key: PublicKey) -> Option<&Association> {
        self.associations
            .get(&Owner::Peer(*self.peer_numbers.get(&key)?))
    }

    /// Whether a peer is up.
    pub fn is_up(&self, key: PublicKey) -> bool {
        self.peer(key).is_some_and(|association| association.up)
    }

    /// The peer of a key, created where it is missing. Numbers are assigned cyclically, so that one is not soon
    /// reused.
    pub(crate) fn ensure_peer(&mut self, key: PublicKey) -> Option<Owner> {
        if let Some(peer) = self.peer_numbers.get(&key) {
            return Some(Owner::Peer(*peer));
        }
        let last = self.peer_number_last;
        let peer = (1..=PEERS_MAX)
            .map(|step| (last + step) % PEERS_MAX)
            .find(|peer| !self.associations.contains_key(&Owner::Peer(*peer)))?;
        self.peer_number_last = peer;
        self.peer_numbers.insert(key, peer);
        let association = Association::new(Some(key), key.address(), Endpoint::default());
        self.associations.insert(Owner::Peer(peer), association);
        self.install_peer(peer, key);
        Some(Owner::Peer(peer))
    }
}
