//! Candidate routes and the selection among them.
//!
//! Two kinds of candidates: *connected* (the /64 of every peer that is up) and *static* (a prefix
//! via a peer's key or via an overlay address, which is resolved through the other routes). A
//! candidate whose next hop is not up is kept, but has no FIB entry. Among the candidates of one
//! prefix the lowest metric wins, then connected before static, then the lower [`Via`].
//!
//! Invariant: after a mutation, `selected` is what the candidates say, and `dirty` names every
//! prefix whose entry in the workers may differ from it.

use std::collections::{BTreeMap, BTreeSet};

use hyphae_shm::record::FibReplace;
use hyphae_wire::address::OVERLAY_RANGE;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey};

use crate::FibChange;
use crate::fib;

/// Metric of a connected route.
pub const METRIC_CONNECTED: u16 = 0;
/// Metric of a static route that states none.
pub const METRIC_STATIC: u16 = 256;
/// Static routes that lead from one to the next until a peer is found.
const RESOLVE_DEPTH_MAX: u8 = 3;

/// Where a static route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// To the peer with this key.
    Peer(PublicKey),
    /// To where frames for this address go.
    Address(OverlayAddress),
}

/// A route given by the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// Destinations.
    pub prefix: Prefix,
    /// Where they are reached.
    pub via: Via,
    /// Lower is better.
    pub metric: u16,
}

/// Where a selected route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The /64 of a peer.
    Connected,
    /// The operator.
    Static,
}

/// A route in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectedRoute {
    /// Destinations.
    pub prefix: Prefix,
    /// Number of the peer that frames go to.
    pub peer: u32,
    /// Key of that peer.
    pub next_hop: PublicKey,
    /// Lower is better.
    pub metric: u16,
    /// Where it comes from.
    pub origin: Origin,
}

/// Why a static route was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Only overlay addresses are routed.
    #[error("{0} is not part of the overlay range, {OVERLAY_RANGE}")]
    OutsideOverlay(Prefix),
    /// Traffic to this node's own /64 is delivered here.
    #[error("{0} belongs to this node itself")]
    OwnSubnet(Prefix),
    /// A route of this prefix through itself never resolves.
    #[error("the next hop {1} is this node itself")]
    OwnNextHop(Prefix, OverlayAddress),
}

/// The routing information base of one node.
#[derive(Debug)]
pub struct Rib {
    own: OverlayAddress,
    /// Peers that are up, by key.
    peers: BTreeMap<PublicKey, u32>,
    /// /64 of each peer that is up.
    connected: BTreeMap<Prefix, PublicKey>,
    statics: BTreeMap<(Prefix, Via), u16>,
    selected: BTreeMap<Prefix, SelectedRoute>,
    dirty: BTreeSet<Prefix>,
}

impl Rib {
    /// An empty RIB of the node with this address.
    pub fn new(own: OverlayAddress) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            connected: BTreeMap::new(),
            statics: BTreeMap::new(),
            selected: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// A peer is up under this number.
    pub fn peer_up(&mut self, peer: u32, key: PublicKey) {
        self.peers.insert(key, peer);
        self.connected.insert(key.address().subnet(), key);
        self.select(Some(key.address().subnet()));
    }

    /// A peer is down.
    pub fn peer_down(&mut self, key: &PublicKey) {
        self.peers.remove(key);
        self.connected.remove(&key.address().subnet());
        self.select(Some(key.address().subnet()));
    }

    /// Adds a static route, or changes the metric of one with the same prefix and next hop. False
    /// when it was there already, just so.
    ///
    /// # Errors
    /// When it could never carry anything.
    pub fn add_static(&mut self, route: StaticRoute) -> Result<bool, RouteError> {
        let StaticRoute {
            prefix,
            via,
            metric,
        } = route;
        if !OVERLAY_RANGE.covers(prefix) {
            return Err(RouteError::OutsideOverlay(prefix));
        }
        if self.own.subnet().covers(prefix) {
            return Err(RouteError::OwnSubnet(prefix));
        }
        let next = match via {
            Via::Peer(key) => key.address(),
            Via::Address(address) => address,
        };
        if self.own.subnet().contains(next) {
            return Err(RouteError::OwnNextHop(prefix, next));
        }
        let changed = self.statics.insert((prefix, via), metric) != Some(metric);
        self.select(None);
        Ok(changed)
    }

