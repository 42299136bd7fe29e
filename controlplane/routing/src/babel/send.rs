//! What neighbours are told: updates, by packets that they acknowledge.
//!
//! A link has a set of prefixes whose state the neighbour is to be told. A packet takes some of
//! them, as they are at that moment; if it is not acknowledged they go back into the set. So a lost
//! packet never brings old news, and what waits is bounded by the table.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::babel::{INFINITY, RouterId, Serial, Tlv, Update, Writer};

use hyphae_wire::Prefix;

use super::link::Link;
use super::table::Marks;
use super::{REFRESH, Speaker, Timer, Transmit};

/// Packets that may be unacknowledged on a link.
const WINDOW: usize = 32;
/// Packets sent at once, and the pause after them: 8 Mbit/s at most.
const BURST: usize = 8;
const BURST_PAUSE: Duration = Duration::from_millis(10);
/// Changes that follow one another within this time leave together.
const GATHER_URGENT: Duration = Duration::from_millis(5);
const GATHER: Duration = Duration::from_millis(200);

/// Wildcard requests answered between two hellos of a link: each goes over the whole table. One more
/// waits for the next hello.
const TOLD_ALL_MAX: u32 = 4;

/// What a packet says of a prefix.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// There is a route, with the serial whose proof is part of it.
    Route(Option<Serial>),
    /// There is none.
    End,
}

/// A packet that is not acknowledged.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Prefixes told in it.
    told: Vec<(Prefix, Told)>,
    /// What is sent again as it was: the opening of a link.
    again: Option<Vec<Tlv>>,
    deadline: Nanos,
    tries: u32,
}

/// Whether a packet was sent after another.
pub(super) fn newer(opaque: u16, than: u16) -> bool {
    let ahead = opaque.wrapping_sub(than);
    ahead != 0 && ahead < 0x8000
}

impl Link {
    fn is_in_flight(&self, prefix: Prefix) -> bool {
        let tells = |packet: &InFlight| packet.told.iter().any(|(told, _)| *told == prefix);
        self.in_flight.values().any(tells)
    }

    /// Whether a packet that asks for an acknowledgement is news: neither a copy of one that was
    /// taken nor overtaken by a later one, whose contents it would undo. What is overtaken is not
    /// acknowledged, so the neighbour tells again what is true then. `opening` is the hello of an
    /// opening, which starts the numbers anew: when it was sent after the last hello, or when its
    /// number says that it is another speaker's.
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
    /// A route or its end has to be told on every link.
    pub(super) fn tell_all(&mut self, now: Nanos, prefix: Prefix, urgent: bool) {
        let delay = if urgent { GATHER_URGENT } else { GATHER };
        for link in self.audience(prefix) {
            if let Some(state) = self.links.get_mut(&link) {
                state.pending.insert(prefix);
            }
            self.flush_soon(now, link, delay);
        }
    }

    /// A route has become, or is no longer, one through this link.
    pub(super) fn tell_soon(&mut self, now: Nanos, prefix: Prefix, link: u32) {
        if let Some(state) = self.links.get_mut(&link) {
            state.pending.insert(prefix);
            self.flush_soon(now, link, GATHER_URGENT);
        }
    }

    /// Routes are told again, for neighbours that only believe in what is repeated.
    pub(super) fn tell_again(&mut self, now: Nanos, prefixes: impl Iterator<Item = Prefix>) {
        for prefix in prefixes {
            self.tell_all(now, prefix, false);
        }
    }

