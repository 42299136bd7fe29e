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
use super::room::Standing;
use super::{DRAIN_COST, Speaker, Timer};

/// Updates told at this interval may be missing this many times, in tenths of the interval.
const HOLD_TENTHS: u32 = 35;

/// Life of what a neighbour told before it started anew, and a millisecond more for each route.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// What was told to which links.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// The last thing told was a route, not its end.
    pub(super) told: Bits,
    /// The neighbour has acknowledged the proof of the serial in use.
    pub(super) proved: Bits,
}

impl Marks {
    pub(super) fn forget(&mut self, slot: usize) {
        self.told.remove(slot);
        self.proved.remove(slot);
    }

    /// Forgets all slots that are not in use.
    pub(super) fn retain(&mut self, used: &Bits) {
        self.told.retain(used);
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
    /// The origin's number of the announcement.
    pub serial: Serial,
    /// As the neighbour tells it.
    pub metric: u16,
    /// The least that it has told with this number. Its own feasible distance is no more, whatever
    /// became of its metric since: that is what feasibility is about.
    pub least: u16,
    /// When it is no longer valid unless told again.
    pub expires: Nanos,
}

/// An origin of a destination, with its feasible distance.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) router_id: RouterId,
    /// Proof of the newest announcement seen.
    pub(super) origin: Origin,
    /// The best that this node has told.
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
pub struct NextHop {
    /// The link.
    pub link: u32,
    /// Its share of the flows.
    pub weight: u16,
}

/// The route in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selected {
    /// The next hop whose metric is told.
    link: u32,
    pub(super) router_id: RouterId,
    pub(super) serial: Serial,
    pub(super) metric: u16,
    hops: Vec<NextHop>,
}

impl Selected {
    pub(super) fn uses(&self, link: u32) -> bool {
        self.hops.iter().any(|hop| hop.link == link)
    }
}

/// A route as it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicRoute {
    /// Where frames go, best first.
    pub next_hops: Vec<NextHop>,
    /// Lower is better.
    pub metric: u16,
    /// The origin's number of the announcement.
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
    /// Metric last told to anyone.
    pub(super) told_metric: u16,
    pub(super) marks: Marks,
}

impl Destination {
    pub(super) fn source(&self, router_id: RouterId) -> Option<&Source> {
        self.sources.iter().find(|s| s.router_id == router_id)
    }

    fn source_mut(&mut self, router_id: RouterId) -> Option<&mut Source> {
        self.sources.iter_mut().find(|s| s.router_id == router_id)
    }

    /// What neighbours offer.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter()
    }

    pub(super) fn candidate(&self, link: u32) -> Option<&Candidate> {
        self.candidates.iter().find(|c| c.link == link)
    }

    /// Notes the newest proof of an origin.
    pub(super) fn learn(&mut self, router_id: RouterId, origin: Origin) {
        if let Some(source) = self.source_mut(router_id)
            && origin.serial > source.origin.serial
        {
            source.origin = origin;
        }
    }

    /// Notes that this metric is told, which bounds what is feasible from now on.
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

/// How far from the best a next hop may be and still be used beside it.
fn near(best: u16) -> u16 {
    (best / 16).max(4)
}

