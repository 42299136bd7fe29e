//! The routing protocol: a Babel speaker (RFC 8966), sans-I/O.
//!
//! ```text
//! peer up, down   ──▶ link_up, link_down     ──▶ poll_transmit (one packet for one link)
//! packet, time    ──▶ handle_packet, _timeout──▶ poll_route    (routes gained, changed, lost)
//! operator        ──▶ announce, withdraw     ──▶ poll_refusal  (refused announcements)    
//!                                            ──▶ poll_timeout  (call handle_timeout then)
//! ```
//!
//! A link is a link session with one neighbour. There are no interfaces, and the sender of an update is the next
//! hop. Extensions of the RFC, and choices that it leaves open:
//!
//! * Every announcement is signed ([`hyphae_wire::babel::Origin`]) and accepted only when the key is authorized
//!   for the prefix; feasibility is decided over 48-bit serials, which do not wrap.
//! * Updates are acknowledged (section 3.3) and incremental; they are refreshed only every [`REFRESH`]. A new link
//!   begins with a wildcard retraction and a wildcard request, so a neighbour that restarted unnoticed receives
//!   everything again. A speaker that takes over from a dead one, while the workers forward, omits the
//!   retraction; what it does not advertise again in time expires.
//! * All feasible neighbours of nearly the best metric become next hops. Each has a feasible distance below ours,
//!   which makes each of them loop-free (section 2.4).
//!
//! Files: `link` (hellos, cost), `table` (routes, feasibility, selection), `room` and `shares` (displacement in a
//! full table), `distances` (feasible distances without a route), `receive`, `send` (updates, acknowledgements),
//! `request` (sequence numbers), `origin` (own announcements, validation), `filter`.

mod bits;
mod distances;
mod filter;
mod in_flight;
mod link;
mod origin;
mod pending;
mod receive;
mod request;
mod room;
mod send;
mod shares;
mod standing;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyphae_time::{Nanos, Timers};
use hyphae_wire::babel::{Origin, RouterId, Serial, Tlv};

use hyphae_wire::{Prefix, PublicKey, SecretKey};

pub use filter::{Action, Filter, Rule};
pub use link::LinkStatus;
pub use origin::{RefusalReason, Refused, Verifier, Xeddsa};
pub use table::{Candidate, DynamicNextHop, DynamicRoute};

use bits::Slots;
use distances::FeasibleDistances;
use link::Link;
use origin::Own;
use receive::Work;
use request::Query;
use room::Room;
use shares::PreferredShares;
use table::Destination;

/// Interval in which every route is advertised again.
pub const REFRESH: Duration = Duration::from_secs(600);
/// Parts in which the table is expired and refreshed once per [`REFRESH`].
const TURNS: u64 = 60;
/// Signatures checked between two calls of [`Speaker::handle_timeout`], a few milliseconds.
const VERIFY_BUDGET: u32 = 64;

/// Configuration of a speaker. Start from [`Config::new`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's key pair.
    pub identity: SecretKey,
    /// Prefixes to announce besides the node's own /64.
    pub announce: Vec<Prefix>,
    /// Upper bits of the first serial: higher than at any earlier start of this node, such as seconds since 1970.
    /// After a clock was set back, neighbours return the newest announcement that they know.
    pub epoch: u32,
    /// Time between hellos of a link.
    pub hello: Duration,
    /// Links beyond which the hello interval grows, so that hellos per second stay constant.
    pub hello_links: usize,
    /// Filter for routes of neighbours.
    pub import: Filter,
    /// Filter for routes to neighbours.
    pub export: Filter,
    /// Next hops of one route, 1 to 8.
    pub next_hops_max: usize,
    /// Destinations known at a time.
    pub routes_max: usize,
}

