//! Updates to neighbours, in packets that they acknowledge (RFC 8966 section 3.3).
//!
//! A link has a set of pending prefixes. A packet takes some of them with their state at that moment; without
//! an acknowledgement they return to the set. A retransmission therefore never carries old state, and the set
//! is bounded by the table.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::babel::{INFINITY, RouterId, Serial, Tlv, Update, Writer};

use hyphae_wire::Prefix;

use super::in_flight::{Advertised, InFlight};
use super::link::Link;
use super::table::Marks;
use super::{REFRESH, Speaker, Timer, Transmit};

/// Packets that may be unacknowledged on a link.
const WINDOW: usize = 32;
/// Packets sent at once, and the pause after them: at most 8 Mbit/s.
const BURST: usize = 8;
const BURST_PAUSE: Duration = Duration::from_millis(10);
/// Changes within this time leave in one packet.
const GATHER_URGENT: Duration = Duration::from_millis(5);
const GATHER: Duration = Duration::from_millis(200);

/// Wildcard requests answered between two hellos of a link, since each walks the whole table. One more
/// waits for the next hello.
const TABLE_REQUESTS_MAX: u32 = 4;

/// Whether a packet was sent after another.
pub(super) fn newer(opaque: u16, than: u16) -> bool {
    let ahead = opaque.wrapping_sub(than);
    ahead != 0 && ahead < 0x8000
}

impl Link {
    fn is_in_flight(&self, prefix: Prefix) -> bool {
        let carries = |packet: &InFlight| packet.advertised.iter().any(|(p, _)| *p == prefix);
        self.in_flight.values().any(carries)
    }

    /// Whether a packet that requests an acknowledgement is newer than all accepted ones: neither a duplicate nor
    /// reordered, since its contents would undo a later packet's. A reordered packet is not acknowledged, so the
    /// neighbour sends the current state again. `opening` is the hello of an opening, which restarts the numbers:
    /// if it was sent after the last hello, or if its number shows another speaker.
    pub(super) fn is_news(&mut self, opaque: u16, opening: Option<(u16, Option<u32>)>) -> bool {
        let later = |(seqno, sent): (u16, Option<u32>)| {
            let last = self.last_hello.map(|hello| hello.origin);
            let after = sent
                .zip(last)
                .is_none_or(|(sent, last)| (1..0x8000_0000).contains(&sent.wrapping_sub(last)));
            after || !self.expects(seqno)
        };
        let news = self.taken.is_none_or(|taken| newer(opaque, taken));
        let news = news || opening.is_some_and(later);
        if news {
            self.taken = Some(opaque);
        }
        news
    }
}

impl Speaker {
    /// Queues the state of a prefix on every link.
    pub(super) fn advertise(&mut self, now: Nanos, prefix: Prefix, urgent: bool) {
        let delay = if urgent { GATHER_URGENT } else { GATHER };
        for link in self.audience(prefix) {
            if let Some(state) = self.links.get_mut(&link) {
                state.pending.insert(prefix);
            }
            self.flush_soon(now, link, delay);
        }
    }

    /// Queues a prefix whose route has begun or ceased to use this link.
    pub(super) fn advertise_soon(&mut self, now: Nanos, prefix: Prefix, link: u32) {
        if let Some(state) = self.links.get_mut(&link) {
            state.pending.insert(prefix);
            self.flush_soon(now, link, GATHER_URGENT);
        }
    }

    /// Queues routes again, for neighbours that expire what is not refreshed.
    pub(super) fn readvertise(&mut self, now: Nanos, prefixes: impl Iterator<Item = Prefix>) {
        for prefix in prefixes {
            self.advertise(now, prefix, false);
        }
    }

    /// Links on which the state of a prefix is to be advertised. Without this, a route that `export` denies
    /// to thousands of neighbours would be queued for each of them without use.
    fn audience(&self, prefix: Prefix) -> Vec<u32> {
        let known = match self.own.get(&prefix) {
            Some(own) => Some((&own.marks, Some(self.key))),
            None => self.table.get(&prefix).map(|destination| {
                let route = destination.selected.as_ref();
                let source = route.and_then(|route| destination.source(route.router_id));
                (&destination.marks, source.map(|source| source.origin.key))
            }),
        };
        let Some((marks, origin)) = known else {
            return Vec::new();
        };
        let export = &self.config.export;
        let origin = origin.filter(|key| export.may_accept(prefix, key));
        if origin.is_none() && !marks.advertised.intersects(&self.slots.used) {
            return Vec::new();
        }
        let exported = |to| origin.is_some_and(|key| export.accepts(prefix, &key, to));
        let links = self.links.iter();
        let concerned = links
            .filter(|(_, state)| marks.advertised.contains(state.slot) || exported(&state.key));
        concerned.map(|(link, _)| *link).collect()
    }

