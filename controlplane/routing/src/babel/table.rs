//! Destinations: candidates, sources, feasibility, selection.
//!
//! Invariants: after a mutation followed by [`Speaker::select`], every next hop of a selected route
//! is a feasible candidate on a link whose cost is finite. After [`Speaker::settle`], a destination
//! has a source for each origin of its candidates and no other, and its [`Standing`] follows from
//! its candidates.

use std::cmp::Reverse;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::babel::{INFINITY, Origin, RouterId, Serial};

use hyphae_wire::{Prefix, PublicKey};

use super::bits::Bits;
use super::standing::Standing;
use super::{DRAIN_COST, Speaker, Timer};

/// Lifetime of an update, in tenths of its interval (RFC 8966 appendix B: 3.5).
const HOLD_TENTHS: u32 = 35;

/// Lifetime of the routes of a neighbour that restarted, plus a millisecond for each route.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// What was advertised on which links.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// The last advertisement was a route, not a retraction.
    pub(super) advertised: Bits,
    /// The neighbour has acknowledged the proof of the selected serial.
    pub(super) proved: Bits,
}

impl Marks {
    pub(super) fn forget(&mut self, slot: usize) {
        self.advertised.remove(slot);
        self.proved.remove(slot);
    }

    /// Forgets all slots that are not in use.
    pub(super) fn retain(&mut self, used: &Bits) {
        self.advertised.retain(used);
        self.proved.retain(used);
    }
}

/// A route that a neighbour offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The link to the neighbour.
    pub link: u32,
    /// Its origin.
    pub router_id: RouterId,
    /// Serial of the announcement.
    pub serial: Serial,
    /// Metric that the neighbour advertises.
    pub metric: u16,
    /// The least metric that it has advertised with this serial. Its own feasible distance is no greater,
    /// whatever it advertises now, so feasibility is decided with this one.
    pub least: u16,
    /// When it expires unless it is refreshed.
    pub expires: Nanos,
}

/// An origin of a destination, with its feasible distance.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) router_id: RouterId,
    /// Proof of the newest announcement seen.
    pub(super) origin: Origin,
    /// Feasible distance: the best serial and metric that this node has advertised.
    pub(super) distance: Option<(Serial, u16)>,
}

impl Source {
    fn feasible(&self, serial: Serial, metric: u16) -> bool {
        self.distance
            .is_none_or(|(s, m)| serial > s || (serial == s && metric < m))
    }
}

/// A next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicNextHop {
    /// The link.
    pub link: u32,
    /// Its share of the flows.
    pub weight: u16,
}

/// The route in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selected {
    /// The next hop whose metric is advertised.
    link: u32,
    pub(super) router_id: RouterId,
    pub(super) serial: Serial,
    pub(super) metric: u16,
    hops: Vec<DynamicNextHop>,
}

impl Selected {
    pub(super) fn uses(&self, link: u32) -> bool {
        self.hops.iter().any(|hop| hop.link == link)
    }
}

/// A selected route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicRoute {
    /// Where frames go, best first.
    pub next_hops: Vec<DynamicNextHop>,
    /// Lower is better.
    pub metric: u16,
    /// Serial of the announcement.
    pub serial: Serial,
    /// Who announced it.
    pub origin: PublicKey,
}

/// All that is known of a prefix.
#[derive(Clone, Debug, Default)]
pub(super) struct Destination {
    /// At most one per link.
    pub(super) candidates: Vec<Candidate>,
    /// Origins of candidates.
    pub(super) sources: Vec<Source>,
    pub(super) standing: Standing,
    pub(super) selected: Option<Selected>,
    /// Metric last advertised on any link.
    pub(super) advertised_metric: u16,
    pub(super) marks: Marks,
}

impl Destination {
    pub(super) fn source(&self, router_id: RouterId) -> Option<&Source> {
        self.sources.iter().find(|s| s.router_id == router_id)
    }

    fn source_mut(&mut self, router_id: RouterId) -> Option<&mut Source> {
        self.sources.iter_mut().find(|s| s.router_id == router_id)
    }

