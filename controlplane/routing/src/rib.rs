//! Candidate routes and the selection among them.
//!
//! Three kinds of candidates: *connected* (the /64 of every peer that is up), *static* (a prefix
//! via a peer's key or via an overlay address, which is resolved through the other routes) and
//! *dynamic* (what the routing protocol has chosen, possibly with several next hops). A candidate
//! whose next hop is not up stays in the RIB without a FIB entry.
//!
//! For one prefix a static route is preferred, except over the /64 of a peer that is up, where it would add
//! nothing. Next is the dynamic route, which may avoid a bad direct link, then the connected one.
//! Among static routes the lowest metric wins, then the lower [`Via`].
//!
//! Invariant: after a mutation, `selected` is what the candidates determine, and `dirty` names every
//! prefix whose entry in the workers may differ from it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use hyphae_shm::record::FibReplace;
use hyphae_wire::address::OVERLAY_RANGE;
use hyphae_wire::{OverlayAddress, Prefix, PublicKey};

use crate::babel::DynamicRoute;
use crate::{FibChange, fib};

/// Metric of a connected route.
pub const METRIC_CONNECTED: u16 = 0;
/// Metric of a static route that states none.
pub const METRIC_STATIC: u16 = 256;
/// Recursion limit of static routes that resolve through each other.
const RESOLVE_DEPTH_MAX: u8 = 3;

/// Where a static route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// To the peer with this key.
    Peer(PublicKey),
    /// To the next hop of this address.
    Address(OverlayAddress),
}

/// A route given by the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    /// Destinations.
    pub prefix: Prefix,
    /// Next hop.
    pub via: Via,
    /// Lower is better.
    pub metric: u16,
}

/// Where a selected route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteSource {
    /// The /64 of a peer.
    Connected,
    /// The operator.
    Static,
    /// The routing protocol.
    Dynamic,
}

/// A peer that a route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Its number.
    pub peer: u32,
    /// Its key.
    pub key: PublicKey,
    /// Its share of the flows.
    pub weight: u16,
}

/// A route in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedRoute {
    /// Destinations.
    pub prefix: Prefix,
    /// Next hops, at least one; flows are distributed among them.
    pub next_hops: Vec<NextHop>,
    /// Lower is better.
    pub metric: u16,
    /// Sequence number of the routing protocol; 0 for others.
    pub seqno: u16,
    /// Key of the node that announced it, for dynamic routes.
    pub announcer: Option<PublicKey>,
    /// Where it comes from.
    pub origin: RouteSource,
}

impl SelectedRoute {
    /// Whether the FIB entries of the two differ.
    fn differs(&self, other: &Self) -> bool {
        (&self.next_hops, self.announcer) != (&other.next_hops, other.announcer)
    }
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
    /// Prefixes outside of the overlay that this node is the gateway of.
    served: BTreeSet<Prefix>,
    /// Prefixes within which the host uses other gateways.
    used: Vec<Prefix>,
    /// Peers that are up, by key and by number.
    peers: BTreeMap<PublicKey, u32>,
    keys: BTreeMap<u32, PublicKey>,
    /// /64 of each peer that is up.
    connected: BTreeMap<Prefix, PublicKey>,
    statics: BTreeMap<(Prefix, Via), u16>,
    /// Static routes via an address, by that address: only they depend on other prefixes, those that cover it.
    resolved: BTreeSet<(OverlayAddress, Prefix)>,
    dynamic: BTreeMap<Prefix, DynamicRoute>,
    selected: BTreeMap<Prefix, SelectedRoute>,
    /// How many selected routes have each prefix length.
    lengths: [u32; 129],
    dirty: BTreeSet<Prefix>,
}

impl Rib {
    /// An empty RIB of the node with this address.
    pub fn new(own: OverlayAddress) -> Self {
        Self {
            own,
            served: BTreeSet::new(),
            used: Vec::new(),
            peers: BTreeMap::new(),
            keys: BTreeMap::new(),
            connected: BTreeMap::new(),
            statics: BTreeMap::new(),
            resolved: BTreeSet::new(),
            dynamic: BTreeMap::new(),
            selected: BTreeMap::new(),
            lengths: [0; 129],
            dirty: BTreeSet::new(),
        }
    }

    /// Sets the prefixes outside of the overlay that this node is the gateway of, and those within
    /// which it sends to other gateways.
    pub fn set_gateways(&mut self, served: &[Prefix], used: &[Prefix]) {
        let before = std::mem::replace(&mut self.served, served.iter().copied().collect());
        self.used = used.to_vec();
        self.dirty.extend(before);
        self.dirty.extend(&self.served);
        let outside = self.selected.keys().filter(|p| !OVERLAY_RANGE.covers(**p));
        self.dirty.extend(outside);
    }