    /// Removes the static routes of a prefix, or only the one via `via`. False when there was none.
    pub fn remove_static(&mut self, prefix: Prefix, via: Option<Via>) -> bool {
        let before = self.statics.len();
        self.statics
            .retain(|(p, v), _| *p != prefix || via.is_some_and(|via| via != *v));
        self.select(Some(prefix));
        self.statics.len() != before
    }

    /// Static routes as given, in use or not.
    pub fn static_routes(&self) -> impl Iterator<Item = StaticRoute> {
        self.statics
            .iter()
            .map(|((prefix, via), metric)| StaticRoute {
                prefix: *prefix,
                via: *via,
                metric: *metric,
            })
    }

    /// Routes in use, by prefix.
    pub fn routes(&self) -> impl Iterator<Item = &SelectedRoute> {
        self.selected.values()
    }

    /// The route that frames to `address` take: the longest matching prefix.
    pub fn lookup(&self, address: OverlayAddress) -> Option<&SelectedRoute> {
        self.selected
            .values()
            .filter(|r| r.prefix.contains(address))
            .max_by_key(|r| r.prefix.len())
    }

    /// The next change for the workers.
    pub fn poll_fib(&mut self) -> Option<FibChange> {
        let prefix = self.dirty.pop_first()?;
        Some(match self.selected.get(&prefix) {
            Some(route) => FibChange::Replace(fib::replace(prefix, route.peer)),
            None => FibChange::Remove(fib::remove(prefix)),
        })
    }

    /// Every entry, for a resync; what was to be polled is part of it or swept by it.
    pub fn replay_all(&mut self) -> Vec<FibReplace> {
        self.dirty.clear();
        self.selected
            .values()
            .map(|route| fib::replace(route.prefix, route.peer))
            .collect()
    }

    /// Selects anew for every prefix with a static route (any of them may resolve through what has
    /// changed) and for `changed`.
    fn select(&mut self, changed: Option<Prefix>) {
        let prefixes: BTreeSet<_> = self
            .statics
            .keys()
            .map(|(prefix, _)| *prefix)
            .chain(changed)
            .collect();
        for prefix in prefixes {
            let best = self.best(prefix, RESOLVE_DEPTH_MAX);
            let before = match best {
                Some(route) => self.selected.insert(prefix, route),
                None => self.selected.remove(&prefix),
            };
            if before.map(|route| route.peer) != best.map(|route| route.peer) {
                self.dirty.insert(prefix);
            }
        }
    }

    /// The best candidate of a prefix whose next hop is up.
    fn best(&self, prefix: Prefix, depth: u8) -> Option<SelectedRoute> {
        let route = |key: PublicKey, metric, origin| {
            let peer = *self.peers.get(&key)?;
            Some(SelectedRoute {
                prefix,
                peer,
                next_hop: key,
                metric,
                origin,
            })
        };
        let connected = self
            .connected
            .get(&prefix)
            .and_then(|key| route(*key, METRIC_CONNECTED, Origin::Connected));
        let bounds = (prefix, Via::Peer(PublicKey([0; 32])))
            ..=(prefix, Via::Address(OverlayAddress([0xff; 16])));
        let statics = self.statics.range(bounds).filter_map(|((_, via), metric)| {
            let key = match via {
                Via::Peer(key) => *key,
                Via::Address(address) => self.resolve(*address, prefix, depth)?,
            };
            route(key, *metric, Origin::Static)
        });
        connected
            .into_iter()
            .chain(statics)
            .min_by_key(|route| (route.metric, route.origin))
    }

    /// The peer that leads to `address`, by the longest prefix other than `not`: a route does not
    /// resolve through itself.
    fn resolve(&self, address: OverlayAddress, not: Prefix, depth: u8) -> Option<PublicKey> {
        let depth = depth.checked_sub(1)?;
        let candidates: BTreeSet<_> = self
            .connected
            .get_key_value(&address.subnet())
            .map(|(prefix, _)| *prefix)
            .into_iter()
            .chain(self.statics.keys().map(|(prefix, _)| *prefix))
            .filter(|prefix| prefix.contains(address) && *prefix != not)
            .map(|prefix| (std::cmp::Reverse(prefix.len()), prefix))
            .collect();
        candidates
            .into_iter()
            .find_map(|(_, prefix)| self.best(prefix, depth).map(|route| route.next_hop))
    }
}