    /// Routes that neighbours offer.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter()
    }

    pub(super) fn candidate(&self, link: u32) -> Option<&Candidate> {
        self.candidates.iter().find(|c| c.link == link)
    }

    /// Records the newest proof of an origin.
    pub(super) fn learn(&mut self, router_id: RouterId, origin: Origin) {
        if let Some(source) = self.source_mut(router_id)
            && origin.serial > source.origin.serial
        {
            source.origin = origin;
        }
    }

    /// Records that this metric is advertised, which bounds what is feasible from now on.
    pub(super) fn bind(&mut self, router_id: RouterId, serial: Serial, metric: u16) {
        if let Some(source) = self.source_mut(router_id)
            && source.feasible(serial, metric)
        {
            source.distance = Some((serial, metric));
        }
    }

    fn feasible(&self, candidate: &Candidate) -> bool {
        self.source(candidate.router_id)
            .is_some_and(|source| source.feasible(candidate.serial, candidate.least))
    }
}

/// Difference from the best metric up to which a next hop is used beside it.
fn multipath_slack(best: u16) -> u16 {
    (best / 16).max(4)
}

/// Improvement from which on another neighbour is selected.
fn switch_hysteresis(current: u16) -> u16 {
    (current / 8).max(8)
}

impl Speaker {
    /// The route to exactly this prefix.
    pub fn route(&self, prefix: Prefix) -> Option<DynamicRoute> {
        let destination = self.table.get(&prefix)?;
        let selected = destination.selected.as_ref()?;
        Some(DynamicRoute {
            next_hops: selected.hops.clone(),
            metric: selected.metric,
            serial: selected.serial,
            origin: destination.source(selected.router_id)?.origin.key,
        })
    }

