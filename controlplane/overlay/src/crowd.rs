//! Eviction from full tables of established state: session slots, inbound peers, end-to-end associations.
//!
//! A node with a proven key is admitted as long as another holder has a larger share. Of the group with the
//! most (an address, a site's /48, the neighbour that an end came through), the node with the most is evicted;
//! among equals the one that was silent longest. Its half-open renewals end first, then retiring sessions, then
//! the one in use. Configured peers are never evicted. A full scan happens only when a table is full, after a
//! Diffie-Hellman that the new node had to compute as well.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hyphae_time::Nanos;

use hyphae_wire::{Endpoint, OverlayAddress};

use crate::association::Association;
use crate::handshake::Carrier;
use crate::ids::Owner;
use crate::index::Class;
use crate::keys::Kind;
use crate::source::source_of;
use crate::{DownReason, Overlay};

/// Unit of the shares.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    Slots,
    Nodes,
}

impl Overlay {
    /// Frees slots for `lanes` lanes of a session; false when no holder has a larger share.
    pub(crate) fn live_room(&mut self, now: Nanos, owner: Owner, lanes: u16, class: Class) -> bool {
        let kind = owner.kind();
        // Each iteration ends a session.
        while !self.indices(kind).fits(lanes, class) {
            let group = self
                .associations
                .get(&owner)
                .map_or(0, |a| group_of(owner, a));
            if !self.evict(
                now,
                kind,
                (Some(owner), group, self.slots_per_worker(lanes)),
                Measure::Slots,
            ) {
                return false;
            }
        }
        true
    }

    /// Frees a place for another inbound peer, which is reached by `carrier`.
    pub(crate) fn inbound_room(&mut self, now: Nanos, carrier: Carrier) -> bool {
        let newcomer = (None, carrier.source().site, 1);
        self.evict(now, Kind::Link, newcomer, Measure::Nodes)
    }

    /// The end-to-end association of a node's /64, created where it is missing. `through` is the neighbour that
    /// a handshake message came through. `None` when the table is full and no holder has a larger share.
    pub(crate) fn ensure_remote(
        &mut self,
        now: Nanos,
        address: OverlayAddress,
        through: Option<u32>,
    ) -> Option<Owner> {
        let owner = Owner::Remote(address.subnet_id());
        if !self.associations.contains_key(&owner) {
            // Every peer has a number, so the rest are end-to-end associations.
            let count = |s: &Self| s.associations.len() - s.peer_numbers.len();
            if count(self) >= self.config.sessions_max {
                let newcomer = (None, group_through(through), 1);
                self.evict(now, Kind::EndToEnd, newcomer, Measure::Nodes);
                if count(self) >= self.config.sessions_max {
                    return None;
                }
            }
            let association = Association::new(None, address, Endpoint::default());
            self.associations.insert(owner, association);
        }
        if let (Some(association), Some(_)) = (self.associations.get_mut(&owner), through) {
            association.through = through;
        }
        Some(owner)
    }

    /// Slots that a session of this number of lanes takes of each worker. What runs out is a worker's slots, so they
    /// are what shares compare: a peer with fewer workers has fewer lanes and takes as many of them.
    fn slots_per_worker(&self, lanes: u16) -> u32 {
        lanes.div_ceil(self.workers).into()
    }

    /// Ends part of what the largest holder has; false when the new node itself has the most.
    fn evict(
        &mut self,
        now: Nanos,
        kind: Kind,
        (newcomer, group, more): (Option<Owner>, u128, u32),
        measure: Measure,
    ) -> bool {
        let configured = self.targets.values().filter_map(|t| t.key.or(t.peer));
        let configured: BTreeSet<_> = configured.collect();
        let mut groups: BTreeMap<u128, u32> = BTreeMap::from([(group, more)]);
        let mut nodes = Vec::new();
        let known = self.associations.iter().filter(|(o, _)| o.kind() == kind);
        for (owner, association) in known {
            let kept =
                kind == Kind::Link && association.key.is_some_and(|k| configured.contains(&k));
            if kept {
                continue;
            }
            let slots = association
                .sessions
                .iter()
                .map(|s| self.slots_per_worker(s.lane_count()));
            let mut weight = match measure {
                Measure::Slots => {
                    slots.sum::<u32>() + self.half_opens.renewal_slots(*owner, self.workers)
                }
                Measure::Nodes => 1,
            };
            let place = group_of(*owner, association);
            *groups.entry(place).or_default() += weight;
            weight += if newcomer == Some(*owner) { more } else { 0 };
            let new = newcomer == Some(*owner);
            let heard = if new { now } else { association.liveness.heard };
            nodes.push((place, weight, Reverse(heard), *owner));
        }
        let own = groups.get(&group).copied().unwrap_or_default();
        let most = groups.into_iter().max_by_key(|(_, weight)| *weight);
        let largest = most
            .filter(|(_, weight)| *weight > own)
            .map_or(group, |most| most.0);
        // Peers of one address would only replace each other.
        if largest == group && kind == Kind::Link && measure == Measure::Nodes {
            return false;
        }
        let nodes = nodes.into_iter().filter(|node| node.0 == largest);
        let Some((_, _, _, victim)) = nodes.max().filter(|node| node.1 > 0) else {
            return false;
        };
        if measure == Measure::Slots && self.half_opens.renewal_slots(victim, self.workers) > 0 {
            self.crowd_renewals(now, victim);
            return true;
        }
        let spare = self.associations.get(&victim).and_then(Association::spare);
        match (measure, spare) {
            (Measure::Slots, Some(epoch)) => self.remove_session(now, victim, epoch, true),
            _ if newcomer == Some(victim) => return false,
            (Measure::Slots | Measure::Nodes, _) => self.dismiss(now, victim),
        }
        true
    }

    /// Ends all sessions and handshakes with an evicted node.
    fn dismiss(&mut self, now: Nanos, owner: Owner) {
        let outgoing = self.associations.get(&owner).and_then(|a| a.outgoing);
        if let Some(id) = outgoing {
            self.abandon(id);
        }
        if let Some(association) = self.associations.get_mut(&owner) {
            association.pings.clear();
            association.hold_until = Nanos(0);
            let address = association.address;
            if let Owner::Remote(_) = owner {
                self.drop_pending(address);
            }
        }
        self.end_sessions(now, owner, true, DownReason::Crowded);
    }
}

fn group_of(owner: Owner, association: &Association) -> u128 {
    match owner {
        Owner::Peer(_) => source_of(association.endpoint).site,
        Owner::Remote(_) => group_through(association.through),
    }
}

fn group_through(through: Option<u32>) -> u128 {
    through.map_or(u128::MAX, u128::from)
}
