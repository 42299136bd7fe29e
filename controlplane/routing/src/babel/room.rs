//! Capacity of the table of destinations: which neighbour is charged for one, and what is displaced when it is
//! full.
//!
//! A destination with candidates is charged to one neighbour that offers it. A neighbour's own /64 is exempt
//! and never displaced, so neighbours reach each other whatever a third one announces; there is at most one per
//! link. In a full table, [`displaced`] decides. A destination without candidates is no longer charged: it
//! ends, and stays only until neighbours that had the route have acknowledged the retraction. Ending
//! destinations have a capacity of their own.

use hyphae_time::Nanos;
use hyphae_wire::babel::{INFINITY, Origin, RouterId, Tlv, Update};

use hyphae_wire::Prefix;

use super::Speaker;
use super::distances::SOURCE_KEPT;
use super::shares::{PreferredShares, displaced};
use super::standing::Standing;
use super::table::{Candidate, Destination, Source};

/// Candidates displaced for one new destination: one may not suffice where others offer the same prefix.
const DISPLACED_MAX: usize = 16;
/// Refused prefixes that a link remembers.
const REFUSED_MAX: usize = 64;
/// Refused prefixes that are requested again per hello.
const REREQUESTS_MAX: usize = 16;

/// Accounting of destinations.
#[derive(Debug, Default)]
pub(super) struct Room {
    charged: PreferredShares<Prefix>,
    /// Destinations without candidates, in order.
    ending: std::collections::BTreeMap<u64, (Nanos, Prefix)>,
    next_ending: u64,
}

impl Speaker {
    /// Destinations that neighbours offer.
    fn offered(&self) -> usize {
        self.table.len() - self.room.ending.len()
    }

    /// Whether routes of a neighbour have preference in a full table, as those of configured peers have.
    pub fn prefer(&mut self, link: u32, preferred: bool) {
        if let Some(state) = self.links.get_mut(&link) {
            state.preferred = preferred;
            self.room.charged.regroup(link, preferred);
        }
    }

    fn is_preferred(&self, link: u32) -> bool {
        self.links.get(&link).is_some_and(|state| state.preferred)
    }

    /// Whether a prefix is the /64 of the neighbour itself.
    fn is_own_of(&self, link: u32, prefix: Prefix) -> bool {
        let state = self.links.get(&link);
        state.is_some_and(|state| state.subnet == prefix)
    }

    /// Makes room for a destination of a validated origin; false when this neighbour has no share left.
    pub(super) fn admit(
        &mut self,
        now: Nanos,
        link: u32,
        prefix: Prefix,
        router_id: RouterId,
        origin: Origin,
    ) -> bool {
        let known = self.table.get(&prefix);
        let offered = known.is_some_and(|d| !matches!(d.standing, Standing::Ending(_)));
        if !offered && !self.make_room(now, link, prefix) {
            self.note_refused(link, prefix);
            return false;
        }
        let destination = self.table.entry(prefix).or_default();
        if let Standing::Ending(ticket) = destination.standing {
            destination.standing = Standing::Free;
            self.room.ending.remove(&ticket);
        }
        if destination.source(router_id).is_some() {
            destination.learn(router_id, origin);
        } else {
            // Most destinations have one origin; the table is large.
            destination.sources.reserve_exact(1);
            let before = self.distances.take((prefix, router_id));
            let newest = before.map(|(_, proof)| proof);
            destination.sources.push(Source {
                router_id,
                origin: newest
                    .filter(|p| p.serial > origin.serial)
                    .unwrap_or(origin),
                distance: before.map(|(distance, _)| distance),
            });
        }
        true
    }

    fn make_room(&mut self, now: Nanos, link: u32, prefix: Prefix) -> bool {
        let max = self.config.routes_max;
        let (offered, own) = (self.offered(), self.is_own_of(link, prefix));
        if offered < max {
            return true;
        }
        let preferred = self.is_preferred(link);
        for _ in 0..DISPLACED_MAX {
            let Some((victim, newest)) = displaced(&self.room.charged, link, preferred, own, max)
            else {
                break;
            };
            self.counters.displaced += 1;
            self.drop_candidate(now, newest, victim);
            self.note_refused(victim, newest);
            if self.offered() < offered {
                return true;
            }
        }
        // At most one exempt prefix per link exceeds the capacity.
        own
    }

    /// Updates the accounting after a change of a destination's candidates. `removed` was removed before.
    pub(super) fn settle(&mut self, now: Nanos, prefix: Prefix, removed: Option<Candidate>) {
        let Some(destination) = self.table.get_mut(&prefix) else {
            return;
        };
        if let Some(removed) = removed {
            let still = |c: &Candidate| c.link == removed.link;
            let link = self.links.get_mut(&removed.link);
            let key = link.as_ref().map(|state| state.key);
            if !destination.candidates.iter().any(still)
                && let Some(state) = link
            {
                state.offers.remove(&prefix);
            }
            let used = |c: &Candidate| c.router_id == removed.router_id;
            let at = destination
                .sources
                .iter()
                .position(|s| s.router_id == removed.router_id);
            if let Some(at) = at.filter(|_| !destination.candidates.iter().any(used)) {
                let source = destination.sources.swap_remove(at);
                let teller = key.map_or(RouterId([0; 8]), |key| RouterId::of(&key));
                if let Some(distance) = source.distance {
                    let (name, what) = ((prefix, removed.router_id), (distance, source.origin));
                    let max = self.config.routes_max;
                    self.distances.insert(now, name, what, teller, max);
                }
            }
        }
        if destination.candidates.is_empty() {
            self.end(now, prefix);
        } else {
            self.charge(prefix);
        }
    }

