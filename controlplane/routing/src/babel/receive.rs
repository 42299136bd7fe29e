//! Packets of neighbours.
//!
//! Signature checks are slow, so updates pass through a queue per link, served round-robin. While all queues
//! together are long, packets of a link with more than its share are deferred: they are not acknowledged, so
//! the neighbour retransmits them.

use std::collections::{BTreeMap, VecDeque};

use hyphae_time::Nanos;
use hyphae_wire::babel::{INFINITY, Origin, Packet, RouterId, Serial, Tlv, TlvError, Update};

use hyphae_wire::Prefix;

use super::origin::{RefusalReason, Refused};
use super::table::Candidate;
use super::{Speaker, Timer};

/// Queued updates beyond which links with more than their share are deferred.
const WORK_MAX: usize = 2048;
/// Proofs requested between two hellos of a link.
const PROOF_REQUESTS_MAX: u32 = 64;

/// Queued updates, by link.
#[derive(Default)]
pub(super) struct Work {
    queues: BTreeMap<u32, VecDeque<Update>>,
    waiting: usize,
    /// The link served last.
    last: u32,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether packets of a link are to be deferred.
    fn is_busy(&self, link: u32) -> bool {
        let own = self.queues.get(&link).map_or(0, VecDeque::len);
        self.waiting > WORK_MAX && own * self.queues.len() >= WORK_MAX
    }

    fn push(&mut self, link: u32, update: Update) {
        self.queues.entry(link).or_default().push_back(update);
        self.waiting += 1;
    }

    /// The next update, round-robin.
    fn pop(&mut self) -> Option<(u32, Update)> {
        let after = (
            std::ops::Bound::Excluded(self.last),
            std::ops::Bound::Unbounded,
        );
        let next = self.queues.range(after).next();
        let link = *next.or_else(|| self.queues.first_key_value())?.0;
        let queue = self.queues.get_mut(&link)?;
        let update = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&link);
        }
        self.waiting -= 1;
        self.last = link;
        Some((link, update))
    }

    /// Drops the queue of a link that went down.
    pub(super) fn forget(&mut self, link: u32) {
        self.waiting -= self.queues.remove(&link).map_or(0, |queue| queue.len());
    }
}

impl Speaker {
    /// Handles a packet of a neighbour that arrived at `received`.
    pub fn handle_packet(&mut self, now: Nanos, link: u32, received: Nanos, bytes: &[u8]) {
        if !self.links.contains_key(&link) {
            return;
        }
        self.counters.packets_received += 1;
        self.counters.bytes_received += bytes.len() as u64;
        let Ok(packet) = Packet::parse(bytes) else {
            self.counters.malformed += 1;
            return;
        };
        let busy = self.work.is_busy(link);
        if busy {
            self.counters.deferred += 1;
        }
        let mut hello_sent = None;
        let stale = !busy && self.is_stale(link, &packet);
        for tlv in packet.tlvs() {
            let tlv = match tlv {
                Ok(tlv) => tlv,
                Err(TlvError::Malformed(_)) => {
                    self.counters.malformed += 1;
                    continue;
                }
                Err(TlvError::Ignored(_)) => {
                    self.counters.ignored += 1;
                    continue;
                }
            };
            match tlv {
                Tlv::Hello {
                    unicast: false,
                    seqno,
                    interval,
                    transmit,
                } => {
                    hello_sent = transmit;
                    self.handle_hello(now, received, link, (seqno, interval, transmit));
                }
                // Unicast hellos are not used by the cost.
                Tlv::Hello { unicast: true, .. } => {}
                Tlv::Ihu { rxcost, echo, .. } => {
                    self.handle_ihu(now, received, link, rxcost, echo, hello_sent);
                }
                Tlv::Ack { opaque } => self.handle_ack(now, link, opaque),
                Tlv::AckRequest { .. } | Tlv::Update(_) if busy || stale => {}
                Tlv::AckRequest { opaque, .. } => self.enqueue(now, link, Tlv::Ack { opaque }),
                Tlv::Update(update) => self.enqueue_update(link, update),
                Tlv::RouteRequest { prefix } => self.handle_route_request(now, link, prefix),
                Tlv::SeqnoRequest(request) => self.handle_seqno_request(now, link, &request),
            }
        }
        self.process_updates(now);
    }

