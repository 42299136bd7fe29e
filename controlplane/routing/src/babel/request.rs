//! Questions for a higher sequence number, RFC 8966 section 3.8.
//!
//! A node whose only routes are not feasible cannot use them: they might lead back to it. The
//! origin's next number makes every route feasible again, so that is asked for, along the routes
//! that are not feasible, with the newest proof at hand.

use std::collections::BTreeSet;
use std::time::Duration;

use hyphae_shares::Ticket;
use hyphae_time::Nanos;
use hyphae_wire::babel::{RouterId, SeqnoRequest, Serial, Tlv};

use hyphae_wire::Prefix;

use super::shares::displaced;
use super::{Speaker, Timer};

/// Hops that a question may go.
const HOPS_MAX: u8 = 64;
/// First pause before it is asked again; doubles.
const REPEAT: Duration = Duration::from_millis(300);
/// Times that it is asked.
const TRIES: u32 = 5;
/// Questions open at a time.
const QUERIES_MAX: usize = 16_384;

/// A question that was asked, here or for a neighbour.
pub(super) struct Query {
    seqno: u16,
    hop_count: u8,
    tries: u32,
    own: bool,
    /// Links whose neighbours want to know.
    askers: BTreeSet<u32>,
    expires: Nanos,
    /// The link that caused it, a neighbour's question or an infeasible route, and its ticket there.
    cause: (u32, Option<Ticket>),
}

/// A question under way, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryStatus {
    /// The prefix asked for.
    pub prefix: Prefix,
    /// When it is given up.
    pub expires: Nanos,
}

