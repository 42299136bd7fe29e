//! Sequence number requests, RFC 8966 section 3.8.
//!
//! A node must not use infeasible routes, because they might lead back to it. The origin's next sequence number
//! makes every route feasible again. It is requested along the infeasible routes, with the newest known proof.

use std::collections::BTreeSet;
use std::time::Duration;

use hyphae_shares::Ticket;
use hyphae_time::Nanos;
use hyphae_wire::babel::{RouterId, SeqnoRequest, Serial, Tlv};

use hyphae_wire::Prefix;

use super::shares::displaced;
use super::{Speaker, Timer};

/// Hop limit of a request.
const HOPS_MAX: u8 = 64;
/// First retransmission interval; doubles.
const REPEAT: Duration = Duration::from_millis(300);
/// Transmissions of a request.
const TRIES: u32 = 5;
/// Pending requests.
pub(super) const QUERIES_MAX: usize = 16_384;

/// A pending request, own or forwarded for a neighbour.
pub(super) struct Query {
    seqno: u16,
    hop_count: u8,
    tries: u32,
    own: bool,
    /// Links of the neighbours that sent it.
    requesters: BTreeSet<u32>,
    expires: Nanos,
    /// The link that caused it, by a request or an infeasible route, and the ticket of its share.
    cause: (u32, Option<Ticket>),
}

/// A pending request, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryStatus {
    /// The requested prefix.
    pub prefix: Prefix,
    /// When it is abandoned.
    pub expires: Nanos,
}

impl Speaker {
    /// Pending requests.
    pub fn queries(&self) -> impl Iterator<Item = QueryStatus> + '_ {
        self.queries.iter().map(|((prefix, _), query)| QueryStatus {
            prefix: *prefix,
            expires: query.expires,
        })
    }

    /// Requests a new sequence number of the origin of an infeasible route.
    pub(super) fn query(&mut self, now: Nanos, prefix: Prefix, wanted: (RouterId, Serial, u32)) {
        let (router_id, serial, link) = wanted;
        let seqno = serial.seqno();
        if let Some(query) = self.queries.get_mut(&(prefix, router_id)) {
            // One at a time; a forwarded request becomes an own one as well.
            if query.own && serial.near(query.seqno) >= serial {
                return;
            }
        }
        let query = Query {
            seqno,
            hop_count: HOPS_MAX,
            tries: 0,
            own: true,
            requesters: BTreeSet::new(),
            expires: now,
            cause: (link, None),
        };
        self.request_seqno(now, (prefix, router_id), query, link);
    }

    fn request_seqno(&mut self, now: Nanos, name: (Prefix, RouterId), mut query: Query, link: u32) {
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
            query.requesters.extend(before.requesters);
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
        // The first neighbour did not answer: now every neighbour that has a route.
        let neighbours: Vec<u32> = self.neighbours_with(prefix, router_id);
        for link in neighbours.iter().skip(1) {
            self.send_query(now, name, &query, *link);
        }
        if let Some(first) = neighbours.first() {
            self.request_seqno(now, name, query, *first);
        }
    }

    /// Links whose neighbours have a route of that origin, next hops in use first.
    fn neighbours_with(&self, prefix: Prefix, router_id: RouterId) -> Vec<u32> {
        let Some(destination) = self.table.get(&prefix) else {
            return Vec::new();
        };
        let used = |link: u32| destination.selected.as_ref().is_some_and(|r| r.uses(link));
        let mut neighbours: Vec<u32> = destination
            .candidates
            .iter()
            .filter(|c| c.router_id == router_id)
            .map(|c| c.link)
            .collect();
        neighbours.sort_by_key(|link| (!used(*link), *link));
        neighbours
    }

    /// Advertises an announcement that has arrived to the neighbours that requested it.
    pub(super) fn request_answered(
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
        let requesters = self.remove_query(name).map(|q| q.requesters);
        for link in requesters.into_iter().flatten() {
            self.advertise_to(now, link, prefix);
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
                self.advertise_to(now, link, prefix);
                return;
            }
            // The requester may know a newer serial than this node, which then restored an old state.
            if let Some(origin) = origin {
                self.recall(now, prefix, &origin);
            }
            let Some(own) = self.own.get(&prefix) else {
                return;
            };
            if own.origin.serial == serial && seqno_ahead(serial, seqno) && may_raise {
                self.raise(now, prefix, serial.next());
            } else {
                self.advertise_to(now, link, prefix);
            }
            return;
        }
        if self.has(prefix, router_id, seqno) {
            self.advertise_to(now, link, prefix);
            return;
        }
        if hop_count <= 1 {
            return;
        }
        let name = (prefix, router_id);
        if let Some(query) = self.queries.get_mut(&name)
            && seqno.wrapping_sub(query.seqno) > 0x7fff
        {
            query.requesters.insert(link);
            return;
        }
        if let Some(query) = self.queries.get_mut(&name)
            && query.seqno == seqno
        {
            query.requesters.insert(link);
            return;
        }
        let Some(next) = self
            .neighbours_with(prefix, router_id)
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
            requesters: BTreeSet::from([link]),
            expires: now,
            cause: (link, None),
        };
        self.request_seqno(now, name, query, next);
    }
}

/// Whether a requested number is ahead of the one in use.
fn seqno_ahead(serial: Serial, seqno: u16) -> bool {
    serial.near(seqno) > serial
}
