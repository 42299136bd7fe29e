//! A link to a neighbour: hellos, loss, round-trip time, cost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::babel::{Echo, INFINITY, Tlv, Update};

use hyphae_wire::{Prefix, PublicKey};

use super::in_flight::InFlight;
use super::pending::Pending;
use super::{Speaker, Timer};

/// Cost of a link without delay and loss.
const COST_BASE: u32 = 64;
/// Round-trip time that adds one to the cost.
const RTT_STEP: Duration = Duration::from_micros(500);
/// Assumed round-trip time before the first measurement. An overestimate is cheaper: a route that turns out
/// shorter than advertised is feasible everywhere, one that turns out longer is not and needs a sequence number
/// request through the mesh.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);
/// Round-trip time above which the cost stays constant.
const RTT_MAX: Duration = Duration::from_secs(5);
/// Cost of perfect reception, as in RFC 8966 appendix A.2.2.
const PERFECT: u16 = 256;
/// Samples of which the lowest counts: queues are transient, the path is not.
const RTT_SAMPLES: usize = 8;
/// Every so many hellos carry timestamps and an IHU.
const IHU_EVERY: u16 = 3;
/// Longest hello interval that a neighbour is followed to, in multiples of the configured one.
const FOLLOW_MAX: u32 = 16;
/// With very many links, hellos are due together at multiples of this time, nanoseconds, because waking up is
/// most of the cost of one.
const HELLO_GRID: u64 = 100_000_000;
/// Changes of cost that take effect between two hellos, since each selects again for all routes of the neighbour.
pub(super) const COST_CHANGES_MAX: u32 = 8;
/// Silence after which a neighbour counts as lost, in tenths of its hello interval.
const LOST_AFTER_TENTHS: u32 = 27;

/// One neighbour.
pub(super) struct Link {
    pub(super) key: PublicKey,
    /// Its bit in the marks of a destination.
    pub(super) slot: usize,
    hello_seqno: u16,
    hello_interval: Duration,
    /// The neighbour's hellos: the next expected number, and which of the last 16 were received.
    expected: Option<u16>,
    history: u16,
    history_len: u32,
    /// Arrival of the last hello, and the interval that the neighbour advertises.
    heard: Nanos,
    its_interval: Duration,
    /// Reception cost of our hellos, as the neighbour reports it.
    txcost: u16,
    /// Last timestamped hello: its sender's clock, and ours.
    pub(super) last_hello: Option<Echo>,
    rtts: [Option<Duration>; RTT_SAMPLES],
    rtt_at: usize,
    pub(super) rtt_smoothed: Option<Duration>,
    /// Cost that routes use; follows the measured one with hysteresis.
    pub(super) cost: u16,
    /// The opening was acknowledged: updates may follow.
    pub(super) open: bool,
    /// Queued for the next packet.
    pub(super) tlvs: Vec<Tlv>,
    /// Prefixes whose state is to be advertised.
    pub(super) pending: Pending,
    /// Unacknowledged packets, by number.
    pub(super) in_flight: BTreeMap<u16, InFlight>,
    pub(super) ack_last: u16,
    /// The newest of our packets that was acknowledged, and of the neighbour's that was accepted.
    pub(super) acknowledged: Option<u16>,
    pub(super) taken: Option<u16>,
    /// Proofs requested since the last hello.
    pub(super) proof_requests: u32,
    /// Wildcard requests answered since the last hello, and whether another one waits for the next.
    pub(super) table_requests: u32,
    pub(super) table_request_due: bool,
    /// Changes of cost since the last hello.
    cost_changes: u32,
    /// The neighbour's own /64.
    pub(super) subnet: Prefix,
    /// Its routes have preference when the table is full.
    pub(super) preferred: bool,
    /// Prefixes that the neighbour offers.
    pub(super) offers: BTreeSet<Prefix>,
    /// Prefixes refused by a full table, newest last.
    pub(super) refused: VecDeque<Prefix>,
}

/// A link, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Its number.
    pub link: u32,
    /// Key of the neighbour.
    pub key: PublicKey,
    /// Its cost; [`INFINITY`] when the neighbour is not heard.
    pub cost: u16,
    /// Share of the neighbour's last 16 hellos that was received, thousandths.
    pub heard_permille: u16,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Unacknowledged packets.
    pub in_flight: usize,
    /// Prefixes that wait to be advertised.
    pub pending: usize,
}

