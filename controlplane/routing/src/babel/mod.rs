//! The routing protocol: a Babel speaker (RFC 8966), sans-I/O.
//!
//! ```text
//! peer up, down   ──▶ link_up, link_down     ──▶ poll_transmit (one packet for one link)
//! packet, time    ──▶ handle_packet, _timeout──▶ poll_route    (routes gained, changed, lost)
//! operator        ──▶ announce, withdraw     ──▶ poll_refusal  (announcements not believed)
//!                                            ──▶ poll_timeout  (call handle_timeout then)
//! ```
//!
//! A link is a link session with one neighbour, so there are no interfaces and no next hops to speak
//! of: who sends an update is the next hop. What goes beyond the RFC, or is chosen where it leaves
//! the choice:
//!
//! * Every origination is signed ([`hyphae_wire::babel::Origin`]) and believed only when the key may
//!   announce the prefix; feasibility is decided over 48-bit serials, which do not wrap.
//! * Updates are acknowledged (section 3.3) and incremental; what was told to a neighbour
//!   is repeated only every [`REFRESH`], and lives as long as the link. A new link begins
//!   with a wildcard retraction and a wildcard request, so a neighbour that was restarted without the
//!   link noticing is told everything again. A speaker that takes over from one that died, while the
//!   workers went on forwarding, leaves the retraction out; what it does not tell again in time ends.
//! * All feasible neighbours of nearly the best metric become next hops. Each has a feasible
//!   distance below ours, which is what makes any of them loop-free (section 2.4).
//!
//! Rooms: `link` (hellos, cost), `table` (routes, feasibility, selection), `room` and `shares` (who
//! gives way in a full table), `memory` (feasible distances without a route), `receive`, `send`
//! (updates, acknowledgements), `request` (sequence numbers), `origin` (own announcements, belief),
//! `filter`.

mod bits;
mod filter;
mod link;
mod memory;
mod origin;
mod pending;
mod receive;
mod request;
mod room;
mod send;
mod shares;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyphae_time::{Nanos, Timers};
use hyphae_wire::babel::{Origin, RouterId, Serial, Tlv};

use hyphae_wire::{Prefix, PublicKey, SecretKey};

pub use filter::{Action, Filter, Rule};
pub use link::LinkStatus;
pub use origin::{RefusalReason, Refused, Verifier, Xeddsa};
pub use table::{Candidate, DynamicRoute, NextHop};

use bits::Slots;
use link::Link;
use memory::Memory;
use origin::Own;
use receive::Work;
use request::Query;
use room::Room;
use shares::PreferredShares;
use table::Destination;

/// How often every route is told again, although nothing has changed.
pub const REFRESH: Duration = Duration::from_secs(600);
/// Turns in which the whole table is looked after once per [`REFRESH`].
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
    /// Upper bits of the first serial: higher than at any earlier start of this node. Seconds
    /// since 1970 do; a clock that was set back is made up for by what neighbours remember.
    pub epoch: u32,
    /// Time between hellos of a link.
    pub hello: Duration,
    /// Links from which on hellos are spread out, so that their number per second stays.
    pub hello_links: usize,
    /// What is taken from neighbours.
    pub import: Filter,
    /// What is told to neighbours.
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

/// What was counted. Every field is a total since the start.
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
    /// Packets that were none, and TLVs that were malformed.
    pub malformed: u64,
    /// TLVs of kinds that are not used here.
    pub ignored: u64,
    /// Packets put off because signatures wait to be checked; their senders repeat them.
    pub put_off: u64,
    /// Updates sent, retractions included.
    pub updates_sent: u64,
    /// Updates received.
    pub updates_received: u64,
    /// Packets sent again because no acknowledgement came.
    pub repeated: u64,
    /// Sequence numbers asked for.
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
    /// The route; `None` when there is none any more.
    pub route: Option<DynamicRoute>,
}

/// What has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    /// Signatures wait.
    Work,
    /// Next hello of a link, and the look at the neighbour's.
    Hello(u32),
    /// What waits for a link is sent.
    Flush(u32),
    /// The earliest unacknowledged packet of a link.
    Ack(u32),
    /// What a neighbour has not told again since it started anew ends.
    Stale(u32),
    /// A question for a sequence number is asked again, or forgotten.
    Query(Prefix, RouterId),
    /// The next part of the table is looked after.
    Turn,
}

/// Room for packets that is kept when all are sent.
const TRANSMITS_KEPT: usize = 256;
/// What a drained node adds to the cost of its links: more than any sensible way, less than none.
const DRAIN_COST: u16 = 0x4000;

/// The routing protocol of one node.
pub struct Speaker {
    config: Config,
    /// The node wants to carry nothing for others.
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
    /// Feasible distances of what is not in the table.
    memory: Memory,
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
    /// A speaker without neighbours that announces the node's own /64. `seed` spreads timers and
    /// nothing else.
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
            memory: Memory::default(),
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

    /// Does what is due.
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
        self.do_work(now);
    }

    /// When [`Self::handle_timeout`] is to be called next.
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

    /// The next announcement that was not believed. Only the last few are kept; all are counted.
    pub fn poll_refusal(&mut self) -> Option<Refused> {
        self.refusals.pop_front()
    }

    /// Whether the node is to carry others' traffic only where there is no other way. What it
    /// announces itself stays as near as it was.
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

    /// What was counted.
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

    /// Looks after the next part of the table: expiry, telling again.
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
        // The own announcements are few: they go with the start of the table.
        let own: Vec<Prefix> = match from {
            None => self.own.keys().copied().collect(),
            Some(_) => Vec::new(),
        };
        for prefix in &part {
            self.expire(now, *prefix);
        }
        self.tell_again(now, own.iter().chain(&part).copied());
        self.turn = if part.len() < share {
            None
        } else {
            part.last().copied()
        };
        let pause = self.jitter(REFRESH / 60);
        self.timers.set(Timer::Turn, now + pause);
    }

    /// A time within a tenth of `around`.
    fn jitter(&mut self, around: Duration) -> Duration {
        // xorshift64: spreads timers, decides nothing.
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

    /// Puts a TLV into the next packet of a link.
    fn enqueue(&mut self, now: Nanos, link: u32, tlv: Tlv) {
        if let Some(link) = self.links.get_mut(&link) {
            link.enqueue(tlv);
        }
        self.flush_soon(now, link, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