impl Config {
    /// The defaults.
    pub fn new(identity: SecretKey, epoch: u32) -> Self {
        Self {
            identity,
            announce: Vec::new(),
            epoch,
            hello: Duration::from_secs(1),
            hello_links: 128,
            import: Filter::import_default(),
            export: Filter::accept_all(),
            next_hops_max: hyphae_shm::record::NEXT_HOPS_MAX,
            routes_max: 200_000,
        }
    }
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets sent.
    pub packets_sent: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Bytes in them.
    pub bytes_received: u64,
    /// Malformed packets and TLVs.
    pub malformed: u64,
    /// TLVs of unused kinds.
    pub ignored: u64,
    /// Packets deferred because signature checks are queued; their senders retransmit them.
    pub deferred: u64,
    /// Updates sent, retractions included.
    pub updates_sent: u64,
    /// Updates received.
    pub updates_received: u64,
    /// Packets retransmitted for want of an acknowledgement.
    pub retransmitted: u64,
    /// Sequence number requests sent.
    pub seqno_requests_sent: u64,
    /// Signatures checked.
    pub verified: u64,
    /// Times the next hops of a destination changed.
    pub route_changes: u64,
    /// Routes displaced from a full table.
    pub displaced: u64,
    /// Announcements refused, by [`RefusalReason`] in its order.
    pub refused: [u64; RefusalReason::ALL.len()],
}

/// A packet to send to a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The link, by the number given to [`Speaker::link_up`].
    pub link: u32,
    /// The body of a routing message.
    pub packet: Vec<u8>,
}

/// A change of the route to a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// Destinations.
    pub prefix: Prefix,
    /// The route; `None` after its removal.
    pub route: Option<DynamicRoute>,
}

/// Deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    /// Queued updates.
    Work,
    /// Next hello of a link, and the check of the neighbour's.
    Hello(u32),
    /// Next packet of a link.
    Flush(u32),
    /// The earliest unacknowledged packet of a link.
    Ack(u32),
    /// Expiry of the routes of a neighbour that restarted.
    Stale(u32),
    /// Retransmission or end of a sequence number request.
    Query(Prefix, RouterId),
    /// Expiry and refresh of the next part of the table.
    Turn,
}

/// Capacity of the transmit queue that is retained when it is empty.
const TRANSMITS_KEPT: usize = 256;
/// Added to the cost of the links of a drained node: above the metric of any reasonable path, below infinity.
const DRAIN_COST: u16 = 0x4000;

/// The routing protocol of one node.
pub struct Speaker {
    config: Config,
    /// Traffic of others is carried only where no other path exists.
    drained: bool,
    key: PublicKey,
    router_id: RouterId,
    verifier: Box<dyn Verifier>,
    rng: u64,
    own: BTreeMap<Prefix, Own>,
    links: BTreeMap<u32, Link>,
    /// Bits of links in the marks of destinations.
    slots: Slots,
    table: BTreeMap<Prefix, Destination>,
    room: Room,
    /// Feasible distances without a route.
    distances: FeasibleDistances,
    /// Last serials of own announcements that were withdrawn.
    withdrawn: BTreeMap<Prefix, Serial>,
    queries: BTreeMap<(Prefix, RouterId), Query>,
    /// Queries by the link that caused them.
    query_shares: PreferredShares<(Prefix, RouterId)>,
    work: Work,
    verify_budget: u32,
    /// Where [`Timer::Turn`] goes on.
    turn: Option<Prefix>,
    changed: BTreeSet<Prefix>,
    transmits: VecDeque<Transmit>,
    refusals: VecDeque<Refused>,
    timers: Timers<Timer>,
    counters: Counters,
}

impl Speaker {
    /// A speaker without neighbours that announces the node's own /64. `seed` only spreads timers.
    pub fn new(now: Nanos, config: Config, seed: u64, verifier: Box<dyn Verifier>) -> Self {
        let key = config.identity.public_key();
        let mut speaker = Self {
            drained: false,
            key,
            router_id: RouterId::of(&key),
            verifier,
            rng: seed | 1,
            own: BTreeMap::new(),
            links: BTreeMap::new(),
            slots: Slots::default(),
            table: BTreeMap::new(),
            room: Room::default(),
            distances: FeasibleDistances::default(),
            withdrawn: BTreeMap::new(),
            queries: BTreeMap::new(),
            query_shares: PreferredShares::default(),
            work: Work::default(),
            verify_budget: VERIFY_BUDGET,
            turn: None,
            changed: BTreeSet::new(),
            transmits: VecDeque::new(),
            refusals: VecDeque::new(),
            timers: Timers::new(),
            counters: Counters::default(),
            config,
        };
        let announce = speaker.config.announce.clone();
        for prefix in std::iter::once(key.address().subnet()).chain(announce) {
            speaker.announce(now, prefix);
        }
        let first = speaker.jitter(REFRESH / 60);
        speaker.timers.set(Timer::Turn, now + first);
        speaker
    }