/// By how much another neighbour must be better to take over.
fn worth_a_switch(current: u16) -> u16 {
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

    /// Routes that neighbours offer and that are not in use, with their metric from here.
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

    /// A link offers nothing any more.
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

    /// A neighbour offers a route whose origin is proved.
    pub(super) fn offer(
        &mut self,
        now: Nanos,
        prefix: Prefix,
        mut candidate: Candidate,
        interval: u16,
    ) {
        // Updates without a schedule, and absurdly short ones, get a sensible life.
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

    /// Chooses the route of a prefix anew, and says what follows from the choice.
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
        let (hops_before, hops_after): (Vec<NextHop>, Vec<NextHop>) =
            (hops(&before), hops(&destination.selected));
        let told = |route: Option<&Selected>| route.map(|r| (r.router_id, r.serial));
        let renewed = told(before.as_ref()) != told(after);
        if renewed {
            destination.marks.proved.clear();
        }
        let metric = after.map_or(INFINITY, |route| route.metric);
        let told_metric = destination.told_metric;
        if hops_before != hops_after {
            self.counters.route_changes += 1;
            self.changed.insert(prefix);
        }
        let much = metric.abs_diff(told_metric) > (told_metric / 8).max(16);
        if renewed || (much && before != destination.selected) {
            // Who has a route can wait to hear of a better one: a better one yet may follow.
            self.tell_all(now, prefix, renewed || metric > told_metric);
        } else {
            // Only who was a next hop, or has become one, is told anything else than before.
            for hop in hops_before.iter().chain(&hops_after) {
                if hops_before.contains(hop) != hops_after.contains(hop) {
                    self.tell_soon(now, prefix, hop.link);
                }
            }
        }
        if let Some(query) = wanted {
            self.query(now, prefix, query);
        }
    }

    /// The route to use, and the origin to be asked for a new number because something better, or
    /// anything at all, is not feasible.
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
        // Of the feasible: metric, link, candidate. The others may be worth a question.
        let mut usable: Vec<(u16, &Candidate)> = Vec::new();
        let mut barred: Option<(u16, &Candidate)> = None;
        for candidate in &destination.candidates {
            let metric = total(candidate);
            if metric == INFINITY {
                continue;
            }
            if destination.feasible(candidate) {
                usable.push((metric, candidate));
            } else if barred.is_none_or(|(best, _)| metric < best) {
                barred = Some((metric, candidate));
            }
        }
        usable.sort_by_key(|(metric, candidate)| (*metric, candidate.link));
        let Some(&(best, first)) = usable.first() else {
            let wanted = barred.and_then(|(_, candidate)| self.to_ask(destination, candidate));
            return (None, wanted);
        };
        // The one that is told stays, unless another is clearly better.
        let kept = current.and_then(|current| {
            usable
                .iter()
                .find(|(metric, c)| {
                    c.link == current.link
                        && c.router_id == current.router_id
                        && best.saturating_add(worth_a_switch(*metric)) >= *metric
                })
                .copied()
        });
        let (metric, chosen) = kept.unwrap_or((best, first));
        let mut hops: Vec<NextHop> = usable
            .iter()
            .filter(|(m, c)| {
                // Who carries flows keeps them a little longer than it takes to be given some.
                let slack = if current.is_some_and(|r| r.uses(c.link)) {
                    2
                } else {
                    1
                };
                // Feasible now is not enough: what is told of the chosen one bounds what is
                // feasible from then on, and the others must be so after that, too.
                let distance = (chosen.serial, Reverse(metric));
                let behind =
                    c.router_id == chosen.router_id && (c.serial, Reverse(c.least)) > distance;
                c.link == chosen.link || (behind && *m <= best.saturating_add(near(best) * slack))
            })
            .take(self.config.next_hops_max)
            .map(|(_, c)| NextHop {
                link: c.link,
                weight: 1,
            })
            .collect();
        if !hops.iter().any(|hop| hop.link == chosen.link) {
            hops.pop();
            hops.push(NextHop {
                link: chosen.link,
                weight: 1,
            });
        }
        // A stable order: the hash of a flow picks by place.
        hops.sort_by_key(|hop| hop.link);
        let selected = Selected {
            link: chosen.link,
            router_id: chosen.router_id,
            serial: chosen.serial,
            metric,
            hops,
        };
        let wanted = barred
            .filter(|(m, _)| m.saturating_add(worth_a_switch(metric)) < metric)
            .and_then(|(_, candidate)| self.to_ask(destination, candidate));
        (Some(selected), wanted)
    }

    fn to_ask(
        &self,
        destination: &Destination,
        candidate: &Candidate,
    ) -> Option<(RouterId, Serial, u32)> {
        let source = destination.source(candidate.router_id)?;
        let (serial, _) = source.distance?;
        Some((candidate.router_id, serial.next(), candidate.link))
    }

    /// The neighbour has started anew: what it offered lives on only if it is told again soon.
    pub(super) fn grow_stale(&mut self, now: Nanos, link: u32) {
        let prefixes = self.prefixes_of(link);
        // The more there is, the longer it takes to be told.
        let patience = STALE_AFTER + Duration::from_millis(prefixes.len() as u64);
        for prefix in prefixes {
            let candidates = self.table.get_mut(&prefix).map(|d| &mut d.candidates);
            for candidate in candidates.into_iter().flatten().filter(|c| c.link == link) {
                candidate.expires = candidate.expires.min(now + patience);
            }
        }
        self.timers.set(Timer::Stale(link), now + patience);
    }

    pub(super) fn stale_due(&mut self, now: Nanos, link: u32) {
        for prefix in self.prefixes_of(link) {
            self.expire(now, prefix);
        }
    }

    /// Candidates that were not told again in time end.
    pub(super) fn expire(&mut self, now: Nanos, prefix: Prefix) {
        let late = |c: &&Candidate| c.expires <= now;
        let candidates = self.table.get(&prefix).map(|d| &d.candidates);
        let late = candidates.into_iter().flatten().filter(late);
        for link in late.map(|c| c.link).collect::<Vec<_>>() {
            self.drop_candidate(now, prefix, link);
        }
    }
}