    /// Whether the host sends to a prefix through the gateway that announces it.
    pub fn uses(&self, prefix: Prefix) -> bool {
        !self.served.contains(&prefix) && self.used.iter().any(|used| used.covers(prefix))
    }

    /// A peer is up under this number.
    pub fn peer_up(&mut self, peer: u32, key: PublicKey) {
        self.peers.insert(key, peer);
        self.keys.insert(peer, key);
        self.connected.insert(key.address().subnet(), key);
        self.select_all(key.address().subnet());
    }

    /// A peer is down.
    pub fn peer_down(&mut self, key: &PublicKey) {
        if let Some(peer) = self.peers.remove(key) {
            self.keys.remove(&peer);
        }
        self.connected.remove(&key.address().subnet());
        self.select_all(key.address().subnet());
    }

    /// The routing protocol's route to a prefix, by numbers of peers; `None` when it has none.
    pub fn set_dynamic(&mut self, prefix: Prefix, route: Option<DynamicRoute>) {
        match route {
            Some(route) => self.dynamic.insert(prefix, route),
            None => self.dynamic.remove(&prefix),
        };
        self.select(prefix);
    }

    /// Adds a static route, or changes the metric of one with the same prefix and next hop. False when nothing
    /// changed.
    ///
    /// # Errors
    /// When it could never resolve.
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
        if let Via::Address(address) = via {
            self.resolved.insert((address, prefix));
        }
        self.select(prefix);
        Ok(changed)
    }

    /// Removes the static routes of a prefix, or only the one via `via`. False when there was none.
    pub fn remove_static(&mut self, prefix: Prefix, via: Option<Via>) -> bool {
        let given = self.statics.range(vias(prefix)).map(|((_, via), _)| *via);
        let removed: Vec<Via> = given
            .filter(|given| via.is_none_or(|via| via == *given))
            .collect();
        for via in &removed {
            self.statics.remove(&(prefix, *via));
            if let Via::Address(address) = via {
                self.resolved.remove(&(*address, prefix));
            }
        }
        self.select(prefix);
        !removed.is_empty()
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

    /// Selected routes, by prefix.
    pub fn routes(&self) -> impl Iterator<Item = &SelectedRoute> {
        self.selected.values()
    }

    /// The route that frames to `address` take: the longest matching prefix.
    pub fn lookup(&self, address: OverlayAddress) -> Option<&SelectedRoute> {
        (0..=128)
            .rev()
            .filter(|len| self.lengths[usize::from(*len)] > 0)
            .find_map(|len| self.selected.get(&Prefix::new(address, len)))
    }

    /// The route to exactly this prefix.
    pub fn route(&self, prefix: Prefix) -> Option<&SelectedRoute> {
        self.selected.get(&prefix)
    }

    /// Whether a peer is up.
    pub fn is_up(&self, key: &PublicKey) -> bool {
        self.peers.contains_key(key)
    }

    /// The peer with this address, if it is up.
    pub fn neighbour(&self, address: OverlayAddress) -> Option<PublicKey> {
        let key = self.connected.get(&address.subnet())?;
        (key.address() == address).then_some(*key)
    }

    /// The next change for the workers.
    pub fn poll_fib(&mut self) -> Option<FibChange> {
        let prefix = self.dirty.pop_first()?;
        Some(match self.entry(prefix) {
            Some(entry) => FibChange::Replace(entry),
            None => FibChange::Remove(fib::remove(prefix)),
        })
    }

    /// What the workers have for a prefix.
    fn entry(&self, prefix: Prefix) -> Option<FibReplace> {
        if self.served.contains(&prefix) {
            return Some(fib::behind(prefix, self.own));
        }
        let route = self.selected.get(&prefix)?;
        if OVERLAY_RANGE.covers(prefix) {
            let hops = route.next_hops.iter().map(|hop| (hop.peer, hop.weight));
            return Some(fib::replace(prefix, hops));
        }
        // Packets of other nodes to it travel in frames to its gateway.
        let gateway = route.announcer.filter(|_| self.uses(prefix))?;
        Some(fib::behind(prefix, gateway.address()))
    }

    /// Every entry, for a resynchronisation, which includes all pending changes.
    pub fn replay_all(&mut self) -> Vec<FibReplace> {
        self.dirty.clear();
        let prefixes: BTreeSet<_> = self.served.iter().chain(self.selected.keys()).collect();
        prefixes
            .into_iter()
            .filter_map(|p| self.entry(*p))
            .collect()
    }

    /// Selects again for a prefix and for those whose routes resolve through it.
    fn select(&mut self, changed: Prefix) {
        let mut changed = vec![changed];
        for _ in 0..=RESOLVE_DEPTH_MAX {
            changed.retain(|prefix| self.select_one(*prefix));
            let dependent = changed.iter().flat_map(|prefix| {
                let all = Prefix::new(OverlayAddress([0; 16]), 0);
                let first = u128::from_be_bytes(prefix.address().0);
                let rest = u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                let last = OverlayAddress((first | rest).to_be_bytes());
                let from = self.resolved.range((prefix.address(), all)..);
                from.take_while(move |(via, _)| *via <= last)
            });
            changed = dependent.map(|(_, prefix)| *prefix).collect();
        }
    }

    /// The same after a peer went up or down, which may affect any static route.
    fn select_all(&mut self, changed: Prefix) {
        let statics = self.statics.keys().map(|(prefix, _)| *prefix);
        let all: BTreeSet<_> = statics.chain([changed]).collect();
        for prefix in all {
            self.select_one(prefix);
        }
    }

    /// True when the FIB entry of the prefix changes.
    fn select_one(&mut self, prefix: Prefix) -> bool {
        let best = self.best(prefix, RESOLVE_DEPTH_MAX);
        let length = &mut self.lengths[usize::from(prefix.len())];
        let dirty = match best {
            Some(route) => match self.selected.entry(prefix) {
                Entry::Vacant(place) => {
                    place.insert(route);
                    *length += 1;
                    true
                }
                Entry::Occupied(mut place) => place.insert(route).differs(place.get()),
            },
            None => {
                let before = self.selected.remove(&prefix);
                *length -= u32::from(before.is_some());
                before.is_some()
            }
        };
        if dirty {
            self.dirty.insert(prefix);
        }
        dirty
    }

    /// The best candidate of a prefix whose next hop is up.
    fn best(&self, prefix: Prefix, depth: u8) -> Option<SelectedRoute> {
        let route = |key: PublicKey, metric, origin| {
            let peer = *self.peers.get(&key)?;
            Some(SelectedRoute {
                prefix,
                next_hops: vec![NextHop {
                    peer,
                    key,
                    weight: 1,
                }],
                metric,
                seqno: 0,
                announcer: None,
                origin,
            })
        };
        let connected = self
            .connected
            .get(&prefix)
            .and_then(|key| route(*key, METRIC_CONNECTED, RouteSource::Connected));
        if connected.is_none() {
            let statics = self
                .statics
                .range(vias(prefix))
                .filter_map(|((_, via), metric)| {
                    let key = match via {
                        Via::Peer(key) => *key,
                        Via::Address(address) => self.resolve(*address, prefix, depth)?,
                    };
                    route(key, *metric, RouteSource::Static)
                });
            if let Some(route) = statics.min_by_key(|route| route.metric) {
                return Some(route);
            }
        }
        self.dynamic_route(prefix).or(connected)
    }

    /// The dynamic route of a prefix, as far as its next hops are up.
    fn dynamic_route(&self, prefix: Prefix) -> Option<SelectedRoute> {
        let route = self.dynamic.get(&prefix)?;
        let next_hops: Vec<NextHop> = route
            .next_hops
            .iter()
            .filter_map(|hop| {
                let key = self.keys.get(&hop.link)?;
                Some(NextHop {
                    peer: hop.link,
                    key: *key,
                    weight: hop.weight,
                })
            })
            .collect();
        (!next_hops.is_empty()).then_some(SelectedRoute {
            prefix,
            next_hops,
            metric: route.metric,
            seqno: route.serial.seqno(),
            announcer: Some(route.origin),
            origin: RouteSource::Dynamic,
        })
    }

    /// The peer that leads to `address`, by the longest prefix other than `not`: a route does not
    /// resolve through itself.
    fn resolve(&self, address: OverlayAddress, not: Prefix, depth: u8) -> Option<PublicKey> {
        let depth = depth.checked_sub(1)?;
        let subnet = address.subnet();
        (0..=128)
            .rev()
            .map(|len| Prefix::new(address, len))
            .filter(|prefix| {
                let known = *prefix == subnet
                    && (self.connected.contains_key(&subnet) || self.dynamic.contains_key(&subnet));
                known || self.statics.range(vias(*prefix)).next().is_some()
            })
            .filter(|prefix| *prefix != not)
            .find_map(|prefix| self.best(prefix, depth).map(|route| route.next_hops[0].key))
    }
}

/// Keys of all static routes of a prefix.
fn vias(prefix: Prefix) -> RangeInclusive<(Prefix, Via)> {
    (prefix, Via::Peer(PublicKey([0; 32])))..=(prefix, Via::Address(OverlayAddress([0xff; 16])))
}