    /// Handles expired timers.
    pub fn handle_timeout(&mut self, now: Nanos) {
        self.verify_budget = VERIFY_BUDGET;
        for timer in self.timers.take_due(now) {
            match timer {
                Timer::Work => {}
                Timer::Hello(link) => self.hello_due(now, link),
                Timer::Flush(link) => self.flush(now, link),
                Timer::Ack(link) => self.ack_due(now, link),
                Timer::Stale(link) => self.stale_due(now, link),
                Timer::Query(prefix, router_id) => self.query_due(now, prefix, router_id),
                Timer::Turn => self.turn(now),
            }
        }
        self.process_updates(now);
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        self.timers.next()
    }

    /// The next packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.transmits.pop_front();
        if self.transmits.is_empty() {
            self.transmits.shrink_to(TRANSMITS_KEPT);
        }
        transmit
    }

    /// The next route that has changed.
    pub fn poll_route(&mut self) -> Option<RouteChange> {
        let prefix = self.changed.pop_first()?;
        let route = self.route(prefix);
        Some(RouteChange { prefix, route })
    }

    /// The next refused announcement. Only a few are queued; all are counted.
    pub fn poll_refusal(&mut self) -> Option<Refused> {
        self.refusals.pop_front()
    }

    /// Sets whether the node carries traffic of others only where no other path exists. The metric of its own
    /// announcements does not change.
    pub fn drain(&mut self, now: Nanos, drained: bool) {
        if std::mem::replace(&mut self.drained, drained) != drained {
            let prefixes: Vec<Prefix> = self.table.keys().copied().collect();
            for prefix in prefixes {
                self.select(now, prefix);
            }
        }
    }

    /// Whether [`Self::drain`] holds.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Links, by number.
    pub fn links(&self) -> impl Iterator<Item = LinkStatus> + '_ {
        self.links.iter().map(|(id, link)| link.status(*id))
    }

    /// Key of the neighbour on a link.
    pub fn neighbour(&self, link: u32) -> Option<PublicKey> {
        self.links.get(&link).map(|link| link.key)
    }

    /// Expires and refreshes the next part of the table.
    fn turn(&mut self, now: Nanos) {
        self.expire_ended(now);
        let share = self.table.len() / usize::try_from(TURNS).unwrap_or(1) + 1;
        let from = self.turn.take();
        let bounds = (
            from.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
            std::ops::Bound::Unbounded,
        );
        let part: Vec<Prefix> = self
            .table
            .range(bounds)
            .take(share)
            .map(|(p, _)| *p)
            .collect();
        // Own announcements are few and go with the first part.
        let own: Vec<Prefix> = match from {
            None => self.own.keys().copied().collect(),
            Some(_) => Vec::new(),
        };
        for prefix in &part {
            self.expire(now, *prefix);
        }
        self.readvertise(now, own.iter().chain(&part).copied());
        self.turn = if part.len() < share {
            None
        } else {
            part.last().copied()
        };
        let pause = self.jitter(REFRESH / 60);
        self.timers.set(Timer::Turn, now + pause);
    }

    /// A time within a tenth of `around`, not cryptographic.
    fn jitter(&mut self, around: Duration) -> Duration {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        let thousandth = u32::try_from(self.rng % 200).unwrap_or(0);
        around * (900 + thousandth) / 1000
    }

    /// The proof of the newest announcement of a route's origin.
    fn proof(&self, prefix: Prefix, router_id: RouterId) -> Option<Origin> {
        let destination = self.table.get(&prefix)?;
        Some(destination.source(router_id)?.origin)
    }

    /// Queues a TLV for the next packet of a link.
    fn enqueue(&mut self, now: Nanos, link: u32, tlv: Tlv) {
        if let Some(link) = self.links.get_mut(&link) {
            link.enqueue(tlv);
        }
        self.flush_soon(now, link, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