    /// Queues the whole table on a link, with proofs.
    fn advertise_table(&mut self, now: Nanos, link: u32) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let marks = self
            .own
            .values_mut()
            .map(|own| &mut own.marks)
            .chain(self.table.values_mut().map(|d| &mut d.marks));
        marks.for_each(|marks| marks.forget(state.slot));
        // Without marks, destinations without a route need no retraction.
        let routes = self.table.iter().filter_map(|(prefix, destination)| {
            let route = destination.selected.as_ref()?;
            Some((*prefix, destination.source(route.router_id)?.origin.key))
        });
        let own = self.own.keys().map(|prefix| (*prefix, self.key));
        let export = &self.config.export;
        let exported = own
            .chain(routes)
            .filter(|(prefix, origin)| export.accepts(*prefix, origin, &state.key));
        state.pending.extend(exported.map(|(prefix, _)| prefix));
        self.flush_soon(now, link, Duration::ZERO);
    }

    pub(super) fn flush_soon(&mut self, now: Nanos, link: u32, delay: Duration) {
        let timer = Timer::Flush(link);
        if self.links.contains_key(&link)
            && self.timers.get(&timer).is_none_or(|at| at > now + delay)
        {
            self.timers.set(timer, now + delay);
        }
    }

    /// Sends the opening of a link; updates wait until it is acknowledged.
    pub(super) fn transmit_opening(&mut self, now: Nanos, link: u32, tlvs: &[Tlv]) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.tlvs.extend(tlvs);
        let opening = Some(tlvs.to_vec());
        self.transmit(now, link, Vec::new(), opening, 0);
    }

    /// Sends what is queued for a link, as far as the window allows.
    pub(super) fn flush(&mut self, now: Nanos, link: u32) {
        self.timers.set(Timer::Flush(link), Nanos::NEVER);
        for sent in 0.. {
            let Some(state) = self.links.get_mut(&link) else {
                return;
            };
            let may_advertise = state.open && state.in_flight.len() < WINDOW;
            if state.tlvs.is_empty() && (state.pending.is_empty() || !may_advertise) {
                return;
            }
            if sent == BURST {
                self.flush_soon(now, link, BURST_PAUSE);
                return;
            }
            let taken = if may_advertise {
                // More than fit into a packet; the rest is put back.
                state.pending.take(64)
            } else {
                Vec::new()
            };
            self.transmit(now, link, taken, None, 0);
        }
    }

    /// Builds one packet of a link: queued TLVs, then updates for as many of `prefixes` as fit; the others are
    /// put back.
    fn transmit(
        &mut self,
        now: Nanos,
        link: u32,
        prefixes: Vec<Prefix>,
        opening: Option<Vec<Tlv>>,
        tries: u32,
    ) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let mut writer = Writer::new();
        let timeout = state.ack_timeout(tries);
        let opaque = state.ack_last.wrapping_add(1);
        let ack = Tlv::AckRequest {
            opaque,
            interval: u16::try_from(timeout.as_millis() / 10).unwrap_or(u16::MAX),
        };
        let mut waiting = std::mem::take(&mut state.tlvs);
        let acknowledged = opening.is_some() || !prefixes.is_empty();
        if acknowledged && !writer.push(&ack) {
            state.pending.put_back(&prefixes);
            return;
        }
        let fit = waiting.iter().take_while(|tlv| writer.push(tlv)).count();
        state.tlvs = waiting.split_off(fit);
        let (advertised, left) = self.fill(link, &mut writer, &prefixes);
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.pending.put_back(left);
        // An acknowledgement request alone is not worth a packet.
        if fit == 0 && advertised.is_empty() {
            return;
        }
        if acknowledged {
            state.ack_last = opaque;
            let deadline = now + timeout;
            state.in_flight.insert(
                opaque,
                InFlight {
                    advertised,
                    opening,
                    deadline,
                    tries,
                },
            );
            let timer = Timer::Ack(link);
            if self.timers.get(&timer).is_none_or(|at| at > deadline) {
                self.timers.set(timer, deadline);
            }
        }
        let packet = writer.take();
        self.counters.packets_sent += 1;
        self.counters.bytes_sent += packet.len() as u64;
        self.transmits.push_back(Transmit { link, packet });
    }

    /// Puts updates for as many of `prefixes` as fit into a packet. Returns what it advertises, and the rest.
    fn fill<'a>(
        &mut self,
        link: u32,
        writer: &mut Writer,
        prefixes: &'a [Prefix],
    ) -> (Vec<(Prefix, Advertised)>, &'a [Prefix]) {
        let mut advertised = Vec::new();
        let mut left = prefixes;
        while let [prefix, rest @ ..] = left {
            if let Some(update) = self.state_of(link, *prefix) {
                if !writer.push(&Tlv::Update(update)) {
                    break;
                }
                let what = match update.metric {
                    INFINITY => Advertised::Retraction,
                    _ => Advertised::Route(update.origin.map(|origin| origin.serial)),
                };
                advertised.push((*prefix, what));
                self.note_advertised(link, *prefix, &update);
            }
            left = rest;
        }
        self.counters.updates_sent += advertised.len() as u64;
        (advertised, left)
    }

    /// The update of a prefix for a neighbour; `None` for none.
    fn state_of(&self, link: u32, prefix: Prefix) -> Option<Update> {
        let state = self.links.get(&link)?;
        // Below 65,536 centiseconds.
        let interval = u16::try_from(REFRESH.as_secs() * 100).unwrap_or(u16::MAX);
        let update = |router_id, serial: Serial, metric, origin| Update {
            prefix: Some(prefix),
            router_id: Some(router_id),
            interval,
            seqno: serial.seqno(),
            metric,
            origin,
        };
        let exported = |key| self.config.export.accepts(prefix, key, &state.key);
        let ended = |marks: &Marks| {
            let advertised = marks.advertised.contains(state.slot);
            advertised.then_some(Update {
                prefix: Some(prefix),
                router_id: None,
                interval,
                seqno: 0,
                metric: INFINITY,
                origin: None,
            })
        };
        if let Some(own) = self.own.get(&prefix) {
            if !exported(&self.key) {
                return ended(&own.marks);
            }
            let proof = (!own.marks.proved.contains(state.slot)).then_some(own.origin);
            return Some(update(self.router_id, own.origin.serial, 0, proof));
        }
        let destination = self.table.get(&prefix)?;
        let retraction = || ended(&destination.marks);
        let Some(route) = &destination.selected else {
            return retraction();
        };
        let source = destination.source(route.router_id)?;
        // Split horizon: a route is not advertised to its next hops.
        if route.uses(link) || !exported(&source.origin.key) {
            return retraction();
        }
        let proof = if destination.marks.proved.contains(state.slot) {
            None
        } else if source.origin.serial == route.serial {
            Some(source.origin)
        } else {
            // The known proof is that of a newer serial, which the selected route will soon have. The
            // neighbour could not validate the route without its own proof.
            return retraction();
        };
        Some(update(route.router_id, route.serial, route.metric, proof))
    }

    /// Records what was put into a packet.
    fn note_advertised(&mut self, link: u32, prefix: Prefix, update: &Update) {
        let Some(slot) = self.links.get(&link).map(|state| state.slot) else {
            return;
        };
        if let Some(own) = self.own.get_mut(&prefix) {
            match update.metric {
                INFINITY => own.marks.proved.remove(slot),
                _ => own.marks.advertised.insert(slot),
            }
            return;
        }
        let Some(destination) = self.table.get_mut(&prefix) else {
            return;
        };
        // A retraction stays pending until it is acknowledged. It also invalidates the proof that the
        // neighbour has.
        if update.metric == INFINITY {
            destination.marks.proved.remove(slot);
            return;
        }
        destination.marks.advertised.insert(slot);
        destination.advertised_metric = update.metric;
        if let Some((router_id, serial, metric)) = destination
            .selected
            .as_ref()
            .map(|r| (r.router_id, r.serial, r.metric))
        {
            destination.bind(router_id, serial, metric);
        }
    }

    pub(super) fn handle_ack(&mut self, now: Nanos, link: u32, opaque: u16) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let Some(acknowledged) = state.in_flight.remove(&opaque) else {
            return;
        };
        let slot = state.slot;
        let opened = acknowledged.opening.is_some() && !state.open;
        state.open |= opened;
        // After a late acknowledgement the state that the neighbour has is unknown.
        let newest = state.acknowledged.is_none_or(|last| newer(opaque, last));
        if newest {
            state.acknowledged = Some(opaque);
        }
        for (prefix, what) in acknowledged.advertised {
            let serial = match what {
                Advertised::Route(Some(serial)) => serial,
                Advertised::Route(None) => continue,
                Advertised::Retraction => {
                    let state = self.links.get(&link);
                    let again = state.is_none_or(|state| state.is_in_flight(prefix));
                    let own = self.own.get_mut(&prefix).map(|own| &mut own.marks);
                    let learnt = self.table.get_mut(&prefix).map(|d| &mut d.marks);
                    if newest
                        && !again
                        && let Some(marks) = own.or(learnt)
                    {
                        marks.advertised.remove(slot);
                        self.forget_ended(prefix);
                    }
                    continue;
                }
            };
            if let Some(own) = self.own.get_mut(&prefix) {
                if own.origin.serial == serial {
                    own.marks.proved.insert(slot);
                }
            } else if let Some(destination) = self.table.get_mut(&prefix) {
                let selected = destination.selected.as_ref();
                if selected.is_some_and(|route| route.serial == serial) {
                    destination.marks.proved.insert(slot);
                }
            }
        }
        if opened {
            self.advertise_table(now, link);
        } else {
            self.flush_soon(now, link, Duration::ZERO);
        }
    }

    /// Retransmits packets whose acknowledgement is overdue.
    pub(super) fn ack_due(&mut self, now: Nanos, link: u32) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let late: Vec<u16> = state
            .in_flight
            .iter()
            .filter(|(_, packet)| packet.deadline <= now)
            .map(|(opaque, _)| *opaque)
            .collect();
        for opaque in late {
            let Some(state) = self.links.get_mut(&link) else {
                return;
            };
            let Some(lost) = state.in_flight.remove(&opaque) else {
                continue;
            };
            self.counters.retransmitted += 1;
            match lost.opening {
                Some(tlvs) => {
                    self.enqueue_hello(now, link, true);
                    let Some(state) = self.links.get_mut(&link) else {
                        return;
                    };
                    state.tlvs.extend(&tlvs);
                    self.transmit(now, link, Vec::new(), Some(tlvs), lost.tries + 1);
                }
                None => {
                    let prefixes: Vec<Prefix> =
                        lost.advertised.into_iter().map(|(p, _)| p).collect();
                    // The oldest is sent at once and alone, so that the timeout grows.
                    self.transmit(now, link, prefixes, None, lost.tries + 1);
                }
            }
        }
        let next = self
            .links
            .get(&link)
            .and_then(|state| state.in_flight.values().map(|p| p.deadline).min());
        self.timers
            .set(Timer::Ack(link), next.unwrap_or(Nanos::NEVER));
    }

    pub(super) fn handle_route_request(&mut self, now: Nanos, link: u32, prefix: Option<Prefix>) {
        let Some(prefix) = prefix else {
            let Some(state) = self.links.get_mut(&link) else {
                return;
            };
            if state.table_requests >= TABLE_REQUESTS_MAX {
                state.table_request_due = true;
                return;
            }
            state.table_requests += 1;
            // Metrics depend on the round-trip time, so both ends measure it first.
            self.enqueue_hello(now, link, true);
            self.mark_stale(now, link);
            if self.links.get(&link).is_some_and(|state| state.open) {
                self.advertise_table(now, link);
            }
            return;
        };
        let Some(slot) = self.links.get(&link).map(|state| state.slot) else {
            return;
        };
        let mark = |marks: &mut Marks| {
            marks.proved.remove(slot);
            // A request is answered even without a route.
            marks.advertised.insert(slot);
        };
        if let Some(own) = self.own.get_mut(&prefix) {
            mark(&mut own.marks);
        } else if let Some(destination) = self.table.get_mut(&prefix) {
            mark(&mut destination.marks);
        } else {
            let retraction = Update {
                prefix: Some(prefix),
                router_id: None,
                interval: 0,
                seqno: 0,
                metric: INFINITY,
                origin: None,
            };
            self.enqueue(now, link, Tlv::Update(retraction));
            return;
        }
        self.advertise_to(now, link, prefix);
    }

    /// Queues a prefix on one link, to be sent at once.
    pub(super) fn advertise_to(&mut self, now: Nanos, link: u32, prefix: Prefix) {
        if let Some(state) = self.links.get_mut(&link) {
            state.pending.insert(prefix);
        }
        self.flush_soon(now, link, Duration::ZERO);
    }

    /// Whether the selected route is of that origin and has at least that sequence number.
    pub(super) fn has(&self, prefix: Prefix, router_id: RouterId, seqno: u16) -> bool {
        self.table
            .get(&prefix)
            .and_then(|d| d.selected.as_ref())
            .is_some_and(|r| r.router_id == router_id && r.serial >= r.serial.near(seqno))
    }
}