impl Link {
    fn new(now: Nanos, key: PublicKey, slot: usize, interval: Duration) -> Self {
        let mut link = Self {
            key,
            slot,
            hello_seqno: 0,
            hello_interval: interval,
            expected: None,
            history: 0,
            history_len: 0,
            heard: now,
            its_interval: interval,
            // The session handshake has proved both directions.
            txcost: PERFECT,
            last_hello: None,
            rtts: [None; RTT_SAMPLES],
            rtt_at: 0,
            rtt_smoothed: None,
            cost: INFINITY,
            open: false,
            tlvs: Vec::new(),
            pending: Pending::default(),
            in_flight: BTreeMap::new(),
            ack_last: 0,
            acknowledged: None,
            taken: None,
            proof_requests: 0,
            table_requests: 0,
            table_request_due: false,
            cost_changes: 0,
            subnet: key.address().subnet(),
            preferred: false,
            offers: BTreeSet::new(),
            refused: VecDeque::new(),
        };
        link.cost = link.measured(now);
        link
    }

    pub(super) fn status(&self, link: u32) -> LinkStatus {
        let heard = self.history.count_ones() * 1000;
        LinkStatus {
            link,
            key: self.key,
            cost: self.cost,
            // At most 1000.
            heard_permille: u16::try_from(heard.checked_div(self.history_len).unwrap_or(1000))
                .unwrap_or(0),
            rtt: self.rtt_smoothed,
            in_flight: self.in_flight.len(),
            pending: self.pending.len(),
        }
    }

    /// Queues a TLV. Bounded, for a neighbour that sends requests and acknowledges nothing.
    pub(super) fn enqueue(&mut self, tlv: Tlv) {
        const QUEUE_MAX: usize = 4096;
        if self.tlvs.len() < QUEUE_MAX {
            self.tlvs.push(tlv);
        }
    }

    /// Time after which a packet counts as lost.
    pub(super) fn ack_timeout(&self, tries: u32) -> Duration {
        let base = self.rtt_smoothed.map_or(Duration::from_millis(200), |rtt| {
            (rtt * 3).max(Duration::from_millis(100))
        });
        (base * (1 << tries.min(5))).min(Duration::from_secs(3))
    }

    fn heard_hello(&mut self, now: Nanos, seqno: u16, interval: u16) {
        self.heard = now;
        if interval > 0 {
            self.its_interval = Duration::from_millis(u64::from(interval) * 10);
        }
        let missed = self
            .expected
            .map_or(0, |expected| seqno.wrapping_sub(expected));
        self.expected = Some(seqno.wrapping_add(1));
        match missed {
            0..16 => {
                self.history = self.history.checked_shl(u32::from(missed) + 1).unwrap_or(0) | 1;
                self.history_len = (self.history_len + u32::from(missed) + 1).min(16);
            }
            // Late ones were counted as missed.
            0xfff0.. => {
                self.expected = Some(seqno.wrapping_add(missed.wrapping_neg()).wrapping_add(1))
            }
            // The neighbour has restarted.
            _ => (self.history, self.history_len) = (1, 1),
        }
    }

    /// Whether a hello of this number can be of the speaker heard so far.
    pub(super) fn expects(&self, seqno: u16) -> bool {
        self.expected.is_some_and(|expected| {
            let missed = seqno.wrapping_sub(expected);
            !(16..=0xfff0).contains(&missed)
        })
    }

    fn lost(&self, now: Nanos) -> bool {
        now.since(self.heard) > self.its_interval * LOST_AFTER_TENTHS / 10
    }

    fn rxcost(&self, now: Nanos) -> u16 {
        if self.lost(now) {
            return INFINITY;
        }
        if self.history_len == 0 {
            return PERFECT;
        }
        let cost = u32::from(PERFECT) * self.history_len / self.history.count_ones().max(1);
        u16::try_from(cost).unwrap_or(INFINITY)
    }

