//! Status for the operator.

use std::collections::BTreeMap;

use hyphae_time::Nanos;

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::association::Association;
use crate::ids::Owner;
use crate::target_state::Target;
use crate::{ConfiguredPeer, Overlay, PeerState, PeerStatus, SessionStatus};

impl Overlay {
    /// Peers, then configured addresses that have not answered yet.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        // Asked once for all peers: each by itself would go through all entries.
        let mut entries: BTreeMap<PublicKey, Vec<ConfiguredPeer>> = BTreeMap::new();
        for (id, target) in &self.targets {
            if let Some(key) = target.key.or(target.peer) {
                entries.entry(key).or_default().push(*id);
            }
        }
        let known = self
            .associations
            .iter()
            .filter_map(move |(owner, association)| match owner {
                Owner::Peer(peer) => {
                    let configured = association.key.and_then(|key| entries.remove(&key));
                    Some(self.peer_status(*peer, association, configured.unwrap_or_default()))
                }
                Owner::Remote(_) => None,
            });
        let unknown = self.targets.iter().filter(|(_, target)| {
            target
                .key
                .or(target.peer)
                .is_none_or(|key| !self.peer_numbers.contains_key(&key))
        });
        known.chain(unknown.map(|(id, target)| target_status(*id, target)))
    }

    /// End-to-end sessions.
    pub fn sessions(&self) -> impl Iterator<Item = SessionStatus> {
        self.associations.iter().filter_map(|(owner, association)| {
            let session = association
                .current()
                .filter(|_| matches!(owner, Owner::Remote(_)))?;
            let key = association.key?;
            Some(SessionStatus {
                address: key.address(),
                key,
                suite: session.suite,
                lanes: session.lane_count(),
                lanes_active: session.lanes_active(),
                rtt: association.liveness.rtt.smoothed(),
                since: association.since.unwrap_or(session.created),
                direction: session.direction,
                handshakes: association.handshakes,
            })
        })
    }

    /// Addresses that a session is being made with, and when each attempt is given up.
    pub fn searching(&self) -> impl Iterator<Item = (OverlayAddress, Nanos)> {
        self.associations.iter().filter_map(|(owner, association)| {
            let remote = matches!(owner, Owner::Remote(_)) && association.current().is_none();
            let attempt = association.outgoing.filter(|_| remote)?;
            Some((association.address, self.outgoing.get(&attempt)?.expires_at))
        })
    }

    /// Key of a node that this one has or had a link or session with, or is configured with.
    pub fn key_of(&self, address: OverlayAddress) -> Option<PublicKey> {
        let subnet = address.subnet_id();
        let pinned = self.targets.values().filter_map(|target| target.key);
        let known = self
            .associations
            .values()
            .filter_map(|association| association.key);
        known
            .chain(pinned)
            .chain([self.key])
            .find(|key| key.address().subnet_id() == subnet)
    }

    fn peer_status(
        &self,
        peer: u32,
        association: &Association,
        configured: Vec<ConfiguredPeer>,
    ) -> PeerStatus {
        let session = association.current();
        let state = match (association.up, association.since) {
            (true, _) => PeerState::Up,
            (false, None) => PeerState::Connecting,
            (false, Some(_)) => PeerState::Down,
        };
        PeerStatus {
            key: association.key,
            address: association.key.map(|key| key.address()),
            peer: Some(peer),
            endpoint: association.endpoint,
            state,
            suite: session.map(|s| s.suite),
            lanes: session.map_or(0, |s| s.lane_count()),
            lanes_active: session.map_or(0, |s| s.lanes_active()),
            rtt: association.liveness.rtt.smoothed(),
            loss_permille: association.liveness.loss.permille(),
            since: association.since,
            direction: session.map(|s| s.direction),
            handshakes: association.handshakes,
            refusal: configured
                .iter()
                .find_map(|id| self.targets.get(id)?.refusal),
            duplicate: association.starts.duplicate(self.clock),
            configured,
        }
    }
}

fn target_status(id: ConfiguredPeer, target: &Target) -> PeerStatus {
    let key = target.key.or(target.peer);
    PeerStatus {
        key,
        address: key.map(|key| key.address()),
        peer: None,
        endpoint: target.addresses.first().copied().unwrap_or_default(),
        configured: vec![id],
        state: if target.failures == 0 {
            PeerState::Connecting
        } else {
            PeerState::Down
        },
        suite: None,
        lanes: 0,
        lanes_active: 0,
        rtt: None,
        loss_permille: None,
        since: None,
        direction: None,
        handshakes: 0,
        refusal: target.refusal,
        duplicate: None,
    }
}