impl Speaker {
    /// Questions under way.
    pub fn queries(&self) -> impl Iterator<Item = QueryStatus> + '_ {
        self.queries.iter().map(|((prefix, _), query)| QueryStatus {
            prefix: *prefix,
            expires: query.expires,
        })
    }

    /// Asks the origin of an infeasible route for a new number.
    pub(super) fn query(&mut self, now: Nanos, prefix: Prefix, wanted: (RouterId, Serial, u32)) {
        let (router_id, serial, link) = wanted;
        let seqno = serial.seqno();
        if let Some(query) = self.queries.get_mut(&(prefix, router_id)) {
            // One at a time; a neighbour's question becomes our own as well.
            if query.own && serial.near(query.seqno) >= serial {
                return;
            }
        }
        let query = Query {
            seqno,
            hop_count: HOPS_MAX,
            tries: 0,
            own: true,
            askers: BTreeSet::new(),
            expires: now,
            cause: (link, None),
        };
        self.ask(now, (prefix, router_id), query, link);
    }

    fn ask(&mut self, now: Nanos, name: (Prefix, RouterId), mut query: Query, link: u32) {
        let before = self.remove_query(name);
        let (cause, _) = query.cause;
        if self.queries.len() >= QUERIES_MAX {
            let preferred = self.links.get(&cause).is_some_and(|state| state.preferred);
            let displaced = displaced(&self.query_shares, cause, preferred, false, QUERIES_MAX);
            let Some((_, displaced)) = displaced else {
                return;
            };
            self.remove_query(displaced);
        }
        query.tries += 1;
        query.expires = now + REPEAT * (1 << TRIES);
        self.send_query(now, name, &query, link);
        let pause = self.jitter(REPEAT * (1 << (query.tries - 1)));
        self.timers.set(Timer::Query(name.0, name.1), now + pause);
        if let Some(before) = before {
            query.askers.extend(before.askers);
        }
        let preferred = self.links.get(&cause).is_some_and(|state| state.preferred);
        let ticket = self.query_shares.add(preferred, cause, 1, name);
        query.cause = (cause, Some(ticket));
        self.queries.insert(name, query);
    }

    fn remove_query(&mut self, name: (Prefix, RouterId)) -> Option<Query> {
        let query = self.queries.remove(&name)?;
        if let (link, Some(ticket)) = query.cause {
            self.query_shares.remove(link, ticket);
        }
        self.timers.set(Timer::Query(name.0, name.1), Nanos::NEVER);
        Some(query)
    }

    fn send_query(
        &mut self,
        now: Nanos,
        (prefix, router_id): (Prefix, RouterId),
        query: &Query,
        link: u32,
    ) {
        self.counters.seqno_requests_sent += 1;
        let request = SeqnoRequest {
            prefix,
            router_id,
            seqno: query.seqno,
            hop_count: query.hop_count,
            origin: self.proof(prefix, router_id),
        };
        self.enqueue(now, link, Tlv::SeqnoRequest(request));
    }

    pub(super) fn query_due(&mut self, now: Nanos, prefix: Prefix, router_id: RouterId) {
        let name = (prefix, router_id);
        let Some(query) = self.queries.get(&name) else {
            return;
        };
        if !query.own || query.tries >= TRIES || self.has(prefix, router_id, query.seqno) {
            self.remove_query(name);
            return;
        }
        let Some(query) = self.remove_query(name) else {
            return;
        };
        // The first way did not lead there: now every neighbour that has a route is asked.
        let ways: Vec<u32> = self.ways(prefix, router_id);
        for link in ways.iter().skip(1) {
            self.send_query(now, name, &query, *link);
        }
        if let Some(first) = ways.first() {
            self.ask(now, name, query, *first);
        }
    }

    /// Links whose neighbours have a route of that origin.
    fn ways(&self, prefix: Prefix, router_id: RouterId) -> Vec<u32> {
        let Some(destination) = self.table.get(&prefix) else {
            return Vec::new();
        };
        let used = |link: u32| destination.selected.as_ref().is_some_and(|r| r.uses(link));
        let mut ways: Vec<u32> = destination
            .candidates
            .iter()
            .filter(|c| c.router_id == router_id)
            .map(|c| c.link)
            .collect();
        ways.sort_by_key(|link| (!used(*link), *link));
        ways
    }

    /// An announcement has come; whoever asked for it is told.
    pub(super) fn answered(
        &mut self,
        now: Nanos,
        prefix: Prefix,
        router_id: RouterId,
        serial: Serial,
    ) {
        let name = (prefix, router_id);
        let Some(query) = self.queries.get(&name) else {
            return;
        };
        if serial < serial.near(query.seqno) {
            return;
        }
        let askers = self.remove_query(name).map(|q| q.askers);
        for link in askers.into_iter().flatten() {
            self.tell_one(now, link, prefix);
        }
    }

    pub(super) fn handle_seqno_request(&mut self, now: Nanos, link: u32, request: &SeqnoRequest) {
        let SeqnoRequest {
            prefix,
            router_id,
            seqno,
            hop_count,
            origin,
        } = *request;
        if let Some(own) = self.own.get(&prefix) {
            let (serial, may_raise) = (own.origin.serial, own.next_raise <= now);
            if router_id != self.router_id {
                self.tell_one(now, link, prefix);
                return;
            }
            // Asked by someone who remembers more than we do.
            if let Some(origin) = origin {
                self.recall(now, prefix, &origin);
            }
            let Some(own) = self.own.get(&prefix) else {
                return;
            };
            if own.origin.serial == serial && seqno_ahead(serial, seqno) && may_raise {
                self.raise(now, prefix, serial.next());
            } else {
                self.tell_one(now, link, prefix);
            }
            return;
        }
        if self.has(prefix, router_id, seqno) {
            self.tell_one(now, link, prefix);
            return;
        }
        if hop_count <= 1 {
            return;
        }
        let name = (prefix, router_id);
        if let Some(query) = self.queries.get_mut(&name)
            && seqno.wrapping_sub(query.seqno) > 0x7fff
        {
            query.askers.insert(link);
            return;
        }
        if let Some(query) = self.queries.get_mut(&name)
            && query.seqno == seqno
        {
            query.askers.insert(link);
            return;
        }
        let Some(next) = self
            .ways(prefix, router_id)
            .into_iter()
            .find(|l| *l != link)
        else {
            return;
        };
        let query = Query {
            seqno,
            hop_count: hop_count - 1,
            tries: 0,
            own: false,
            askers: BTreeSet::from([link]),
            expires: now,
            cause: (link, None),
        };
        self.ask(now, name, query, next);
    }
}

/// Whether a wanted number is ahead of the one in use.
fn seqno_ahead(serial: Serial, seqno: u16) -> bool {
    serial.near(seqno) > serial
}