    fn measured(&self, now: Nanos) -> u16 {
        let (rx, tx) = (self.rxcost(now), self.txcost);
        if rx == INFINITY || tx == INFINITY {
            return INFINITY;
        }
        let rtt = self
            .rtts
            .iter()
            .flatten()
            .min()
            .copied()
            .unwrap_or(RTT_UNKNOWN);
        let steps = rtt.min(RTT_MAX).as_micros() / RTT_STEP.as_micros();
        // At most 10,000.
        let base = u64::from(COST_BASE) + u64::try_from(steps).unwrap_or(0);
        let loss = u64::from(rx) * u64::from(tx);
        let perfect = u64::from(PERFECT) * u64::from(PERFECT);
        u16::try_from(base * loss / perfect).unwrap_or(INFINITY - 1)
    }

    fn sample_rtt(&mut self, now_micros: u32, hello: u32, echo: Echo) {
        let total = now_micros.wrapping_sub(echo.origin);
        let there = hello.wrapping_sub(echo.receive);
        let micros = total.wrapping_sub(there);
        // A clock that ran backwards, or an answer to an earlier link.
        if micros > 60_000_000 || there > 600_000_000 {
            return;
        }
        let rtt = Duration::from_micros(micros.into());
        self.rtts[self.rtt_at % RTT_SAMPLES] = Some(rtt);
        self.rtt_at += 1;
        self.rtt_smoothed = Some(self.rtt_smoothed.map_or(rtt, |s| (s * 7 + rtt) / 8));
    }
}

/// Our clock in timestamps.
#[allow(clippy::cast_possible_truncation, reason = "RFC 9616 lets them wrap")]
fn micros(at: Nanos) -> u32 {
    (at.0 / 1000) as u32
}

impl Speaker {
    /// A link came up. The neighbour discards what this node advertised before.
    pub fn link_up(&mut self, now: Nanos, link: u32, key: PublicKey) {
        self.open_link(now, link, key, false);
    }

    /// A link is adopted: the workers have forwarded on it while no speaker ran. The neighbour retains this node's
    /// routes for a while, until they are advertised again.
    pub fn link_adopted(&mut self, now: Nanos, link: u32, key: PublicKey) {
        self.open_link(now, link, key, true);
    }

    fn open_link(&mut self, now: Nanos, link: u32, key: PublicKey, adopted: bool) {
        self.link_down(now, link);
        let slot = self.slots.take();
        let interval = self.hello_interval();
        let mut state = Link::new(now, key, slot, interval);
        // Random, so that an earlier link of this neighbour did not use the same numbers.
        state.hello_seqno = u16::try_from(self.rng >> 48).unwrap_or(0);
        self.jitter(interval);
        self.links.insert(link, state);
        self.send_opening(now, link, adopted);
    }

    /// Sends the opening again on a link that stays in use.
    pub(super) fn reopen(&mut self, now: Nanos, link: u32) {
        if let Some(state) = self.links.get_mut(&link) {
            state.open = false;
            self.send_opening(now, link, true);
        }
    }