    /// Whether updates of the packet are older than some that were accepted already.
    fn is_stale(&mut self, link: u32, packet: &Packet<'_>) -> bool {
        let (mut asked, mut hello, mut opening) = (None, None, false);
        for tlv in packet.tlvs().flatten() {
            match tlv {
                Tlv::AckRequest { opaque, .. } => asked = Some(opaque),
                Tlv::Update(update) => opening |= update.prefix.is_none(),
                Tlv::Hello {
                    seqno, transmit, ..
                } => hello = Some((seqno, transmit)),
                Tlv::RouteRequest { prefix } => opening |= prefix.is_none(),
                Tlv::Ack { .. } | Tlv::Ihu { .. } | Tlv::SeqnoRequest(_) => {}
            }
        }
        match (asked, self.links.get_mut(&link)) {
            (Some(opaque), Some(state)) => !state.is_news(opaque, hello.filter(|_| opening)),
            _ => false,
        }
    }

    fn enqueue_update(&mut self, link: u32, update: Update) {
        self.counters.updates_received += 1;
        self.work.push(link, update);
    }

    /// Processes queued updates, as many as the budget allows.
    pub(super) fn process_updates(&mut self, now: Nanos) {
        while self.verify_budget > 0 {
            let Some((link, update)) = self.work.pop() else {
                break;
            };
            self.handle_update(now, link, &update);
        }
        let at = if self.work.is_empty() {
            Nanos::NEVER
        } else {
            now
        };
        self.timers.set(Timer::Work, at);
    }

    fn handle_update(&mut self, now: Nanos, link: u32, update: &Update) {
        let Some(prefix) = update.prefix else {
            self.drop_candidates(now, link);
            return;
        };
        if self.own.contains_key(&prefix) {
            if let Some(origin) = &update.origin {
                self.recall(now, prefix, origin);
            }
            return;
        }
        if update.metric == INFINITY {
            self.drop_candidate(now, prefix, link);
            return;
        }
        // The reader sets it on every update with a finite metric.
        let Some(router_id) = update.router_id else {
            return;
        };
        match self.validate_origin(now, link, prefix, router_id, update) {
            Ok(Some(serial)) => {
                let candidate = Candidate {
                    link,
                    router_id,
                    serial,
                    metric: update.metric,
                    least: update.metric,
                    expires: now,
                };
                self.offer(now, prefix, candidate, update.interval);
                self.request_answered(now, prefix, router_id, serial);
            }
            Ok(None) => self.request_proof(now, link, prefix),
            Err((origin, reason)) => {
                let Some(state) = self.links.get(&link) else {
                    return;
                };
                let refused = Refused {
                    neighbour: state.key,
                    prefix,
                    origin: origin.key,
                    reason,
                };
                self.refuse(refused);
                // The refused update replaces what the neighbour advertised before.
                self.drop_candidate(now, prefix, link);
            }
        }
    }

    /// The serial of an announcement whose origin is proved, by this update or by the neighbour's last one;
    /// `None` when the proof is missing.
    fn validate_origin(
        &mut self,
        now: Nanos,
        link: u32,
        prefix: Prefix,
        router_id: RouterId,
        update: &Update,
    ) -> Result<Option<Serial>, (Origin, RefusalReason)> {
        let destination = self.table.get(&prefix);
        let source = destination.and_then(|d| d.source(router_id));
        let Some(origin) = update.origin else {
            // Only what this neighbour has proved itself counts: two announcements may share the lower bits,
            // and its old one would be taken for a new one that others have proved.
            let known = destination
                .and_then(|d| d.candidate(link))
                .filter(|c| c.router_id == router_id)
                .map(|c| c.serial);
            return Ok(known.filter(|serial| serial.seqno() == update.seqno));
        };
        let serial = origin.serial;
        let Some(neighbour) = self.links.get(&link).map(|state| state.key) else {
            return Ok(None);
        };
        if source.is_some_and(|s| s.origin == origin) {
            // The proof is known, but the filter depends on the neighbour.
            return match self.config.import.accepts(prefix, &origin.key, &neighbour) {
                true => Ok(Some(serial)),
                false => Err((origin, RefusalReason::Filter)),
            };
        }
        self.authorize(&neighbour, prefix, router_id, &origin.key)
            .map_err(|reason| (origin, reason))?;
        if !self.signed(prefix, router_id, &origin) {
            return Err((origin, RefusalReason::Signature));
        }
        if !self.admit(now, link, prefix, router_id, origin) {
            return Err((origin, RefusalReason::Full));
        }
        Ok(Some(serial))
    }

    /// Requests a proof that the neighbour assumes to be known.
    fn request_proof(&mut self, now: Nanos, link: u32, prefix: Prefix) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        if state.proof_requests < PROOF_REQUESTS_MAX {
            state.proof_requests += 1;
            let prefix = Some(prefix);
            self.enqueue(now, link, Tlv::RouteRequest { prefix });
        }
    }
}
