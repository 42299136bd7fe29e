//! Egress: which next hop and lane a frame leaves on, or which worker sends it instead.
//!
//! A session has at most [`LANES_PER_WORKER_MAX`] lanes per worker of the smaller node
//! ([`Lane::count`](hyphae_wire::Lane::count)), so workers of a much larger node may have none towards it.
//! Those hand off frames to a worker that has one. Lane state, the send counter above all, has one
//! owner, so lanes are never shared.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::{LINK_TAG_AT, OVERHEAD, SEALED_HEADERS_AT, SealedHeaders};
use hyphae_wire::index::LANES_PER_WORKER_MAX;
use hyphae_wire::report::ReportCode;
use hyphae_wire::{OverlayAddress, SessionIndex, WorkerId};
use zerocopy::FromBytes;

use crate::engine::Engine;
use crate::fib::Target;
use crate::receive::reported_as;
use crate::session::{LinkLane, inner_max};
use crate::verdict::LinkSlot;

/// How a frame leaves this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Sealed for this lane.
    Lane(LinkSlot),
    /// Link part not sealed; for [`Engine::forward_handed`] of this worker.
    Handoff(WorkerId),
}

impl Engine {
    /// The worker that sends in place of this one where this one has no lane.
    ///
    /// A session with fewer lanes than workers has at least [`LANES_PER_WORKER_MAX`] lanes, so every worker
    /// below that number has one. Those get `None`: a frame is handed off at most once.
    pub(crate) fn substitute(&self) -> Option<WorkerId> {
        let own = self.config.worker.0;
        (own >= LANES_PER_WORKER_MAX).then_some(WorkerId(own % LANES_PER_WORKER_MAX))
    }

    /// As [`Self::egress`]; without a lane of this worker, the worker to hand off to.
    pub(crate) fn egress_or_handoff(
        &mut self,
        destination: OverlayAddress,
        flow_hash: u16,
        session: SessionIndex,
    ) -> Result<Egress, DropReason> {
        match self.egress(destination, flow_hash, session) {
            // Slots have 16 bits.
            Ok(slot) => Ok(Egress::Lane(LinkSlot(slot as u32))),
            Err(reason) => self.handoff_for(reason).map(Egress::Handoff).ok_or(reason),
        }
    }

    /// The worker to hand off to when [`Self::egress`] failed for this reason.
    pub(crate) fn handoff_for(&self, reason: DropReason) -> Option<WorkerId> {
        self.substitute()
            .filter(|_| reason == DropReason::AdjacencyDown)
    }

    /// Largest inner packet that leaves on an egress chosen for `destination` and `flow_hash`.
    pub(crate) fn egress_inner_max(
        &mut self,
        egress: Egress,
        destination: OverlayAddress,
        flow_hash: u16,
    ) -> u16 {
        let on_lane = match egress {
            Egress::Lane(slot) => self.links.get(slot.0 as usize).map(LinkLane::inner_max),
            Egress::Handoff(_) => self
                .next_hop(destination, flow_hash)
                .ok()
                .and_then(|peer| self.peer_mut(peer))
                .map(|peer| inner_max(peer.mtu)),
        };
        on_lane.unwrap_or(u16::MAX)
    }

    /// Seals the link part of frames for their egress; for a handoff the other worker does.
    pub(crate) fn seal_egress(
        &mut self,
        now: Nanos,
        egress: Egress,
        frames: &mut [u8],
        segment: usize,
    ) -> Result<(), DropReason> {
        match egress {
            Egress::Lane(slot) => self.seal_train(now, slot.0 as usize, frames, segment),
            Egress::Handoff(_) => Ok(()),
        }
    }

