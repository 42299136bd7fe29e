//! The engine's state and the steps that every path shares.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use ahash::RandomState;
use hyphae_shm::record::{LANE_LINK, LANE_SESSION, MTU_UNKNOWN, PEERS_MAX};
use hyphae_shm::stats::DropReason;
use hyphae_time::Nanos;
use hyphae_wire::frame::{
    FrameKind, LINK_TAG_AT, LinkHeader, PAYLOAD_AT, SEALED_HEADERS_AT, SealedHeaders, TAG_LEN,
};
use hyphae_wire::report::DATAGRAM_BASE;

use hyphae_wire::{AddressPair, Endpoint, LocalAddress, OverlayAddress, PublicKey, WorkerId};
use zerocopy::IntoBytes;

use crate::TRAIN_MAX;
use crate::counters::Counters;
use crate::event::EngineEvent;
use crate::fib::{Fib, Target};
use crate::fragment::Wholes;
use crate::guard::Guard;
use crate::limit::Limiter;
use crate::peer::{Peer, Traffic};
use crate::pending::{Pending, PendingPacket};
use crate::receive::Progress;
use crate::reports::{Due, Heads, Reported};
use crate::session::{LaneSet, LinkLane, Role, SessionLane, Slots};
use crate::verdict::LinkSlot;

/// Events that may wait to be reported; more are not told again (each is repeated or a hint).
const EVENTS_MAX: usize = 4096;

/// How long a reported MTU holds when the control plane says nothing (RFC 8201, section 4).
pub(crate) const PATH_MEMORY: Duration = Duration::from_secs(600);
/// Errors per second that a worker sends to other nodes, to its host, and believes of others.
const ERRORS_PER_SECOND: u32 = 100;

/// What an engine is made for.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Which worker it serves.
    pub worker: WorkerId,
    /// How many there are.
    pub workers: u16,
    /// Whether the host has a TUN device.
    pub has_tun: bool,
}

/// Where the sessions towards one /64 are, and what is known of the way there.
#[derive(Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) lanes: LaneSet,
    /// Largest packet of the host, and until when that holds.
    pub(crate) path: (u16, Nanos),
    /// An error that the next packet of the host is to be answered with.
    pub(crate) reported: Option<Reported>,
}

impl Default for Destination {
    fn default() -> Self {
        Self {
            lanes: LaneSet::default(),
            path: (MTU_UNKNOWN, Nanos::NEVER),
            reported: None,
        }
    }
}

impl Destination {
    /// Largest packet of the host beyond this node's own links.
    pub(crate) fn path_mtu(&self, now: Nanos) -> u16 {
        match self.path {
            (mtu, until) if now < until => mtu,
            _ => MTU_UNKNOWN,
        }
    }
}

/// This node's own address.
#[derive(Clone, Copy)]
pub(crate) struct Local {
    pub(crate) address: OverlayAddress,
    pub(crate) mtu: u16,
    pub(crate) key: PublicKey,
}

/// The forwarding engine of one worker.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) local: Option<Local>,
    pub(crate) links: Slots<LinkLane>,
    /// Slots of link lanes by what a reset names: the index that we send to, and where.
    pub(crate) by_send: HashMap<(u32, Endpoint), u32, RandomState>,
    pub(crate) guard: Guard,
    pub(crate) sessions: Slots<SessionLane>,
    pub(crate) peers: Vec<Option<Box<Peer>>>,
    pub(crate) dirty_peers: Vec<u32>,
    pub(crate) destinations: HashMap<u64, Destination, RandomState>,
    pub(crate) fib: Fib,
    pub(crate) pending: Pending,
    pub(crate) events: VecDeque<EngineEvent>,
    /// Packets for the host that were made here.
    pub(crate) replies: VecDeque<Vec<u8>>,
    /// Reports to other nodes that wait to be built.
    pub(crate) reports: VecDeque<Due>,
    /// Frames that are whole again.
    pub(crate) wholes: Wholes,
    pub(crate) heads: Heads,
    pub(crate) host_limit: Limiter,
    pub(crate) report_limit: Limiter,
    pub(crate) taken_limit: Limiter,
    /// Generation that marks what is installed now.
    pub(crate) generation: u64,
    /// Scratch of [`Self::receive`].
    pub(crate) steps: Vec<Progress>,
    /// Counters, to be published by the worker.
    pub counters: Counters,
}