    /// A link went down.
    pub fn link_down(&mut self, now: Nanos, link: u32) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        // Excludes it from selection.
        state.cost = INFINITY;
        self.slots.used.remove(state.slot);
        self.drop_candidates(now, link);
        let Some(state) = self.links.remove(&link) else {
            return;
        };
        self.work.forget(link);
        for timer in [Timer::Hello, Timer::Flush, Timer::Ack, Timer::Stale].map(|t| t(link)) {
            self.timers.set(timer, Nanos::NEVER);
        }
        if self.slots.release(state.slot) {
            let own = self.own.values_mut().map(|own| &mut own.marks);
            let learnt = self.table.values_mut().map(|d| &mut d.marks);
            own.chain(learnt)
                .for_each(|marks| marks.retain(&self.slots.used));
            self.slots.swept();
        }
    }

    /// Hello interval, longer with very many links.
    fn hello_interval(&self) -> Duration {
        let spread = (self.links.len() / self.config.hello_links.max(1)).max(1);
        self.config.hello * u32::try_from(spread).unwrap_or(u32::MAX)
    }

    /// Hello interval of a link: a neighbour with very many links, which sends few hellos, receives no more. A
    /// little less than its own, so that two nodes that follow each other return to the configured one.
    fn hello_interval_of(&self, link: u32) -> Duration {
        let its = self.links.get(&link).map(|state| state.its_interval);
        let most = self.config.hello * FOLLOW_MAX;
        let followed = its.unwrap_or_default().min(most) * 7 / 8;
        followed.max(self.hello_interval())
    }

    /// When the next hello of a link is due.
    fn next_hello(&mut self, now: Nanos, interval: Duration) -> Nanos {
        // Never later than the advertised interval, or the neighbour would count a miss.
        let at = now + self.jitter(interval).min(interval);
        if self.links.len() / self.config.hello_links.max(1) > 1 {
            Nanos(at.0 - at.0 % HELLO_GRID)
        } else {
            at
        }
    }

    /// Sends the first packet of a link: a wildcard retraction and a wildcard request.
    fn send_opening(&mut self, now: Nanos, link: u32, adopted: bool) {
        self.enqueue_hello(now, link, true);
        let retraction = Tlv::Update(Update {
            prefix: None,
            router_id: None,
            interval: 0,
            seqno: 0,
            metric: INFINITY,
            origin: None,
        });
        let request = Tlv::RouteRequest { prefix: None };
        let tlvs: &[Tlv] = if adopted {
            &[request]
        } else {
            &[retraction, request]
        };
        self.transmit_opening(now, link, tlvs);
        let interval = self.hello_interval_of(link);
        let next = self.jitter(interval);
        self.timers.set(Timer::Hello(link), now + next);
    }

    pub(super) fn hello_due(&mut self, now: Nanos, link: u32) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.proof_requests = 0;
        state.table_requests = 0;
        state.cost_changes = 0;
        let advertise = std::mem::take(&mut state.table_request_due);
        let full = state.hello_seqno.is_multiple_of(IHU_EVERY);
        let lost = state.lost(now);
        self.enqueue_hello(now, link, full || lost);
        self.request_refused(now, link);
        if advertise {
            self.handle_route_request(now, link, None);
        }
        self.flush(now, link);
        self.cost_changed(now, link);
        let interval = self.hello_interval_of(link);
        let next = self.next_hello(now, interval);
        self.timers.set(Timer::Hello(link), next);
    }

    pub(super) fn enqueue_hello(&mut self, now: Nanos, link: u32, full: bool) {
        let interval = self.hello_interval_of(link);
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.hello_interval = interval;
        let centis = |d: Duration| u16::try_from(d.as_millis().div_ceil(10)).unwrap_or(u16::MAX);
        let hello = Tlv::Hello {
            unicast: false,
            seqno: state.hello_seqno,
            interval: centis(interval),
            transmit: full.then(|| micros(now)),
        };
        state.hello_seqno = state.hello_seqno.wrapping_add(1);
        state.enqueue(hello);
        if full {
            let ihu = Tlv::Ihu {
                rxcost: state.rxcost(now),
                interval: centis(interval * u32::from(IHU_EVERY)),
                echo: state.last_hello,
            };
            state.enqueue(ihu);
        }
    }

    pub(super) fn handle_hello(
        &mut self,
        now: Nanos,
        received: Nanos,
        link: u32,
        (seqno, interval, transmit): (u16, u16, Option<u32>),
    ) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        state.heard_hello(now, seqno, interval);
        if let Some(transmit) = transmit {
            state.last_hello = Some(Echo {
                origin: transmit,
                receive: micros(received),
            });
        }
        self.cost_changed(now, link);
    }

    pub(super) fn handle_ihu(
        &mut self,
        now: Nanos,
        received: Nanos,
        link: u32,
        rxcost: u16,
        echo: Option<Echo>,
        hello: Option<u32>,
    ) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        // No neighbour can make a link more attractive than a perfect one.
        state.txcost = rxcost.max(PERFECT);
        if let (Some(echo), Some(hello)) = (echo, hello) {
            state.sample_rtt(micros(received), hello, echo);
        }
        self.cost_changed(now, link);
    }

    /// Applies the measured cost when it differs enough, and selects again.
    pub(super) fn cost_changed(&mut self, now: Nanos, link: u32) {
        let Some(state) = self.links.get_mut(&link) else {
            return;
        };
        let (old, new) = (state.cost, state.measured(now));
        let small = old != INFINITY && new != INFINITY && old.abs_diff(new) <= (old / 8).max(8);
        if old == new || small || state.cost_changes >= COST_CHANGES_MAX {
            return;
        }
        state.cost_changes += 1;
        state.cost = new;
        let prefixes = self.prefixes_of(link);
        for prefix in prefixes {
            self.select(now, prefix);
        }
    }
}