    /// Seals for their next hop frames that another worker routed or built ([`Egress::Handoff`]): frames
    /// of `segment` bytes (the last may be shorter) of one destination and flow, received from the neighbour
    /// `peer` (0 for frames of this node). Returns the lane they leave on; `None` when they are dropped, which
    /// is counted.
    pub fn forward_handed(
        &mut self,
        now: Nanos,
        peer: u32,
        frames: &mut [u8],
        segment: usize,
    ) -> Option<LinkSlot> {
        let segment = segment.clamp(1, frames.len().max(1));
        let count = frames.len().div_ceil(segment) as u64;
        let sealed = self.seal_handed(now, peer, frames, segment);
        let (slot, transit) = match sealed {
            Ok(sealed) => sealed,
            Err(reason) => {
                self.counters.drop_many(reason, count);
                if let Some(code) = reported_as(reason) {
                    self.tell_sender(now, peer, (code, 0), &frames[..segment]);
                }
                return None;
            }
        };
        if transit {
            self.counters.add(Counter::TransitPackets, count);
            self.counters
                .add(Counter::TransitBytes, frames.len() as u64);
        }
        // Slots have 16 bits.
        Some(LinkSlot(slot as u32))
    }

    /// Returns the lane, and whether the frames come from another node.
    fn seal_handed(
        &mut self,
        now: Nanos,
        peer: u32,
        frames: &mut [u8],
        segment: usize,
    ) -> Result<(usize, bool), DropReason> {
        if frames.chunks(segment).any(|frame| frame.len() < OVERHEAD) {
            return Err(DropReason::FrameTooShort);
        }
        let headers = SealedHeaders::read_from_bytes(&frames[SEALED_HEADERS_AT..LINK_TAG_AT])
            .map_err(|_| DropReason::FrameTooShort)?;
        let routing = &headers.routing;
        let session = SessionIndex(headers.session.receiver.get());
        let slot = self.egress(routing.destination, routing.flow_hash.get(), session)?;
        let frame_max = self.links.get(slot).map_or(segment, LinkLane::frame_max);
        if segment > frame_max {
            let too_big = (ReportCode::TooBig, frame_max - OVERHEAD);
            self.tell_sender(now, peer, too_big, &frames[..segment]);
            return Err(DropReason::LinkTooBig);
        }
        self.seal_train(now, slot, frames, segment)?;
        Ok((slot, !self.is_local(routing.source)))
    }

    fn next_hop(&self, destination: OverlayAddress, flow_hash: u16) -> Result<u32, DropReason> {
        match self.fib.lookup(destination) {
            None => Err(DropReason::NoRoute),
            Some(Target::Discard) => Err(DropReason::RouteBlackhole),
            // Frames are routed to nodes; the address behind a gateway is inside of them.
            Some(Target::Gateway(_)) => Err(DropReason::NoRoute),
            Some(Target::Forward(hops)) => Ok(self.fib.pick(hops, self.own_hash(flow_hash))),
        }
    }

    /// A flow's hash, different on each node. Otherwise the flows that a node before this one sends
    /// here by their hash would all take the same one of this node's next hops.
    fn own_hash(&self, flow_hash: u16) -> u16 {
        const ODD: u64 = 0xff51_afd7_ed55_8ccd;
        let own = self.local.map_or(0, |local| local.address.subnet_id());
        let hash = (own ^ u64::from(flow_hash)).wrapping_mul(ODD);
        let [high, low, ..] = (hash ^ (hash >> 32)).wrapping_mul(ODD).to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// The lane on which a frame for `destination` leaves.
    pub(crate) fn egress(
        &mut self,
        destination: OverlayAddress,
        flow_hash: u16,
        session: SessionIndex,
    ) -> Result<usize, DropReason> {
        let peer = self.next_hop(destination, flow_hash)?;
        let peer = self.peer_mut(peer).ok_or(DropReason::AdjacencyDown)?;
        // At the last hop the lane that ends at the session's worker saves a handoff there.
        let slot = if session.0 != 0 && peer.subnet == destination.subnet_id() {
            peer.lanes.pick_towards(session.worker(), flow_hash)
        } else {
            peer.lanes.pick(flow_hash)
        };
        slot.map(|slot| slot as usize)
            .ok_or(DropReason::AdjacencyDown)
    }
}