impl Engine {
    /// An engine that knows nobody.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            config,
            local: None,
            links: Slots::new(),
            by_send: HashMap::default(),
            guard: Guard::new(),
            sessions: Slots::new(),
            peers: Vec::new(),
            dirty_peers: Vec::with_capacity(PEERS_MAX as usize),
            destinations: HashMap::default(),
            fib: Fib::new(),
            pending: Pending::new(),
            events: VecDeque::with_capacity(EVENTS_MAX),
            replies: VecDeque::new(),
            reports: VecDeque::new(),
            wholes: Wholes::new(),
            heads: Heads::new(),
            host_limit: Limiter::new(ERRORS_PER_SECOND),
            report_limit: Limiter::new(ERRORS_PER_SECOND),
            taken_limit: Limiter::new(10 * ERRORS_PER_SECOND),
            generation: 0,
            steps: Vec::with_capacity(TRAIN_MAX),
            counters: Counters::default(),
        }
    }

    /// Where frames on a lane go.
    pub fn endpoint(&self, slot: LinkSlot) -> Option<&Endpoint> {
        self.addresses(slot).map(|addresses| &addresses.remote)
    }

    /// Where frames on a lane go, and from where.
    pub fn addresses(&self, slot: LinkSlot) -> Option<&AddressPair> {
        self.links.get(slot.0 as usize).map(|link| &link.addresses)
    }

    /// The kernel sends nothing from this address any more: lanes leave it to the kernel which
    /// one to use, until frames of their peers name one again.
    pub fn forget_source(&mut self, local: &LocalAddress) {
        for slot in 0..self.links.slots() {
            if let Some(link) = self.links.get_mut(slot)
                && link.addresses.local == *local
            {
                link.addresses.local = LocalAddress::UNSET;
            }
        }
    }

    /// The neighbour at the other end of a lane.
    pub fn peer(&self, slot: LinkSlot) -> Option<u32> {
        self.links.get(slot.0 as usize).map(|link| link.peer)
    }

    /// The next thing to report.
    pub fn next_event(&mut self) -> Option<EngineEvent> {
        self.events.pop_front()
    }

    /// A packet of the host whose session has come.
    pub fn next_ready(&mut self) -> Option<PendingPacket> {
        self.pending.next_ready()
    }

    /// Calls `each` for every peer that had traffic since the last call.
    pub fn drain_traffic(&mut self, mut each: impl FnMut(u32, Traffic)) {
        for number in self.dirty_peers.drain(..) {
            let Some(Some(peer)) = self.peers.get_mut(number as usize) else {
                continue;
            };
            peer.dirty = false;
            each(number, std::mem::take(&mut peer.traffic));
        }
    }

    /// Gives up what waited too long, and says which peers were sent large frames.
    pub fn handle_timeout(&mut self, now: Nanos) {
        for number in 0..self.peers.len() {
            let peer = self.peers[number].as_mut();
            if peer.is_some_and(|peer| std::mem::take(&mut peer.large)) {
                // Peer numbers are below PEERS_MAX.
                self.report(EngineEvent::LargeFrames {
                    peer: number as u32,
                });
            }
        }
        for _ in 0..self.pending.expire(now) {
            self.counters.drop(DropReason::SessionPending);
        }
    }

    /// How long nothing has to be done if nothing arrives.
    pub fn idle_for(&self) -> Option<Duration> {
        (!self.pending.is_empty()).then_some(Duration::from_millis(500))
    }

    pub(crate) fn report(&mut self, event: EngineEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    pub(crate) fn peer_mut(&mut self, number: u32) -> Option<&mut Peer> {
        self.peers.get_mut(number as usize)?.as_deref_mut()
    }

    /// Adds to a peer's traffic.
    pub(crate) fn note_traffic(&mut self, number: u32, add: impl FnOnce(&mut Traffic)) {
        let Some(Some(peer)) = self.peers.get_mut(number as usize) else {
            return;
        };
        add(&mut peer.traffic);
        if !peer.dirty {
            peer.dirty = true;
            self.dirty_peers.push(number);
        }
    }

    /// The kernel refused a datagram for this address as too large.
    pub fn note_too_big(&mut self, to: &Endpoint) {
        let found = self
            .links
            .held(0)
            .find(|(_, link)| link.addresses.remote == *to);
        if let Some(peer) = found.map(|(_, link)| link.peer) {
            self.report(EngineEvent::LinkTooBig { peer });
        }
    }

    /// Counts frames that left on a lane; `largest` is the size of the largest.
    pub fn note_sent(&mut self, lane: LinkSlot, packets: u64, bytes: u64, largest: u32) {
        let Some(peer) = self.peer(lane) else {
            return;
        };
        if largest > u32::from(DATAGRAM_BASE)
            && let Some(peer) = self.peer_mut(peer)
        {
            peer.large = true;
        }
        self.note_traffic(peer, |traffic| {
            traffic.tx_packets += packets;
            traffic.tx_bytes += bytes;
        });
    }

    pub(crate) fn is_local(&self, address: OverlayAddress) -> bool {
        self.local
            .is_some_and(|local| local.address.subnet_id() == address.subnet_id())
    }

    /// The node that an address belongs to: the one whose /64 it lies in, or the gateway in front
    /// of it.
    pub(crate) fn node_of(&self, address: OverlayAddress) -> Option<OverlayAddress> {
        if address.is_overlay() {
            return Some(address);
        }
        match self.fib.lookup(address) {
            Some(Target::Gateway(node)) => Some(node),
            Some(Target::Forward(_) | Target::Discard) | None => None,
        }
    }

    /// Seals the link part of transit frames whose routing and session headers are in place and whose
    /// payload is sealed, for the neighbour at the other end of the lane: frames of `segment` bytes each (the last
    /// may be shorter), all or none.
    pub(crate) fn seal_train(
        &mut self,
        now: Nanos,
        slot: usize,
        frames: &mut [u8],
        segment: usize,
    ) -> Result<(), DropReason> {
        let link = self.links.get_mut(slot).ok_or(DropReason::AdjacencyDown)?;
        let count = frames.len().div_ceil(segment) as u64;
        let counters = link.lane.next_counters(now, count);
        let first = counters.ok_or(DropReason::LinkExpired)?;
        let to = link.lane.send_index.0;
        for (counter, frame) in (first.value..).zip(frames.chunks_mut(segment)) {
            let header = LinkHeader::new(FrameKind::Transit, to, counter);
            frame[..SEALED_HEADERS_AT].copy_from_slice(header.as_bytes());
        }
        link.lane.seal.seal(frames, segment);
        self.counters.sealed(link.lane.suite, count);
        if first.rekey_due {
            let receive_index = link.lane.receive_index.0;
            self.report(EngineEvent::RekeyDue {
                kind: LANE_LINK,
                receive_index,
            });
        }
        Ok(())
    }

    /// Seals the payload of a transit frame end to end. `headers` are what the frame will carry,
    /// except for the session header, which is filled in here.
    pub(crate) fn seal_payload(
        &mut self,
        now: Nanos,
        slot: usize,
        headers: &mut SealedHeaders,
        frame: &mut [u8],
    ) -> Result<(), DropReason> {
        let session = self
            .sessions
            .get_mut(slot)
            .ok_or(DropReason::SessionUnknown)?;
        let counter = session
            .lane
            .next_counter(now)
            .ok_or(DropReason::SessionExpired)?;
        headers.session.receiver.set(session.lane.send_index.0);
        headers.session.reserved.set(0);
        headers.session.counter.set(counter.value);
        let (index, suite) = (session.lane.receive_index, session.lane.suite);
        let end = frame.len() - TAG_LEN;
        let aad = headers.associated_data();
        let tag = session
            .lane
            .seal
            .seal(counter.value, &aad, &mut frame[PAYLOAD_AT..end]);
        frame[end..].copy_from_slice(&tag);
        frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(headers.as_bytes());
        self.counters.sealed(suite, 1);
        if counter.rekey_due {
            self.report(EngineEvent::RekeyDue {
                kind: LANE_SESSION,
                receive_index: index.0,
            });
        }
        Ok(())
    }

    /// A link lane sends from now on: it was installed so, or was standing by and the first
    /// authentic frame has come on it, which only then is reported.
    pub(crate) fn activate_link(&mut self, slot: usize) {
        let workers = usize::from(self.config.workers);
        let Some(link) = self.links.get_mut(slot) else {
            return;
        };
        let stood_by = std::mem::replace(&mut link.lane.role, Role::Active) == Role::Standby;
        let (peer, number, epoch) = (link.peer, link.lane.number, link.lane.epoch);
        let (index, remote) = (link.lane.receive_index, link.lane.send_index.worker());
        if let Some(peer) = self.peer_mut(peer) {
            // Slots have 16 bits.
            peer.lanes
                .offer(usize::from(number) / workers, slot as u32, epoch, remote);
        }
        if stood_by {
            self.report(EngineEvent::LaneActive {
                kind: LANE_LINK,
                receive_index: index.0,
            });
        }
    }

    /// Likewise for a session lane; packets that waited for it can go.
    pub(crate) fn activate_session(&mut self, slot: usize) {
        let workers = usize::from(self.config.workers);
        let Some(session) = self.sessions.get_mut(slot) else {
            return;
        };
        let stood_by = std::mem::replace(&mut session.lane.role, Role::Active) == Role::Standby;
        let (address, number) = (session.address, session.lane.number);
        let (epoch, index) = (session.lane.epoch, session.lane.receive_index);
        let remote = session.lane.send_index.worker();
        let destination = self.destinations.entry(address.subnet_id()).or_default();
        destination
            .lanes
            .offer(usize::from(number) / workers, slot as u32, epoch, remote);
        self.pending.release(address);
        if stood_by {
            self.report(EngineEvent::LaneActive {
                kind: LANE_SESSION,
                receive_index: index.0,
            });
        }
    }
}