    /// Destinations with a route.
    pub fn routes(&self) -> impl Iterator<Item = (Prefix, DynamicRoute)> + '_ {
        self.table
            .keys()
            .filter_map(|prefix| Some((*prefix, self.route(*prefix)?)))
    }

    /// Routes that neighbours offer and that are not selected, with their metric from here.
    pub fn fallbacks(&self) -> impl Iterator<Item = (Prefix, Candidate, u16)> + '_ {
        self.table.iter().flat_map(move |(prefix, destination)| {
            let selected = destination.selected.as_ref();
            let unused = move |c: &&Candidate| !selected.is_some_and(|s| s.uses(c.link));
            destination.candidates.iter().filter(unused).map(|c| {
                let cost = self.links.get(&c.link).map_or(INFINITY, |l| l.cost);
                (*prefix, *c, c.metric.saturating_add(cost))
            })
        })
    }

    /// Destinations that are known, with a route or without.
    pub fn destinations(&self) -> usize {
        self.table.len()
    }

    /// Prefixes that a link offers.
    pub(super) fn prefixes_of(&self, link: u32) -> Vec<Prefix> {
        let offers = self.links.get(&link).map(|state| &state.offers);
        offers.into_iter().flatten().copied().collect()
    }

    /// Removes all routes of a link.
    pub(super) fn drop_candidates(&mut self, now: Nanos, link: u32) {
        for prefix in self.prefixes_of(link) {
            self.drop_candidate(now, prefix, link);
        }
    }

    pub(super) fn drop_candidate(&mut self, now: Nanos, prefix: Prefix, link: u32) {
        let Some(destination) = self.table.get_mut(&prefix) else {
            return;
        };
        let Some(at) = destination.candidates.iter().position(|c| c.link == link) else {
            return;
        };
        let gone = destination.candidates.remove(at);
        self.select(now, prefix);
        self.settle(now, prefix, Some(gone));
    }

    /// Takes a route of a neighbour whose origin is validated.
    pub(super) fn offer(
        &mut self,
        now: Nanos,
        prefix: Prefix,
        mut candidate: Candidate,
        interval: u16,
    ) {
        // Lower bound for updates without an interval or with a very short one.
        let interval = Duration::from_millis(u64::from(interval) * 10).max(Duration::from_secs(1));
        candidate.expires = now + interval * HOLD_TENTHS / 10;
        let Some(destination) = self.table.get_mut(&prefix) else {
            return;
        };
        match destination
            .candidates
            .iter_mut()
            .find(|c| c.link == candidate.link)
        {
            Some(known) => {
                if (known.router_id, known.serial) == (candidate.router_id, candidate.serial) {
                    candidate.least = candidate.least.min(known.least);
                }
                let before = std::mem::replace(known, candidate);
                let replaced = before.router_id != candidate.router_id;
                self.select(now, prefix);
                if replaced {
                    self.settle(now, prefix, Some(before));
                }
            }
            None => {
                destination.candidates.push(candidate);
                if let Some(state) = self.links.get_mut(&candidate.link) {
                    state.offers.insert(prefix);
                }
                self.select(now, prefix);
                self.settle(now, prefix, None);
            }
        }
    }

    /// Selects the route of a prefix, advertises a change, and requests a sequence number where needed.
    pub(super) fn select(&mut self, now: Nanos, prefix: Prefix) {
        let Some(destination) = self.table.get(&prefix) else {
            return;
        };
        let (chosen, wanted) = self.choose(destination);
        let Some(destination) = self.table.get_mut(&prefix) else {
            return;
        };
        let before = std::mem::replace(&mut destination.selected, chosen);
        let after = destination.selected.as_ref();
        let hops = |route: &Option<Selected>| route.iter().flat_map(|r| &r.hops).copied().collect();
        let (hops_before, hops_after): (Vec<DynamicNextHop>, Vec<DynamicNextHop>) =
            (hops(&before), hops(&destination.selected));
        let announcement = |route: Option<&Selected>| route.map(|r| (r.router_id, r.serial));
        let renewed = announcement(before.as_ref()) != announcement(after);
        if renewed {
            destination.marks.proved.clear();
        }
        let metric = after.map_or(INFINITY, |route| route.metric);
        let advertised_metric = destination.advertised_metric;
        if hops_before != hops_after {
            self.counters.route_changes += 1;
            self.changed.insert(prefix);
        }
        let much = metric.abs_diff(advertised_metric) > (advertised_metric / 8).max(16);
        if renewed || (much && before != destination.selected) {
            // A better metric is not urgent: a still better one may follow.
            self.advertise(now, prefix, renewed || metric > advertised_metric);
        } else {
            // Split horizon changes only for neighbours that became or ceased to be next hops.
            for hop in hops_before.iter().chain(&hops_after) {
                if hops_before.contains(hop) != hops_after.contains(hop) {
                    self.advertise_soon(now, prefix, hop.link);
                }
            }
        }
        if let Some(query) = wanted {
            self.query(now, prefix, query);
        }
    }

    /// The route to use, and the origin to request a sequence number of because the only route, or a clearly
    /// better one, is infeasible.
    fn choose(
        &self,
        destination: &Destination,
    ) -> (Option<Selected>, Option<(RouterId, Serial, u32)>) {
        let total = |c: &Candidate| {
            let cost = self.links.get(&c.link).map_or(INFINITY, |link| link.cost);
            let drained = if self.drained { DRAIN_COST } else { 0 };
            let sum = u32::from(c.metric) + u32::from(cost) + u32::from(drained);
            u16::try_from(sum).unwrap_or(INFINITY)
        };
        let current = destination.selected.as_ref();
        // Feasible candidates with their metrics; the best infeasible one may be worth a request.
        let mut usable: Vec<(u16, &Candidate)> = Vec::new();
        let mut infeasible: Option<(u16, &Candidate)> = None;
        for candidate in &destination.candidates {
            let metric = total(candidate);
            if metric == INFINITY {
                continue;
            }
            if destination.feasible(candidate) {
                usable.push((metric, candidate));
            } else if infeasible.is_none_or(|(best, _)| metric < best) {
                infeasible = Some((metric, candidate));
            }
        }
        usable.sort_by_key(|(metric, candidate)| (*metric, candidate.link));
        let Some(&(best, first)) = usable.first() else {
            let wanted = infeasible
                .and_then(|(_, candidate)| self.seqno_request_for(destination, candidate));
            return (None, wanted);
        };
        // The advertised one stays unless another is clearly better.
        let kept = current.and_then(|current| {
            usable
                .iter()
                .find(|(metric, c)| {
                    c.link == current.link
                        && c.router_id == current.router_id
                        && best.saturating_add(switch_hysteresis(*metric)) >= *metric
                })
                .copied()
        });
        let (metric, chosen) = kept.unwrap_or((best, first));
        let hops = self.multipath(&usable, (metric, chosen), current);
        let selected = Selected {
            link: chosen.link,
            router_id: chosen.router_id,
            serial: chosen.serial,
            metric,
            hops,
        };
        let wanted = infeasible
            .filter(|(m, _)| m.saturating_add(switch_hysteresis(metric)) < metric)
            .and_then(|(_, candidate)| self.seqno_request_for(destination, candidate));
        (Some(selected), wanted)
    }

    /// Next hops beside the chosen one: of the feasible candidates, best first, those that are nearly as good and
    /// stay feasible once the chosen metric is advertised.
    fn multipath(
        &self,
        usable: &[(u16, &Candidate)],
        (metric, chosen): (u16, &Candidate),
        current: Option<&Selected>,
    ) -> Vec<DynamicNextHop> {
        let best = usable.first().map_or(metric, |(best, _)| *best);
        // The advertisement becomes the feasible distance, which the others must stay below.
        let distance = (chosen.serial, Reverse(metric));
        let joins = |(metric, c): &&(u16, &Candidate)| {
            // Hysteresis: a next hop in use stays a little longer than a new one is admitted.
            let factor = if current.is_some_and(|route| route.uses(c.link)) {
                2
            } else {
                1
            };
            let behind = c.router_id == chosen.router_id && (c.serial, Reverse(c.least)) > distance;
            let near = *metric <= best.saturating_add(multipath_slack(best) * factor);
            c.link == chosen.link || (behind && near)
        };
        let hop = |c: &Candidate| DynamicNextHop {
            link: c.link,
            weight: 1,
        };
        let joined = usable.iter().filter(joins).take(self.config.next_hops_max);
        let mut hops: Vec<DynamicNextHop> = joined.map(|(_, c)| hop(c)).collect();
        if !hops.iter().any(|hop| hop.link == chosen.link) {
            hops.pop();
            hops.push(hop(chosen));
        }
        // A stable order: the hash of a flow selects by position.
        hops.sort_by_key(|hop| hop.link);
        hops
    }

    /// The request that would make an infeasible candidate feasible: origin, serial, link.
    fn seqno_request_for(
        &self,
        destination: &Destination,
        candidate: &Candidate,
    ) -> Option<(RouterId, Serial, u32)> {
        let source = destination.source(candidate.router_id)?;
        let (serial, _) = source.distance?;
        Some((candidate.router_id, serial.next(), candidate.link))
    }

    /// The neighbour has restarted: its routes expire soon unless it advertises them again.
    pub(super) fn mark_stale(&mut self, now: Nanos, link: u32) {
        let prefixes = self.prefixes_of(link);
        // A larger table takes longer to advertise.
        let stale_after = STALE_AFTER + Duration::from_millis(prefixes.len() as u64);
        for prefix in prefixes {
            let candidates = self.table.get_mut(&prefix).map(|d| &mut d.candidates);
            for candidate in candidates.into_iter().flatten().filter(|c| c.link == link) {
                candidate.expires = candidate.expires.min(now + stale_after);
            }
        }
        self.timers.set(Timer::Stale(link), now + stale_after);
    }

    pub(super) fn stale_due(&mut self, now: Nanos, link: u32) {
        for prefix in self.prefixes_of(link) {
            self.expire(now, prefix);
        }
    }

    /// Removes candidates that were not refreshed in time.
    pub(super) fn expire(&mut self, now: Nanos, prefix: Prefix) {
        let late = |c: &&Candidate| c.expires <= now;
        let candidates = self.table.get(&prefix).map(|d| &d.candidates);
        let late = candidates.into_iter().flatten().filter(late);
        for link in late.map(|c| c.link).collect::<Vec<_>>() {
            self.drop_candidate(now, prefix, link);
        }
    }
}