    /// Links that have something to be told of a prefix as it is now. Where `export` tells thousands of
    /// neighbours next to nothing, each route would otherwise wait in all their sets to be found so.
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
        if origin.is_none() && !marks.told.intersects(&self.slots.used) {
            return Vec::new();
        }
        let exported = |to| origin.is_some_and(|key| export.accepts(prefix, &key, to));
        let links = self.links.iter();
        let concerned =
            links.filter(|(_, state)| marks.told.contains(state.slot) || exported(&state.key));
        concerned.map(|(link, _)| *link).collect()
    }

    /// Everything has to be told on a link, with proofs.
    fn tell_everything(&mut self, now: Nanos, link: u32) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let marks = self
            .own
            .values_mut()
            .map(|own| &mut own.marks)
            .chain(self.table.values_mut().map(|d| &mut d.marks));
        marks.for_each(|marks| marks.forget(state.slot));
        // Without marks, of what has no route there is nothing to tell.
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

    /// Sends the opening of a link; nothing else goes out before it is acknowledged.
    pub(super) fn transmit_opening(&mut self, now: Nanos, link: u32, tlvs: &[Tlv]) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.tlvs.extend(tlvs);
        let again = Some(tlvs.to_vec());
        self.transmit(now, link, Vec::new(), again, 0);
    }

    /// Sends what waits for a link, as far as the window allows.
    pub(super) fn flush(&mut self, now: Nanos, link: u32) {
        self.timers.set(Timer::Flush(link), Nanos::NEVER);
        for sent in 0.. {
            let Some(state) = self.links.get_mut(&link) else {
                return;
            };
            let may_tell = state.open && state.in_flight.len() < WINDOW;
            if state.tlvs.is_empty() && (state.pending.is_empty() || !may_tell) {
                return;
            }
            if sent == BURST {
                self.flush_soon(now, link, BURST_PAUSE);
                return;
            }
            let taken = if may_tell {
                // More than fit are taken and put back.
                state.pending.take(64)
            } else {
                Vec::new()
            };
            self.transmit(now, link, taken, None, 0);
        }
    }

    /// Builds one packet of a link: what waits as TLVs, then updates for as many of `prefixes` as
    /// fit; the others wait.
    fn transmit(
        &mut self,
        now: Nanos,
        link: u32,
        prefixes: Vec<Prefix>,
        again: Option<Vec<Tlv>>,
        tries: u32,
    ) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let mut writer = Writer::new();
        let patience = state.patience(tries);
        let opaque = state.ack_last.wrapping_add(1);
        let ack = Tlv::AckRequest {
            opaque,
            interval: u16::try_from(patience.as_millis() / 10).unwrap_or(u16::MAX),
        };
        let mut waiting = std::mem::take(&mut state.tlvs);
        let ask = again.is_some() || !prefixes.is_empty();
        if ask && !writer.push(&ack) {
            state.pending.put_back(&prefixes);
            return;
        }
        let fit = waiting.iter().take_while(|tlv| writer.push(tlv)).count();
        state.tlvs = waiting.split_off(fit);
        let mut told = Vec::new();
        let mut updates = 0;
        let mut left = prefixes.into_iter();
        while let Some(prefix) = left.as_slice().first().copied() {
            let Some(update) = self.state_of(link, prefix) else {
                left.next();
                continue;
            };
            if !writer.push(&Tlv::Update(update)) {
                break;
            }
            left.next();
            updates += 1;
            let what = match update.metric {
                INFINITY => Told::End,
                _ => Told::Route(update.origin.map(|origin| origin.serial)),
            };
            told.push((prefix, what));
            self.note_told(link, prefix, &update);
        }
        self.counters.updates_sent += updates;
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.pending.put_back(left.as_slice());
        // With nothing to tell after all, a request alone is no packet.
        if fit == 0 && told.is_empty() {
            return;
        }
        if ask {
            state.ack_last = opaque;
            let deadline = now + patience;
            state.in_flight.insert(
                opaque,
                InFlight {
                    told,
                    again,
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

    /// What a neighbour is to be told of a prefix; `None` for nothing.
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
            let told = marks.told.contains(state.slot);
            told.then_some(Update {
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
        // Split horizon: where frames go, the route is not told.
        if route.uses(link) || !exported(&source.origin.key) {
            return retraction();
        }
        let proof = if destination.marks.proved.contains(state.slot) {
            None
        } else if source.origin.serial == route.serial {
            Some(source.origin)
        } else {
            // The proof at hand is of a newer number, which the route in use will have in a moment.
            // Without proof, it would be nothing that the neighbour can believe.
            return retraction();
        };
        Some(update(route.router_id, route.serial, route.metric, proof))
    }

    /// Notes what was put into a packet.
    fn note_told(&mut self, link: u32, prefix: Prefix, update: &Update) {
        let Some(slot) = self.links.get(&link).map(|state| state.slot) else {
            return;
        };
        if let Some(own) = self.own.get_mut(&prefix) {
            match update.metric {
                INFINITY => own.marks.proved.remove(slot),
                _ => own.marks.told.insert(slot),
            }
            return;
        }
        let Some(destination) = self.table.get_mut(&prefix) else {
            return;
        };
        // The end of a route stays to be told until it was acknowledged. With it the neighbour
        // forgets what was proved.
        if update.metric == INFINITY {
            destination.marks.proved.remove(slot);
            return;
        }
        destination.marks.told.insert(slot);
        destination.told_metric = update.metric;
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
        let opened = acknowledged.again.is_some() && !state.open;
        state.open |= opened;
        // Of a late acknowledgement nobody knows what was told after it.
        let newest = state.acknowledged.is_none_or(|last| newer(opaque, last));
        if newest {
            state.acknowledged = Some(opaque);
        }
        for (prefix, what) in acknowledged.told {
            let serial = match what {
                Told::Route(Some(serial)) => serial,
                Told::Route(None) => continue,
                Told::End => {
                    let state = self.links.get(&link);
                    let again = state.is_none_or(|state| state.is_in_flight(prefix));
                    let own = self.own.get_mut(&prefix).map(|own| &mut own.marks);
                    let learnt = self.table.get_mut(&prefix).map(|d| &mut d.marks);
                    if newest
                        && !again
                        && let Some(marks) = own.or(learnt)
                    {
                        marks.told.remove(slot);
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
            self.tell_everything(now, link);
        } else {
            self.flush_soon(now, link, Duration::ZERO);
        }
    }

    /// Packets that were not acknowledged in time count as lost.
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
            self.counters.repeated += 1;
            match lost.again {
                Some(tlvs) => {
                    self.put_hello(now, link, true);
                    let Some(state) = self.links.get_mut(&link) else {
                        return;
                    };
                    state.tlvs.extend(&tlvs);
                    self.transmit(now, link, Vec::new(), Some(tlvs), lost.tries + 1);
                }
                None => {
                    let prefixes: Vec<Prefix> = lost.told.into_iter().map(|(p, _)| p).collect();
                    // What is due first goes out at once and alone, so that patience grows.
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
            if state.told_all >= TOLD_ALL_MAX {
                state.tell_all_due = true;
                return;
            }
            state.told_all += 1;
            // Both ends know the round-trip time before they tell routes, which depend on it.
            self.put_hello(now, link, true);
            self.grow_stale(now, link);
            if self.links.get(&link).is_some_and(|state| state.open) {
                self.tell_everything(now, link);
            }
            return;
        };
        let Some(slot) = self.links.get(&link).map(|state| state.slot) else {
            return;
        };
        let mark = |marks: &mut Marks| {
            marks.proved.remove(slot);
            // Asked for a route, one answers even that there is none.
            marks.told.insert(slot);
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
        self.tell_one(now, link, prefix);
    }

    /// A prefix has to be told on one link, at once.
    pub(super) fn tell_one(&mut self, now: Nanos, link: u32, prefix: Prefix) {
        if let Some(state) = self.links.get_mut(&link) {
            state.pending.insert(prefix);
        }
        self.flush_soon(now, link, Duration::ZERO);
    }

    /// Whether this node has a route of that origin with at least that number.
    pub(super) fn has(&self, prefix: Prefix, router_id: RouterId, seqno: u16) -> bool {
        self.table
            .get(&prefix)
            .and_then(|d| d.selected.as_ref())
            .is_some_and(|r| r.router_id == router_id && r.serial >= r.serial.near(seqno))
    }
}