    /// Charges a destination to a neighbour that offers it, when it is not already.
    fn charge(&mut self, prefix: Prefix) {
        let Some(destination) = self.table.get(&prefix) else {
            return;
        };
        let standing = destination.standing;
        let own = |c: &Candidate| self.is_own_of(c.link, prefix);
        let payer = if destination.candidates.iter().any(own) {
            None
        } else if let Standing::Charged(link, _) = standing
            && destination.candidate(link).is_some()
        {
            return;
        } else {
            let least = |c: &&Candidate| (self.room.charged.count(c.link), c.link);
            let payer = destination.candidates.iter().min_by_key(least);
            payer.map(|c| c.link)
        };
        self.release(standing);
        let standing = payer.map_or(Standing::Free, |link| {
            let preferred = self.is_preferred(link);
            Standing::Charged(link, self.room.charged.add(preferred, link, 1, prefix))
        });
        if let Some(destination) = self.table.get_mut(&prefix) {
            destination.standing = standing;
        }
    }

    fn release(&mut self, standing: Standing) {
        match standing {
            Standing::Free => {}
            Standing::Charged(link, ticket) => {
                self.room.charged.remove(link, ticket);
            }
            Standing::Ending(ticket) => {
                self.room.ending.remove(&ticket);
            }
        }
    }

    /// Ends a destination that has lost its last candidate.
    pub(super) fn end(&mut self, now: Nanos, prefix: Prefix) {
        let Some(destination) = self.table.get_mut(&prefix) else {
            return;
        };
        if matches!(destination.standing, Standing::Ending(_)) {
            return;
        }
        self.room.next_ending += 1;
        let ending = Standing::Ending(self.room.next_ending);
        let before = std::mem::replace(&mut destination.standing, ending);
        self.release(before);
        self.room
            .ending
            .insert(self.room.next_ending, (now, prefix));
        self.forget_ended(prefix);
        if self.room.ending.len() > self.config.routes_max
            && let Some((_, (_, oldest))) = self.room.ending.first_key_value()
        {
            self.abandon(now, *oldest);
        }
    }

    /// Removes an ended destination when no neighbour awaits its retraction.
    pub(super) fn forget_ended(&mut self, prefix: Prefix) {
        let ended = |d: &Destination| {
            matches!(d.standing, Standing::Ending(_))
                && !d.marks.advertised.intersects(&self.slots.used)
        };
        if self.table.get(&prefix).is_some_and(ended) {
            self.remove(prefix);
        }
    }

    /// Removes a destination and its accounting.
    pub(super) fn remove(&mut self, prefix: Prefix) -> Option<Destination> {
        let destination = self.table.remove(&prefix)?;
        self.release(destination.standing);
        for candidate in &destination.candidates {
            if let Some(state) = self.links.get_mut(&candidate.link) {
                state.offers.remove(&prefix);
            }
        }
        Some(destination)
    }

    /// Sends the retraction once more to neighbours that have not acknowledged it, and stops waiting.
    fn abandon(&mut self, now: Nanos, prefix: Prefix) {
        let Some(destination) = self.remove(prefix) else {
            return;
        };
        let retraction = Update {
            prefix: Some(prefix),
            router_id: None,
            interval: 0,
            seqno: 0,
            metric: INFINITY,
            origin: None,
        };
        let advertised = |slot| destination.marks.advertised.contains(slot);
        let links = self
            .links
            .iter()
            .filter(|(_, state)| advertised(state.slot));
        for link in links.map(|(link, _)| *link).collect::<Vec<_>>() {
            self.enqueue(now, link, Tlv::Update(retraction));
        }
    }

    /// Removes what ended [`SOURCE_KEPT`] ago.
    pub(super) fn expire_ended(&mut self, now: Nanos) {
        self.distances.expire(now);
        while let Some((_, (since, prefix))) = self.room.ending.first_key_value()
            && now.since(*since) >= SOURCE_KEPT
        {
            let prefix = *prefix;
            self.remove(prefix);
        }
    }

    /// Stores a refused prefix; the oldest one is evicted.
    fn note_refused(&mut self, link: u32, prefix: Prefix) {
        if let Some(state) = self.links.get_mut(&link) {
            if state.refused.len() == REFUSED_MAX {
                state.refused.pop_front();
            }
            state.refused.push_back(prefix);
        }
    }

    /// Requests refused prefixes again while there is room.
    pub(super) fn request_refused(&mut self, now: Nanos, link: u32) {
        let room = self.config.routes_max.saturating_sub(self.offered());
        for _ in 0..room.min(REREQUESTS_MAX) {
            let refused = self
                .links
                .get_mut(&link)
                .and_then(|state| state.refused.pop_back());
            let Some(prefix) = refused else {
                return;
            };
            let prefix = Some(prefix);
            self.enqueue(now, link, Tlv::RouteRequest { prefix });
        }
    }
}
